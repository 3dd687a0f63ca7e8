"""What a training step of a model does: its layers with their shapes, every other op, what it keeps for backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from spfde._modules import batch_size, map_tensors, random_state_restored, run, tensors
from spfde.bench.workload import mean_square
from spfde.kernels.conv2d_norm_act import NODE
from spfde.nn import SparseLayer
from spfde.planning.estimate import Shape
from spfde.tuning.ops import NORM, NORM_GRAD, Op, OpLog, eager, is_last

SAMPLES = 4  # that a step is taken with, to see what it does
FORWARD, BACKWARD = "forward", "backward"
MARK = "a layer"  # among ops: here the layer of that number has its output, or the gradient of it


@dataclass(frozen=True)
class LayerUse:
    """A layer with a weight, as a step uses it.

    first: whether its input needs no gradient. last: in channels_last. normed: it is one op with the norm behind it.
    before: where the forward ops behind it begin. after: where the backward ops in front of it begin.
    """

    name: str
    kind: str
    shape: Shape
    density: float
    first: bool
    sparse: SparseLayer | None = None
    last: bool = False
    normed: bool = False
    before: int = 0
    after: int = 0


@dataclass(frozen=True)
class StepWork:
    """What a step does at the full batch.

    ops: calls by phase, without the norms that are one op with a layer. kept: bytes for the backward pass. parameters:
    bytes.
    """

    layers: tuple[LayerUse, ...]
    ops: Mapping[str, tuple[Op, ...]]
    kept: int
    parameters: int


def step_work(model: nn.Module, example_input: Any) -> StepWork:
    """Looks at one step of a few samples of the batch, on a copy; amounts are scaled to the whole batch.

    The loss is the mean square of what the model returns: what another one takes is not seen.
    """
    batch = batch_size(example_input)
    few = min(SAMPLES, batch)
    model = deepcopy(model).train()
    made = _look(model, _first(example_input, batch, few), batch / few)
    if batch > few > 1:  # what does not grow with the samples is told by fewer of them
        less = _look(model, _first(example_input, batch, few // 2), 1.0).ops
        ops = {phase: _extrapolated(made.ops[phase], less[phase], few, few // 2, batch) for phase in made.ops}
        made = replace(made, ops=ops)
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return replace(made, parameters=size)


def _first(inputs: Any, batch: int, few: int) -> Any:
    return map_tensors(lambda x: x[:few].clone() if x.dim() and x.shape[0] == batch else x, inputs)


def _look(model: nn.Module, inputs: Any, factor: float) -> StepWork:
    """What a step does: layers and bytes kept at so many times these samples, ops as they are."""
    with random_state_restored(model), torch.enable_grad():
        loss = mean_square(run(model, inputs))  # what is made once, such as kernels' plans, is no step's
        normed = _normed(loss)
        loss.backward()
    model.zero_grad()  # as a step does: gradients are then given, not added
    layers: list[LayerUse] = []

    def see(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            use = _use(name, module, next(tensors(args)), output, factor, not layers)
            at = len(layers)
            layers.append(replace(use, normed=use.sparse is not None and id(use.sparse.plan) in normed))
            log.ops.append(Op(MARK, at))
            if output.requires_grad:
                output.register_hook(lambda grad: log.ops.append(Op(MARK, at)))

        return hook

    hooks = [m.register_forward_hook(see(name)) for name, m in model.named_modules() if _weighted(m)]
    held: dict[tuple[int, int], int] = {}
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            held[storage.data_ptr(), storage.nbytes()] = storage.nbytes()
        return tensor

    phases: dict[str, tuple[Op, ...]] = {}
    places: dict[str, dict[int, int]] = {}
    log = OpLog()
    try:
        with random_state_restored(model), torch.enable_grad():
            with log, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = mean_square(run(model, inputs))
            shared = {at for at, use in enumerate(layers) if use.normed}
            phases[FORWARD], places[FORWARD] = _placed(_without(eager(log.ops), shared, NORM))
            log.ops.clear()
            with log:
                loss.backward()
            left = _without(eager(log.ops)[::-1], shared, NORM_GRAD)[::-1]
            phases[BACKWARD], places[BACKWARD] = _placed(left)
    finally:
        for hook in hooks:
            hook.remove()
    found = [
        replace(use, before=places[FORWARD][at], after=places[BACKWARD].get(at, len(phases[BACKWARD])))
        for at, use in enumerate(layers)
    ]
    return StepWork(tuple(found), phases, round(sum(held.values()) * factor), 0)


def _normed(loss: Tensor) -> set[int]:
    """The plans (by id) of layers that ran as one op with the norm behind them."""
    nodes, seen, found = [loss.grad_fn], set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == NODE:
            found.add(id(node.plan))
        nodes += [parent for parent, _ in node.next_functions]
    return found


def _without(ops: Sequence[Op], shared: set[int], norm: str) -> list[Op]:
    """The ops, in a forward pass's order, without the norms that are one op with the layer in front of them."""
    due, kept = 0, []
    for op in ops:
        due += op.name == MARK and op.amount in shared
        if op.name == norm and due:
            due -= 1
        else:
            kept.append(op)
    return kept


def _placed(ops: Sequence[Op]) -> tuple[tuple[Op, ...], dict[int, int]]:
    """The ops without marks, and by layer how many of them its mark comes behind."""
    kept: list[Op] = []
    places: dict[int, int] = {}
    for op in ops:
        if op.name == MARK:
            places[op.amount] = len(kept)
        else:
            kept.append(op)
    return tuple(kept), places


def _extrapolated(ops: Sequence[Op], less: Sequence[Op], few: int, fewer: int, batch: int) -> tuple[Op, ...]:
    """The ops at `batch` samples, from those at `few` and at `fewer`; in proportion, where these are other ones."""
    if [op.name for op in ops] != [op.name for op in less]:
        return tuple(op._replace(amount=round(op.amount * batch / few)) for op in ops)
    growth = [(op.amount - other.amount) / (few - fewer) for op, other in zip(ops, less, strict=True)]
    return tuple(
        op._replace(amount=round(op.amount + each * (batch - few))) for op, each in zip(ops, growth, strict=True)
    )


def _weighted(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd | SparseLayer)


def _use(name: str, module: nn.Module, x: Tensor, y: Tensor, factor: float, first: bool) -> LayerUse:
    sparse = module if isinstance(module, SparseLayer) else None
    shape = tuple(sparse.shape if sparse is not None else module.weight.shape)
    density = 1.0 if sparse is None else max(sparse.stored, 1) / prod(shape)
    if len(shape) == 2:
        rows = x.numel() // max(1, x.shape[-1])
        use = Shape(shape, max(1, round(rows * factor)))
    else:
        window = sparse.plan.window if sparse is not None else None
        stride = window.stride[0] if window is not None else module.stride[0]
        groups = window.groups if window is not None else module.groups
        taps = (*shape[2:], 1)[:2]
        size = (*y.shape[2:], 1)[:2]
        use = Shape((*shape[:2], *taps), max(1, round(x.shape[0] * factor)), size, stride, groups)
    return LayerUse(name, type(module).__name__, use, density, first, sparse, is_last(x))
