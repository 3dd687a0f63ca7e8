"""What training costs on this machine: windows of steps, dense and sparse in turn, with what a meter saw of each."""

from __future__ import annotations

import copy
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spfde._modules import map_tensors, run
from spfde.bench.workload import Workload
from spfde.convert.sparsify import sparsify
from spfde.energy.cost import TrainingCost, Window
from spfde.energy.meter import Meter
from spfde.nn import SparseLayer
from spfde.train.device import FORMATS, Device, Layout

SECONDS, ROUNDS = 30.0, 2
WARM_UP = 0.1  # of a window's seconds, and at least one step: clocks rise, kernels are chosen and compiled
REPEATS = 2  # times that a window is taken again because something slowed the machine
TRIAL = 0.2  # seconds in which the two memory formats are compared
PAUSE = 1 / 3  # of a window's seconds, to cool down before it is taken again

Problem = Callable[[int], Workload]  # a network with a batch of so many samples, made anew


@dataclass(frozen=True)
class Case:
    """Training steps to take. sparsity: 0 for the dense network."""

    network: str
    batch: int
    sparsity: float
    pattern: str

    def describe(self) -> str:
        """Say it in words."""
        weights = f"{self.pattern} {100 * self.sparsity:g}%" if self.sparsity else "dense"
        return f"{self.network}, batch {self.batch}, {weights}"


@dataclass(frozen=True)
class Plan:
    """How they are taken: seconds of a window, windows of each case, and repeats of one that was slowed down."""

    seconds: float = SECONDS
    rounds: int = ROUNDS
    repeats: int = REPEATS


def measure(
    problem: Problem,
    cases: Sequence[Case],
    device: Device,
    meter: Meter,
    plan: Plan = Plan(),
    idle_memory: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[TrainingCost]:
    """Takes windows of every case in turn, plan.rounds times, and yields its cost so far behind each.

    A case's network is made for each of its windows and dropped behind it, so that memory is its own. idle_memory:
    bytes that were available before anything ran. A case that fails is told and left out.
    """
    found: dict[Case, TrainingCost] = {}
    failed: set[Case] = set()
    for case in [case for _ in range(plan.rounds) for case in cases]:
        if case in failed:
            continue
        try:
            cost = _windows(problem, case, device, meter, plan, idle_memory, say)
        except (RuntimeError, ValueError, MemoryError) as error:
            failed.add(case)
            say(f"not measured: {case.describe()}: {' '.join(str(error).split())[:200]}")
            continue
        before = found.get(case)
        found[case] = cost if before is None else _joined(before, cost)
        yield found[case]


def _joined(first: TrainingCost, second: TrainingCost) -> TrainingCost:
    shared = [cost.shared for cost in (first, second) if cost.shared is not None]
    return replace(
        second,
        windows=(*first.windows, *second.windows),
        peak=max(first.peak, second.peak),
        shared=max(shared, default=None),
    )


def _windows(
    problem: Problem, case: Case, device: Device, meter: Meter, plan: Plan, idle_memory: float | None,
    say: Callable[[str], None],
) -> TrainingCost:  # fmt: skip
    """One window that counts, behind those that something slowed down."""
    model, step = training_step(problem, case, device)
    device.forget_peak()
    taken: list[Window] = []
    while not taken or (taken[-1].state.slowed and len(taken) <= plan.repeats):
        if taken:
            say(f"again: {taken[-1].state.slowed[0]}")
            time.sleep(PAUSE * plan.seconds)
        taken.append(window(step, device, meter, plan.seconds))
    left = [taking.state.memory_left for taking in taken if taking.state.memory_left is not None]
    layers = [module for module in model.modules() if isinstance(module, SparseLayer)]
    cost = TrainingCost(
        case.network,
        case.batch,
        case.sparsity,
        case.pattern if case.sparsity else "dense",
        device.precision,
        dict(Counter(layer.kernel for layer in layers)),
        tuple(taken),
        device.peak_bytes(),
        idle_memory - min(left) if left and idle_memory is not None else None,
    )
    del model, step, layers
    gc.collect()
    if not device.is_cpu:
        torch.cuda.empty_cache()
    return cost


def training_step(problem: Problem, case: Case, device: Device) -> tuple[nn.Module, Callable[[], None]]:
    """A network, and a step that trains it by SGD with momentum on one random batch: always the same.

    In the faster of two memory formats, where its input is a batch of images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        work = problem(case.batch)
        model = sparsify(work.model, case.sparsity, pattern=case.pattern) if case.sparsity else work.model
    model, inputs = model.to(device.where).train(), map_tensors(device.put, work.inputs)
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        return model, _step(model, inputs, work.loss_fn, device)
    tried = []
    for layout in (Layout(name, "") for name in FORMATS):
        twin = layout.model(copy.deepcopy(model))
        step = _step(twin, layout.images(inputs), work.loss_fn, device)
        _steps(step, device, 0)
        start = time.monotonic()
        count = _steps(step, device, TRIAL)
        tried.append(((time.monotonic() - start) / count, layout))
        del twin, step
    _, best = min(tried, key=lambda each: each[0])
    model = best.model(model)
    return model, _step(model, best.images(inputs), work.loss_fn, device)


def _step(model: nn.Module, inputs: Any, loss_fn: Callable[[Any], Tensor], device: Device) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    scaler = device.scaler()

    def step() -> None:
        optimizer.zero_grad()
        with device.autocast():
            loss = loss_fn(run(model, inputs))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def window(step: Callable[[], None], device: Device, meter: Meter, seconds: float) -> Window:
    """Steps for so many seconds, behind some that do not count."""
    _steps(step, device, WARM_UP * seconds)
    start = time.monotonic()
    count = _steps(step, device, seconds)
    end = time.monotonic()
    drawn, seen = meter.span(start, end)
    return Window(count, drawn.seconds, drawn.rails, drawn.total, drawn.why, seen)


def _steps(step: Callable[[], None], device: Device, seconds: float) -> int:
    limit, count = time.monotonic() + seconds, 0
    while count == 0 or time.monotonic() < limit:
        step()
        count += 1
    device.wait()
    return count
