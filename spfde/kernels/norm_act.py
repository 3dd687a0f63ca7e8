"""norm_act: y = act(batch_norm(x) + residual) and its gradients, each in two passes over memory.

x is saved for backward, and y only where a residual hides it from x: the next layer saves y anyway, or makes it again
(see `spfde.kernels.recompute`). Native for float32 on a CPU; one Triton kernel on a GPU in evaluation where no gradient
is wanted, or CUDA kernels where Triton is missing; everything else is torch's own batch_norm, addition and activation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde._names import unknown
from spfde._native import native
from spfde.kernels import norm_act_cuda as cuda
from spfde.kernels import norm_act_frozen as frozen
from spfde.kernels import norm_act_second as second
from spfde.kernels.clock import timed
from spfde.kernels.dtypes import cast, in_torch_ops, through_dispatcher
from spfde.kernels.memory_format import address, memory_format_of

# In the order of Activation in csrc/include/spfde/epilogue.h.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6}
CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
# Those that the native kernel has not: torch's own op on what it returns.
COMPOSED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu, "hardswish": F.hardswish, "gelu": F.gelu, "mish": F.mish, "elu": F.elu, "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid, "tanh": torch.tanh,
}  # fmt: skip
_SLOPE = "leaky_relu:"  # and the slope of what is negative


def activation_of(act: str) -> Callable[[Tensor], Tensor]:
    """The activation of a name: of ACTIVATIONS or COMPOSED, or "leaky_relu:" with a slope.

    Raises:
        ValueError: there is none.
    """
    found = ACTIVATIONS.get(act) or COMPOSED.get(act)
    if found is not None:
        return found
    slope = act.removeprefix(_SLOPE)
    try:
        if slope != act:
            return partial(F.leaky_relu, negative_slope=float(slope))
    except ValueError:
        pass
    raise unknown("act", act, [*ACTIVATIONS, *COMPOSED, f"{_SLOPE}0.1"])


def norm_act_ref(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    act: str = "none",
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """y = act(batch_norm(x) + residual) in plain torch, differentiable to any order; arguments as in `norm_act`."""
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return activation_of(act)(y if residual is None else y + residual)


def norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    act: str = "none",
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    recompute: bool = False,
) -> Tensor:
    """y = act(batch_norm(x) + residual), with the arguments of torch.nn.functional.batch_norm.

    x, residual: [batch, channels, ...], the same shape. The rest: [channels] or None. act: "none", "relu" or "relu6",
    or one of `COMPOSED` or "leaky_relu:0.1", which torch computes of the kernel's result.
    With `training`, statistics are the batch's, and running_mean and running_var, where given, move towards them (the
    variance unbiased); otherwise they are the statistics. recompute: y will be read by layers that do not save it;
    where the residual is kept in any case, backward makes y again from it. Returns y in the memory format of x.

    Raises:
        ValueError: a shape does not fit, `act` names none, statistics are missing, or one value per channel would have
            to give a variance. The running statistics have not moved then.
    """
    _check(x, running_mean, running_var, weight, bias, residual, act, training, eps)
    if act not in ACTIVATIONS:
        y = norm_act(
            x, running_mean, running_var, weight, bias,
            residual=residual, training=training, momentum=momentum, eps=eps,
        )  # fmt: skip
        return activation_of(act)(y)
    parts = (x, residual, running_mean, running_var, weight, bias)
    if not runs_native(*parts) and not cuda.runs(*parts, training):
        if not training and frozen.runs(x, residual, running_mean, running_var, weight, bias):
            return frozen.compute(x, residual, running_mean, running_var, weight, bias, eps, act)
        return norm_act_ref(
            x, running_mean, running_var, weight, bias,
            residual=residual, act=act, training=training, momentum=momentum, eps=eps,
        )  # fmt: skip
    statistics = (running_mean, running_var, training, momentum, eps)
    if not through_dispatcher(x):
        x, residual = packed(x, residual)
        return _NormAct.apply(x, residual, weight, bias, *statistics, act, what_to_hold(residual, act, recompute))
    fixed = (None, None) if training else (running_mean, running_var)
    y, mean, var = torch.ops.spfde.norm_act(x, residual, weight, bias, *fixed, eps, act)
    if training and running_mean is not None and running_var is not None:
        n = x.numel() // x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.mul_(1 - momentum).add_(var, alpha=momentum * n / (n - 1))
    return y


def _check(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str,
    training: bool,
    eps: float,
) -> None:
    activation_of(act)
    if x.dim() < 2:
        raise ValueError(f"expected x of shape [batch, channels, ...], got {list(x.shape)}")
    channels = x.shape[1]
    vectors = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, vector in vectors.items():
        if vector is not None and vector.shape != (channels,):
            raise ValueError(f"expected {name} of shape [{channels}], got {list(vector.shape)}")
    if (running_mean is None) != (running_var is None):
        raise ValueError("expected running_mean and running_var both or neither, got one of them")
    if running_mean is None and not training:
        raise ValueError(
            "expected running_mean and running_var, got None, try training=True for the batch's statistics"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"expected residual of shape {list(x.shape)} like x, got {list(residual.shape)}")
    if training and x.numel() == channels:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")  # torch's
    if eps < 0 or (training and eps == 0):  # torch's as well: a channel of one value would be 0 / 0
        raise ValueError(f"expected eps > 0 in training and >= 0 in evaluation, got {eps}, try 1e-5")


def runs_native(x: Tensor, residual: Tensor | None, *vectors: Tensor | None) -> bool:
    """Whether the native kernel takes these: float32 in a CPU's memory, some values, vectors without gaps."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() == 0 or in_torch_ops():
        return False
    if residual is not None and (residual.dtype != x.dtype or residual.device != x.device):
        return False
    return all(v is None or (v.dtype == x.dtype and v.device == x.device and v.is_contiguous()) for v in vectors)


