"""Profiles a training step: the model as it is beside its dense baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde._modules import random_state_restored, tensors
from spfde.kernels import clock
from spfde.profiling.dense_baseline import (
    CHANNELS_LAST,
    CONTIGUOUS,
    Step,
    dense_step,
    has_dense_baseline,
    step_of,
    takes_images,
)
from spfde.profiling.memory import Memory, memory_of
from spfde.profiling.result import StepProfile
from spfde.profiling.timeline import Timeline, without_overhead
from spfde.profiling.trace import Trace
from spfde.profiling.variant import Part, Variant, parts_of
from spfde.tuning import timing

WARM_UPS = 3


def profile(
    model: nn.Module,
    example_input: Any,
    loss_fn: Callable[[Any], Tensor] | None = None,
    optimizer: Optimizer | None = None,
    *,
    data: Callable[[], Any] | None = None,
    dense: bool = True,
    rounds: int = 10,
) -> StepProfile:
    """Where the time and memory of one training step go, by layer and by kind of work, beside the dense network's.

    example_input: a batch as in training (a tuple: positional arguments, a mapping: keywords). loss_fn: from the
    model's output to a scalar; None: the mean of its squares. optimizer: the model's own; None: SGD with momentum,
    fused. data: what makes the inputs of a step, to be profiled with it; None: `example_input`, at no cost. dense:
    whether the dense baseline runs too, in the faster of contiguous and channels_last. rounds: steps of each variant,
    taken in turns; medians count.

    Steps are taken on copies, in training mode and on torch's present number of threads: the model, its gradients and
    buffers, the optimizer and torch's random state stay as they are. A model's other side effects (a counter, a hook
    of yours) happen.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: it is on another device than the CPU or compiled, the loss is not a scalar with a gradient, the
            optimizer holds other parameters, or `rounds` is not a positive whole number.
    """
    if type(rounds) is not int or rounds < 1:
        raise ValueError(f"expected rounds to be a positive whole number, got {rounds!r}")
    with _steps(model, example_input, loss_fn, optimizer, data) as step:
        steps = [step, *([_faster(step, example_input)] if dense and has_dense_baseline(model) else [])]
        _warm_up(steps)
        measured = _measure(steps, rounds)
        found = [Variant(s.name, *_seconds_and_parts(*measured[s.name]), memory_of(s)) for s in steps]
    batch = next((x.shape[0] for x in tensors(example_input) if x.dim()), 0)
    return StepProfile(found[0], found[1] if len(found) > 1 else None, batch, torch.get_num_threads(), rounds)


def memory(
    model: nn.Module,
    example_input: Any,
    loss_fn: Callable[[Any], Tensor] | None = None,
    optimizer: Optimizer | None = None,
) -> Memory:
    """The bytes of one training step: what it holds by purpose, what the forward keeps by layer, and the peak.

    Measured at torch's CPU allocator while a step is taken on a copy; arguments and errors are those of `profile`.
    """
    with _steps(model, example_input, loss_fn, optimizer, None) as step:
        _warm_up([step])
        return memory_of(step)


@contextmanager
def _steps(
    model: nn.Module,
    example_input: Any,
    loss_fn: Callable[[Any], Tensor] | None,
    optimizer: Optimizer | None,
    data: Callable[[], Any] | None,
) -> Iterator[Step]:
    """The step to look into; torch's random state is restored afterwards."""
    _check(model, optimizer)
    with random_state_restored(), torch.enable_grad():
        yield step_of(model, optimizer, data or (lambda: example_input), _checked_loss(loss_fn or _mean_square))


def _check(model: nn.Module, optimizer: Optimizer | None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(model).__name__}, try the model itself")
    if "_orig_mod" in model._modules:  # torch._dynamo.OptimizedModule, whose import takes seconds
        raise ValueError("expected a model as it was before torch.compile, got a compiled one, try the model itself")
    devices = {p.device.type for p in model.parameters()} - {"cpu"}
    if devices:
        raise ValueError(f"expected a model on the CPU, got one on {', '.join(devices)}, try torch.profiler there")
    if optimizer is not None:
        own = {id(p) for p in model.parameters()}
        if any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                "expected the model's own optimizer, got one with other parameters, try building it after sparsify"
            )


def _mean_square(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(f"expected the model to return a tensor, got {type(output).__name__}, try passing loss_fn")
    return output.square().mean()


def _checked_loss(loss_fn: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    def checked(output: Any) -> Tensor:
        loss = loss_fn(output)
        if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
            what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            what += "" if getattr(loss, "requires_grad", True) else " that has no gradient"
            raise ValueError(f"expected loss_fn to return a scalar with a gradient, got {what}, try .mean() of it")
        return loss

    return checked


def _faster(step: Step, example_input: Any) -> Step:
    """The dense baseline in the faster memory format."""
    if not takes_images(example_input):
        return dense_step(step)
    formats = {each: dense_step(step, each) for each in (CONTIGUOUS, CHANNELS_LAST)}
    seconds = timing.on_cpu(formats, WARM_UPS, warmup=WARM_UPS)
    return formats[min(formats, key=lambda each: min(seconds[each]))]


def _warm_up(steps: Sequence[Step]) -> None:
    for _ in range(WARM_UPS):
        for step in steps:
            step()


def _traced(step: Step) -> Timeline:
    with clock.measure() as kernels:
        timeline = Timeline(kernels)
        trace = Trace(timeline)
        with trace.of(step.model):
            step(trace.phase)
    return timeline


def _measure(steps: Sequence[Step], rounds: int) -> dict[str, tuple[list[float], list[Timeline]]]:
    """Every step, plain and traced, all taking turns."""
    found: dict[str, tuple[list[float], list[Timeline]]] = {step.name: ([], []) for step in steps}
    with timing.no_collection():
        for _ in range(rounds):
            for step in steps:
                plain, traced = found[step.name]
                plain.append(timing.seconds_of(step))
                traced.append(_traced(step))
    return found


def _seconds_and_parts(plain: list[float], traced: list[Timeline]) -> tuple[float, tuple[Part, ...]]:
    """Medians of the step and, without what tracing cost, of its parts."""
    whole = median(plain)
    buckets = dict.fromkeys(bucket for line in traced for bucket in line.seconds)
    seconds = {bucket: median(line.seconds.get(bucket, 0.0) for line in traced) for bucket in buckets}
    stops = {bucket: median(line.stops[bucket] for line in traced) for bucket in buckets}
    return whole, parts_of(without_overhead(seconds, stops, whole))
