"""What one layer does for inputs of one kind, worked out once and kept in its plan until the topology moves.

Everything that depends only on shapes, precisions, devices, the route and the topology is settled in a `Call`: checks,
precisions, the kernel and what it reads. The eager route of every op then is one autograd function on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from spfde.kernels import clock, partly, plain, second_order
from spfde.kernels.dispatch import rule
from spfde.kernels.dtypes import cast, compute_and_result_dtype, is_batched, packed
from spfde.kernels.epilogue import Epilogue, act_grad, untracked
from spfde.kernels.memory_format import check_parameters, reshaped
from spfde.kernels.problem import Problem, problem_of
from spfde.kernels.registry import Composite, Gradients, Kernel, Product, get, names
from spfde.kernels.scatter import write
from spfde.sparse.kernel_index import KernelIndex
from spfde.sparse.plan import Plan

Shape = tuple[int, ...]
profiled = torch._C._autograd._profiler_enabled  # asked at every call: a name costs some microseconds
MOST = 64  # kinds of input that a plan remembers: sentences of every length must not fill the memory


class Seen(NamedTuple):
    """What a kernel was chosen for: type of device, precision that it computes in, shape of the input."""

    device: str
    compute: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """One kind of input of one plan.

    seen: the input. compute, result: precisions of the product and of what it returns. composite: what torch
    differentiates, else None. needs_weight: the kernel multiplies by the dense weight. arranges: values must be
    put in the kernel's order. as_is: inputs come in the compute precision, which is the result's. trained_index,
    trained_problem: of the part of the plan that is trained, None where that is all of it, or nothing. act,
    residual_after_act: of an epilogue with gradient.
    """

    seen: Seen
    problem: Problem
    kernel: Kernel
    product: Product
    index: KernelIndex
    composite: Composite | None
    compute: torch.dtype
    result: torch.dtype
    needs_weight: bool
    arranges: bool
    as_is: bool
    trained_index: KernelIndex | None = None
    trained_problem: Problem | None = None
    act: str = "none"
    residual_after_act: bool = False


def find(
    x: Tensor,
    values: Tensor,
    plan: Plan,
    bias: Tensor | None,
    route: str,
    check: Callable[[Tensor, Plan], None] | None = None,
) -> Call:
    """The call for these tensors, x with its batch: the one that is kept, else a new one.

    check: raises where x does not fit the plan; asked once for each kind of input.

    Raises:
        ValueError: they do not fit the plan, devices differ, or `route` names no kernel or one that cannot run here.
        TypeError: x or values is not floating point.
    """
    device = x.device
    if device != values.device:
        check_device(x, values)
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    key = (
        x.shape, x.dtype, device, values.shape, values.dtype, route, autocast, rule.generation,
        None if bias is None else (bias.shape, bias.dtype, bias.device),
    )  # fmt: skip
    call = plan.calls.get(key)
    if call is None:
        if len(plan.calls) >= MOST:
            del plan.calls[next(iter(plan.calls))]  # the oldest
        if check is not None:
            check(x, plan)
        call = plan.calls[key] = _new_call(x, values, plan, bias, route)
    plan.last_seen = call.seen
    return call


def _new_call(x: Tensor, values: Tensor, plan: Plan, bias: Tensor | None, route: str) -> Call:
    compute, result = compute_and_result_dtype(x, values)
    check_parameters(values, plan.values_shape, bias, plan.rows)
    device, trained = x.device.type, None if plan.live is None else plan.live.plan

    def problem_of_weights(stored: int) -> Problem:
        return problem_of(plan.shape, x.shape, stored, plan.block, plan.window, device, compute)

    problem = problem_of_weights(plan.multiplied)
    choice = rule.choose(route, device, compute, problem)
    kernel = get(choice.kernel)
    return Call(
        seen=Seen(device, compute, tuple(x.shape)),
        problem=problem,
        kernel=kernel,
        product=kernel.products[problem.op],
        index=kernel.index(plan),
        composite=kernel.composite(plan),
        compute=compute,
        result=result,
        needs_weight=kernel.multiplies_dense(plan.block),
        arranges=plan.arranges,
        as_is=x.dtype is values.dtype is compute is result and (bias is None or bias.dtype is compute),
        trained_index=None if trained is None else kernel.index(trained),
        trained_problem=None if trained is None else problem_of_weights(trained.multiplied),
    )


def composite_of(plan: Plan, route: str, dtype: torch.dtype) -> Composite | None:
    """What torch differentiates instead of a registered op, settled without asking `dispatch`: this is traced."""
    if dtype == torch.float64:
        return None
    return (
        get(route if route in names() else rule.WHOLE_OUTPUTS).composite(plan) if plan.kept_rows is not None else None
    )


def check_device(x: Tensor, values: Tensor) -> None:
    """Raises ValueError if an input and a layer are on different devices."""
    if x.device != values.device:
        raise ValueError(
            f"expected x on {values.device} like the layer, got {x.device}, try x.to({str(values.device)!r})"
        )


def note_seen(plan: Plan, x: Tensor, dtype: torch.dtype) -> None:
    """Remembers the latest input where `find` is not asked; not one whose sizes a trace leaves open."""
    if not torch.compiler.is_compiling() and all(type(size) is int for size in x.shape):
        plan.last_seen = Seen(x.device.type, dtype, tuple(x.shape))


def run(x: Tensor, values: Tensor, bias: Tensor | None, plan: Plan, call: Call, shape: Shape | None = None) -> Tensor:
    """y by a call of a plan, eagerly, in another `shape` where one is given, and never a view.

    x: [batch, features] or [batch, channels, height, width].
    """
    if profiled():
        with record_function(f"spfde::{call.problem.op} {call.kernel.name}"):
            return _cast_and_run(x, values, bias, plan, call, shape)
    return _cast_and_run(x, values, bias, plan, call, shape)


def _cast_and_run(
    x: Tensor, values: Tensor, bias: Tensor | None, plan: Plan, call: Call, shape: Shape | None
) -> Tensor:
    if call.as_is:
        return _run(x, values, bias, plan, call, shape)
    with torch.autocast(x.device.type, enabled=False):  # the precisions are settled
        y = _run(cast(x, call.compute), cast(values, call.compute), cast(bias, call.compute), plan, call, shape)
        return cast(y, call.result)


def _run(x: Tensor, values: Tensor, bias: Tensor | None, plan: Plan, call: Call, shape: Shape | None) -> Tensor:
    if not values.is_contiguous():
        values = values.contiguous()
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if call.composite is not None:
        composite = clock.timed(call.composite) if clock.running else call.composite
        y = composite(x, values, bias, plan)
        return y if shape is None else reshaped(y, shape)
    if call.arranges:
        values = plan.ordered(values)
    return _Product.apply(x, values, bias, None, plan, call, shape)


def run_with_epilogue(
    x: Tensor, values: Tensor, epilogue: Epilogue, plan: Plan, call: Call, shape: Shape
) -> Tensor | None:
    """y = epilogue(product) in the kernel, None where either misfits the other or has no gradient that is wanted.

    x: as in `run`. shape: of the layer's output and so of a residual, [..., outputs] of a linear layer.
    """
    rows = plan.rows
    if not epilogue.fits(shape, rows, call.result, x.device):
        return None
    x, values = cast(x, call.compute), packed(values, call.compute)
    result, epilogue = epilogue.result(call.result), epilogue.in_precision(call.compute)
    graph = not untracked(x, values, *epilogue.tensors)
    if not call.product.fuses(epilogue, call.problem, call.compute, graph):
        return None
    if not graph:
        y = clock.timed(_without_graph)(x, plan.arrange(values), epilogue, plan, call, shape)
    elif epilogue.has_gradient:
        bias = packed(epilogue.bias, call.compute)
        ended = replace(call, act=epilogue.act, residual_after_act=epilogue.residual_after_act)
        y = _Product.apply(x, plan.ordered(values), bias, epilogue.residual, plan, ended, shape)
    else:
        return None
    return cast(y, result)


def _without_graph(x: Tensor, values: Tensor, epilogue: Epilogue, plan: Plan, call: Call, shape: Shape) -> Tensor:
    if epilogue.residual is not None and x.dim() == 2:
        epilogue = epilogue._replace(residual=epilogue.residual.reshape(-1, plan.rows))
    weight = write(values, plan)[0] if call.needs_weight else None
    y = call.product.forward(x, values, None, call.index, call.problem, weight, epilogue)
    return y if y.dim() == len(shape) else y.view(shape)


def weight_gradient(dy: Tensor, x: Tensor, plan: Plan, route: str = "auto") -> Tensor:
    """The weight gradient [capacity, R, C] at the places that a plan stores, outside autograd.

    dy: the output's gradient. x: the input, as a layer takes it. route: what settles the kernel for x, as a layer's.
    """
    x, dy = x.detach(), dy.detach()
    if len(plan.shape) == 2:
        x, dy = x.reshape(-1, plan.cols), dy.reshape(-1, plan.rows)
    elif x.dim() == 3:
        x, dy = x.unsqueeze(0), dy.unsqueeze(0)
    compute, device = torch.float32 if x.is_cpu and x.dtype != torch.float64 else x.dtype, x.device.type
    problem = problem_of(plan.shape, x.shape, plan.multiplied, plan.block, plan.window, device, compute)
    kernel = get(rule.choose(route, device, compute, problem).kernel)
    values = torch.zeros(plan.values_shape, dtype=compute, device=x.device)
    with torch.enable_grad():
        arranged = plan.arrange(values.requires_grad_())
    weight_grad, block = kernel.products[problem.op].weight_grad, arranged.shape[1:]
    grad = weight_grad(cast(dy, compute), cast(x, compute), kernel.index(plan), block, problem, False)[0]
    grad = grad if arranged is values else torch.autograd.grad(arranged, values, grad)[0]
    return cast(grad, dy.dtype)


class _Product(torch.autograd.Function):
    """The eager route of every op: what the registered ops compute, without the dispatcher's overhead.

    shape: of y, None for that which the product has.
    """

    @staticmethod
    def forward(ctx, x, values, bias, residual, plan, call, shape):
        ctx.plan, ctx.call, ctx.size, ctx.topology_version = plan, call, x.shape, plan.topology_version
        weight = pre_act = None
        if call.needs_weight:
            weight, ctx.dense_version = write(values, plan)
        forward = clock.timed(call.product.forward) if clock.running else call.product.forward
        if call.act == "none" and residual is None:
            y = forward(x, values, bias, call.index, call.problem, weight)
            y = y if shape is None else y.view(shape).data  # no view: those lose their hooks when changed in place
        else:
            y, pre_act = _with_epilogue(forward, x, values, bias, residual, plan, call, weight, shape)
        ctx.save_for_backward(x if values.requires_grad else None, values, pre_act)
        return y

    @staticmethod
    def backward(ctx, dy):
        if torch.is_autocast_enabled(dy.device.type):  # the precisions are settled
            with torch.autocast(dy.device.type, enabled=False):
                return _Product.backward(ctx, dy)
        return *_backward(ctx, dy), None, None, None


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    plan, call = ctx.plan, ctx.call
    plan.check(ctx.topology_version)
    x, values, pre_act = ctx.saved_tensors
    need_x, need_values, need_bias, need_residual = ctx.needs_input_grad[:4]
    dresidual = None
    if call.act == "gelu" and torch.is_grad_enabled():
        raise RuntimeError(
            "expected first derivatives only of a GELU that spfde.fuse put into a layer's kernel, got "
            "create_graph=True, try spfde.unfuse(model)"
        )
    if call.act != "none" or need_residual:
        given, dy = dy, act_grad(dy, None if pre_act is None else pre_act.detach(), call.act)
        if need_residual:
            dresidual = given if call.residual_after_act else dy
    if dy.dim() != len(ctx.size):  # y has another shape
        dy = dy.reshape(-1, plan.rows)
    if dy.dtype is not values.dtype:
        dy = dy.to(values.dtype)
    weight = None
    if call.needs_weight and need_x and not torch.is_grad_enabled() and not is_batched(dy):
        weight = write(values, plan, ctx.dense_version)[0]
    return *gradients(dy, x, values, plan, call, ctx.size, (need_x, need_values, need_bias), weight), dresidual


def gradients(
    dy: Tensor,
    x: Tensor | None,
    values: Tensor,
    plan: Plan,
    call: Call,
    size: Shape,
    needs: Sequence[bool],
    weight: Tensor | None = None,
) -> Gradients:
    """The gradients of x, values and bias in a backward pass: batched, to be differentiated again, or the kernel's.

    dy: in the product's shape and precision. The rest as in `Product.gradients`.
    """
    if is_batched(dy):
        dx, dvalues, dbias = plain.gradients(dy, x, values, plain.weight_of(plan), size, needs)
        cut = plan.live is not None and dvalues is not None
        return dx, plan.live.cut(dvalues) if cut else dvalues, dbias
    if torch.is_grad_enabled():  # a graph of this backward pass is being built
        return second_order.gradients(dy, x, values, plan, call, size, needs)
    run, read = call.product.gradients, (call.index, call.problem)
    if plan.live is not None and needs[1]:
        run, read = partly.gradients, (plan, call)
    run = clock.timed(run) if clock.running else run
    if profiled():
        with record_function(f"spfde::{call.problem.op} gradients {call.kernel.name}"):
            return run(dy, x, values, *read, size, needs, weight)
    return run(dy, x, values, *read, size, needs, weight)


def _with_epilogue(
    forward: Any,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    plan: Plan,
    call: Call,
    weight: Tensor | None,
    shape: Shape,
) -> tuple[Tensor, Tensor | None]:
    """Y, and what backward needs to see where the activation bends: what it was given, or y itself."""
    images = x.dim() == 4
    flat = residual if residual is None or images else residual.reshape(-1, plan.rows)
    end = Epilogue(bias, None, flat, call.act, call.residual_after_act)
    pre_act = None
    if end.needs_pre_act:
        memory = torch.channels_last if images else torch.contiguous_format
        pre_act = torch.empty(shape, dtype=end.result(x.dtype), device=x.device, memory_format=memory)
        end = end._replace(pre_act_out=pre_act if images else pre_act.view(-1, plan.rows))
    y = forward(x, values, None, call.index, call.problem, weight, end)
    y = y if y.dim() == len(shape) else y.view(shape).data  # a view could not be changed in place
    return y, y if pre_act is None and call.act != "none" else pre_act