# ---- outside autograd -----------------------------------------------------------------------------------------------


def _native_shape(x: Tensor) -> tuple[int, int, int, bool]:
    """The fields of NormShape in csrc/include/spfde/epilogue.h; single pixels are read as channels_last."""
    batch, channels = x.shape[:2]
    pixels = x.numel() // (batch * channels)
    return batch, channels, pixels, pixels == 1 or memory_format_of(x) == torch.channels_last


@timed
def compute(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    act: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, var): the running statistics, or with `training` the batch's, towards which the running ones move."""
    if training:
        mean, var = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    else:
        mean, var, running_mean, running_var = running_mean, running_var, None, None
    on_gpu = cuda.on_gpu(x)
    if on_gpu:
        weight, bias, mean, var = map(cuda.vector, (weight, bias, mean, var))
    y = torch.empty_like(x)
    rest = (
        CODES[act], training, eps, momentum, address(weight), address(bias), x.data_ptr(), address(residual),
        mean.data_ptr(), var.data_ptr(), address(running_mean), address(running_var), y.data_ptr(),
    )  # fmt: skip
    if on_gpu:
        cuda.run("norm_act", x, _native_shape(x), *rest)
    else:
        native().norm_act(*_native_shape(x), *rest, torch.get_num_threads())
    note_moved(running_mean, running_var)
    return y, mean, var


def note_moved(*running: Tensor | None) -> None:
    """Lets an earlier backward that needs statistics as they were notice that a kernel has changed them."""
    for moved in running:
        if moved is not None and not moved.is_inference():
            torch.autograd.graph.increment_version(moved)


