"""What a training step holds at most, and between forward and backward by the layer that made it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.autograd.profiler import profile as torch_profile
from torch.autograd.profiler import record_function

from spfde._modules import tensors
from spfde.nn import SparseLayer
from spfde.profiling.dense_baseline import Step
from spfde.profiling.timeline import BACKWARD

MARK = "spfde memory:"  # of the ranges that the profiler's record names


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step.

    weights, gradients, optimizer (its state), index (buffers, and what sparse kernels read of a topology), batch: every
    storage once. kept: what the forward pass leaves for the backward. peak: the most that was held at any moment, all
    of these and every scratch tensor counted. layers: `kept` by the module that allocated it.
    """

    weights: int
    gradients: int
    optimizer: int
    index: int
    batch: int
    kept: int
    peak: int
    layers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Allocation:
    """Bytes taken (> 0) or given back (< 0) at an address, and the phase and module that were running."""

    address: int
    size: int
    phase: str
    layer: str


def memory_of(step: Step) -> Memory:
    """Takes a step and returns what it holds. The step has been taken before: its optimizer has its state."""
    step.optimizer.zero_grad(set_to_none=True)
    batch = step.data()
    parameters = list(step.model.parameters())
    plans = [module.plan for module in step.model.modules() if isinstance(module, SparseLayer)]
    weights = size_of(parameters)
    optimizer = size_of(list(step.optimizer.state.values()))
    index = size_of([list(step.model.buffers()), plans])
    changes = _record(step)
    kept = kept_by_layer(changes)
    held = weights + optimizer + index + size_of(batch)
    return Memory(
        weights=weights,
        gradients=size_of([p.grad for p in parameters]),
        optimizer=optimizer,
        index=index,
        batch=size_of(batch),
        kept=sum(kept.values()),
        peak=held + highest(changes),
        layers=kept,
    )


def highest(changes: Iterable[Allocation]) -> int:
    """The most bytes taken at any moment, of those taken within the record."""
    held, most, now = {}, 0, 0
    for change in changes:
        if change.size > 0:
            held[change.address] = change.size
            now += change.size
            most = max(most, now)
        else:  # of what was there before the record, nothing is known
            now -= held.pop(change.address, 0)
    return most


def kept_by_layer(changes: Iterable[Allocation]) -> dict[str, int]:
    """Bytes taken in the forward pass and still held at its end, by layer."""
    held: dict[int, Allocation] = {}
    for change in changes:
        if change.phase == BACKWARD:
            break
        if change.size > 0:
            held[change.address] = change
        else:
            held.pop(change.address, None)
    kept: dict[str, int] = {}
    for change in held.values():
        kept[change.layer] = kept.get(change.layer, 0) + change.size
    return kept


def size_of(value: Any) -> int:
    """Bytes of the tensors in a value, every storage once."""
    storages = [tensor.untyped_storage() for tensor in tensors(value)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _record(step: Step) -> list[Allocation]:
    """What torch's allocator did during a step, in order."""
    recording = torch_profile(profile_memory=True)
    with _quiet():
        recording.__enter__()
    try:
        with _ranges(step.model):
            step(lambda name: record_function(f"{MARK}{name}:"))
    finally:
        with _quiet():
            recording.__exit__(None, None, None)
    events = [(event, *_place(event)) for event in _walk(recording.kineto_results.experimental_event_tree())]
    found = [e for e in events if type(e[0].extra_fields).__name__ == "_ExtraFields_Allocation" and e[1]]
    found.sort(key=lambda e: e[0].start_time_ns)
    return [
        Allocation(event.extra_fields.ptr, event.extra_fields.alloc_size, phase, layer)
        for event, phase, layer in found
        if phase != "data"
    ]


@contextmanager
def _ranges(model: nn.Module) -> Iterator[None]:
    """Every module of `model` names itself in the record while it runs forward."""
    open_ranges: list[Any] = []
    handles = []
    for name, module in model.named_modules():

        def enter(*_: Any, name: str = name) -> None:
            open_ranges.append(record_function(f"{MARK}:{name}").__enter__())

        def leave(*_: Any) -> None:
            open_ranges.pop().__exit__(None, None, None)

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _walk(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _walk(event.children)


def _place(event: Any) -> tuple[str, str]:
    """The phase and the innermost module that an event falls into."""
    phase = layer = ""
    while event is not None and not phase:
        if event.name.startswith(MARK):
            phase, _, name = event.name.removeprefix(MARK).partition(":")
            layer = layer or name
        event = event.parent
    return phase, layer


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the error stream: torch 2.13's profiler announces start and stop there whatever its log level."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is no such stream
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
