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
from spfde.nn import SparseLayer
from spfde.planning.estimate import Shape
from spfde.tuning.ops import Op, OpLog, eager, is_last

SAMPLES = 4  # that a step is taken with, to see what it does
FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True)
class LayerUse:
    """A layer with a weight, as a step uses it. first: whether its input needs no gradient. last: in channels_last."""

    name: str
    kind: str
    shape: Shape
    density: float
    first: bool
    sparse: SparseLayer | None = None
    last: bool = False


@dataclass(frozen=True)
class StepWork:
    """What a step does at the full batch. ops: calls by phase. kept: bytes for the backward pass. parameters: bytes."""

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
        mean_square(run(model, inputs)).backward()  # what is made once, such as kernels' plans, is no step's
    layers: list[LayerUse] = []

    def see(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            layers.append(_use(name, module, next(tensors(args)), output, factor, not layers))

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
    try:
        with random_state_restored(model), torch.enable_grad():
            with OpLog() as log, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = mean_square(run(model, inputs))
            phases[FORWARD] = tuple(eager(log.ops))
            with OpLog() as log:
                loss.backward()
            phases[BACKWARD] = tuple(eager(log.ops))
    finally:
        for hook in hooks:
            hook.remove()
    return StepWork(tuple(layers), phases, round(sum(held.values()) * factor), 0)


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