@timed
def compute_grad(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    act: str,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(dx, dresidual, dweight, dbias); dresidual only with y."""
    dy = dy.contiguous(memory_format=memory_format_of(x))
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
    dresidual = None if y is None else torch.empty_like(x)
    on_gpu, given = cuda.on_gpu(x), (weight, bias)
    if on_gpu:
        weight, bias = map(cuda.vector, given)
    rest = (
        CODES[act], training, eps, address(weight), address(bias), mean.data_ptr(), var.data_ptr(), x.data_ptr(),
        address(y), dy.data_ptr(), dx.data_ptr(), address(dresidual), dweight.data_ptr(), dbias.data_ptr(),
    )  # fmt: skip
    if on_gpu:
        cuda.run("norm_act_grad", x, _native_shape(x), *rest)
        dweight, dbias = (g if v is None else cast(g, v.dtype) for g, v in zip((dweight, dbias), given, strict=True))
    else:
        native().norm_act_grad(*_native_shape(x), *rest, torch.get_num_threads())
    return dx, dresidual, dweight, dbias


def packed(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both in one memory format, copied only where they are not."""
    layout = memory_format_of(x)
    return x.contiguous(memory_format=layout), None if residual is None else residual.contiguous(memory_format=layout)


# ---- autograd -------------------------------------------------------------------------------------------------------


def what_to_hold(residual: Tensor | None, act: str, recompute: bool) -> str:
    """What is saved beside x to tell where a residual let the activation pass: "y", the "residual", or "" (nothing).

    Along a chain of residual sums every other one is kept: each of the rest is one pass away from the one before.
    """
    if residual is None or act == "none":
        return ""
    maker = residual.grad_fn
    return "residual" if recompute and _is_ours(maker) and maker.holds == "y" else "y"


class EndsWithNormAct(torch.autograd.Function):
    """A function whose output is norm_act's, and can be made again from what it saves."""

    @staticmethod
    def save(ctx, y, x, residual, weight, bias, mean, var, settings, holds, *more):
        """Saves what backward needs, and `more`. x: the norm's input. settings: training, eps and act."""
        ctx.settings, ctx.residual, ctx.holds = settings, residual is not None, holds
        ctx.remade = ctx.unpacked = None
        ctx.save_for_backward(x, {"y": y, "residual": residual}.get(holds), weight, bias, mean, var, *more)

    @staticmethod
    def saved(ctx):
        """What `save` was given: x, y where a residual hides its gradient, weight, bias, mean, var, and more."""
        x, y, *rest = _unpacked(ctx)
        y = remake(ctx) if ctx.holds == "residual" else y
        ctx.remade = ctx.unpacked = None
        return x, y, *rest


class _NormAct(EndsWithNormAct):
    """The eager route: the same computations as the registered op, without the dispatcher's overhead."""

    @staticmethod
    def forward(ctx, x, residual, weight, bias, running_mean, running_var, training, momentum, eps, act, holds):
        y, mean, var = compute(x, residual, weight, bias, running_mean, running_var, training, momentum, eps, act)
        _NormAct.save(ctx, y, x, residual, weight, bias, mean, var, (training, eps, act), holds)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, y, *rest = _NormAct.saved(ctx)
        grads = (second.compute_grad if second.wanted(dy) else compute_grad)(dy, x, y, *rest, *ctx.settings)
        return (*wanted_grads(ctx, dy, grads), *[None] * 7)


def _is_ours(node: Any) -> bool:
    return issubclass(getattr(type(node), "_forward_cls", object), EndsWithNormAct)


def _unpacked(node: Any) -> tuple[Tensor | None, ...]:
    """What the node has saved, asked for once until its backward has run: a checkpoint allows no more."""
    if node.unpacked is None:
        node.unpacked = node.saved_tensors
    return node.unpacked


def can_remake(node: Any) -> bool:
    """Whether `remake` works and saves memory: this node of the autograd graph is an eager native call's, without y."""
    return _is_ours(node) and (not node.residual or node.holds == "residual")


def remake(node: Any) -> Tensor:
    """The output y of the call that made `node`, bit for bit, from what that call has saved."""
    if node.remade is not None:
        return node.remade
    x, residual, weight, bias, mean, var, *_ = _unpacked(node)
    _, eps, act = node.settings
    with torch.no_grad():
        y = compute(x, residual, weight, bias, mean, var, False, 0.0, eps, act)[0]
    if node.holds == "residual":
        node.remade = y  # for its own backward, which follows those of its readers
    return y


def wanted_grads(ctx, dy: Tensor, grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The gradients of x, residual, weight and bias, None where nobody asks."""
    dx, dresidual, dweight, dbias = grads
    dresidual = dy if dresidual is None and ctx.residual else dresidual
    pairs = zip((dx, dresidual, dweight, dbias), ctx.needs_input_grad[:4], strict=True)
    return [grad if need else None for grad, need in pairs]
