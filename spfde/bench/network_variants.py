"""A network dense and sparse, and its training step as calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import nn

from spfde import freezing
from spfde._modules import map_tensors
from spfde.bench.subject import Network
from spfde.bench.variant import Maker, Variant, bytes_of, compiled_form, dense_names
from spfde.freezing.prefix import Prefix
from spfde.kernels import registry
from spfde.nn import SparseLayer
from spfde.profiling.dense_baseline import CHANNELS_LAST, Step, dense_step, step_of, takes_images
from spfde.profiling.memory import memory_of
from spfde.tuning.layer import DTYPES, Timed
from spfde.tuning.timing import Clock

FROZEN = 0.5  # share of the blocks that are frozen in a "frozen" step
PHASES = ("forward", "backward", "optimizer")


def of_network(
    network: Network, pattern: str, sparsities: Sequence[float], dtype: str, device: str, compiled: bool, clock: Clock
) -> Iterator[Maker]:
    """(variant, pattern, sparsity, what makes it) of a network."""
    for name in dense_names(takes_images(network.load.inputs), compiled):
        yield name, "dense", 0.0, lambda name=name: _dense_network(network, name, dtype, device, clock)
    for sparsity in sparsities:
        yield "auto", pattern, sparsity, lambda s=sparsity: _sparse_network(network, pattern, s, dtype, device, clock)


def step_on(network: Network, model: nn.Module, device: str, dtype: str) -> Step:
    """A training step of a model in a precision, float16 and bfloat16 by autocast."""
    inputs = map_tensors(lambda x: x.to(device), network.load.inputs)
    made = step_of(model.to(device), None, lambda: inputs, network.load.loss_fn)
    kind = DTYPES[dtype]
    if kind == torch.float32:
        return made
    return replace(made, model=_Autocast(made.model, device, kind))


class _Autocast(nn.Module):
    """A model under autocast."""

    def __init__(self, model: nn.Module, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.how = model, (device, dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(*self.how):
            return self.model(*args, **kwargs)


def _dense_network(network: Network, name: str, dtype: str, device: str, clock: Clock) -> Variant:
    made = step_on(network, deepcopy(network.load.model), device, dtype)
    if name.endswith(CHANNELS_LAST):
        made = dense_step(made, CHANNELS_LAST)
    whole = replace(made, model=compiled_form(made.model)) if name.endswith("compiled") else made
    return _of_step(name, whole, made, clock, lambda: None if name.endswith("compiled") else _peak(made))


def _sparse_network(network: Network, pattern: str, sparsity: float, dtype: str, device: str, clock: Clock) -> Variant:
    model = network.sparse(sparsity, pattern)
    made = step_on(network, model, device, dtype)
    found = _of_step("auto", made, made, clock, lambda: _peak(made))
    made()
    layers = [m for m in made.model.modules() if isinstance(m, SparseLayer)]
    ran = sum(registry.skips_zeros(m.choice.kernel) for m in layers if m.choice)
    calls, absent = dict(found.calls), {}
    try:
        calls["frozen"] = frozen(network, model, dtype, device)
        calls["frozen"]()
    except (ValueError, TypeError, RuntimeError) as error:  # a network that has no front to freeze
        calls.pop("frozen", None)
        absent["frozen"] = " ".join(str(error).split())
    stored, whole = sum(m.stored for m in layers), sum(prod(m.shape) for m in layers)
    return replace(
        found, calls=calls, pattern=pattern, sparsity=sparsity, density=stored / max(1, whole), kernel="auto",
        reason=f"{ran} of {len(layers)} sparse layers run a sparse kernel", absent=absent,
    )  # fmt: skip


def frozen(network: Network, model: nn.Module, dtype: str, device: str) -> Timed:
    """A step of a copy of the model with the front half of its blocks frozen and run as one call.

    Raises:
        ValueError: the network has no blocks that could be frozen.
    """
    made = step_on(network, deepcopy(model), device, dtype)
    inner = made.model.model if isinstance(made.model, _Autocast) else made.model
    found = freezing.blocks(inner, made.data())
    for block in found[: max(1, round(FROZEN * len(found)))]:
        block.freeze()
    prefix = Prefix(inner, found, "off", network.load.batch)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        with prefix() if name == "forward" else nullcontext():
            yield

    return lambda: made(phase)


def _of_step(name: str, timed: Step, plain: Step, clock: Clock, peak: Callable[[], int | None]) -> Variant:
    phases: dict[str, list[float]] = {part: [] for part in PHASES}
    return Variant(name, {"step": _Phased(timed, phases, clock)}, phases, size=bytes_of(plain.model), peak=peak)


@dataclass
class _Phased:
    """A step that notes the seconds of its phases; the loss is part of forward. On a GPU the clock waits for it."""

    step: Step
    seconds: Mapping[str, list[float]]
    clock: Clock

    def __call__(self) -> None:
        taken = dict.fromkeys(self.seconds, 0.0)

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            start = self.clock()
            yield
            part = "forward" if name == "loss" else name
            if part in taken:
                taken[part] += self.clock() - start

        self.step(phase)
        for part, seconds in taken.items():
            self.seconds[part].append(seconds)


def _peak(made: Step) -> int | None:
    return memory_of(made).peak if next(made.model.parameters()).device.type == "cpu" else None
