"""The tuner: seconds of every kernel of a layer, each with its fastest launches where it has several.

A launch is one more candidate: those of one op are timed first, then the whole step of each kernel with the best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from spfde.kernels import conv2d, registry, spmm
from spfde.kernels.dispatch.measurement import KernelMeasurement, Launch, family_of
from spfde.kernels.dispatch.table import Table
from spfde.kernels.gpu import Config, Gpu
from spfde.kernels.problem import Problem
from spfde.kernels.triton.tuned import trying
from spfde.nn import SparseLayer
from spfde.sparse.plan import Plan
from spfde.tuning import timing
from spfde.tuning.layer import Timed, backward, forward, step

TOLERANCE = 2e-2  # of a result's norm: a wrong index is far above it


class Case(NamedTuple):
    """A layer's op as it is run: its problem and input, and the kernels that can run it."""

    problem: Problem
    layer: SparseLayer
    shape: torch.Size
    dtype: torch.dtype
    memory: torch.memory_format
    kernels: tuple[str, ...]


class Trial(NamedTuple):
    """What is timed: an op of a kernel with a launch, or its whole forward + backward ("step"), at a density."""

    op: str
    kernel: str
    launch: Config | None
    density: float


Clock = Callable[[Mapping[Trial, Timed]], Mapping[Trial, float | str]]


class Refused(RuntimeError):
    """A layer cannot be measured; the message says why."""


def plain_clock(rounds: int, device: str) -> Clock:
    """Median seconds of every trial, in turn; an error of a kernel is its caller's."""
    return lambda calls: timing.medians(calls, rounds, device)


def checking_clock(rounds: int, device: str) -> Clock:
    """Median seconds of what runs and computes the same as the first that does, in turn; why, of what does not."""

    def clock(calls: Mapping[Trial, Timed]) -> Mapping[Trial, float | str]:
        refused: dict[Trial, str] = {}
        first = None
        for trial, call in calls.items():
            try:
                result = call()
            except Exception as error:  # compiler, assembler and driver each have their own
                refused[trial] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                continue
            first = result if first is None else first
            if not same(result, first):
                refused[trial] = "another result than the first"
        able = {trial: call for trial, call in calls.items() if trial not in refused}
        return {**timing.medians(able, rounds, device), **refused}

    return clock


def same(one: Tensor | Sequence[Tensor], other: Tensor | Sequence[Tensor]) -> bool:
    """Whether two results agree but for rounding."""
    pairs = zip(*(((r,) if isinstance(r, Tensor) else r) for r in (one, other)), strict=True)
    return all(float((a.float() - b.float()).norm()) <= TOLERANCE * float(b.float().norm()) for a, b in pairs)


def measure(
    case: Case, clock: Clock, gpu: Gpu | None = None, known: Table | None = None
) -> tuple[KernelMeasurement, dict[str, str]]:
    """Seconds by kernel and the fastest launches, and why other launches could not be timed.

    gpu: for which launches are made; None: no kernel has a choice of them. known: a table whose launches for this
    family are taken as they are.

    Raises:
        Refused: a kernel does not run.
    """
    device = case.layer.values.device
    tuned: dict[str, list[Launch]] = {}
    refused: dict[str, str] = {}
    steps: dict[Trial, Timed] = {}
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.cuda.device(device) if device.type == "cuda" else nullcontext(),
    ):
        for kernel in case.kernels:
            plan = replace(case.layer.plan, _dense=None)  # no scratch stays with the layer
            calls = ops_of(case, kernel, plan)
            programs = registry.get(kernel).launches(plan, case.problem, case.dtype, gpu) if gpu else {}
            tuned[kernel], without = _launches(case, kernel, programs, calls, clock, known)
            refused.update(without)
            best = {launch.op: launch.config for launch in tuned[kernel]}
            steps[Trial("step", kernel, None, case.problem.density)] = _with(best, calls["step"])
        seconds = clock(steps)
    for trial, time in seconds.items():
        if isinstance(time, str):
            raise Refused(f"a step of kernel {trial.kernel!r} does not run: {time}")
    launches = tuple(launch for each in tuned.values() for launch in each)
    return KernelMeasurement(case.problem, tuple((t.kernel, seconds[t]) for t in steps), launches), refused


def _launches(
    case: Case,
    kernel: str,
    programs: Mapping[str, registry.Programs],
    calls: Mapping[str, Timed],
    clock: Clock,
    known: Table | None,
) -> tuple[list[Launch], dict[str, str]]:
    """The fastest launch of every op of a kernel, and why others could not be timed."""
    found, refused, like = [], {}, family_of(case.problem)
    for op, (outputs, configs) in programs.items():
        config = known and known.launch(op, like, outputs)
        if config is None:
            trials = {Trial(op, kernel, each, case.problem.density): _with({op: each}, calls[op]) for each in configs}
            config, without = _fastest(op, clock(trials))
            refused.update(without)
        found.append(Launch(op, outputs, config))
    return found, refused


def ops_of(case: Case, kernel: str, plan: Plan) -> dict[str, Timed]:
    """The ops of a layer alone, and "step", all of them, on random input: no gradient reaches the layer itself."""
    layer, device, dtype = case.layer, case.layer.values.device, case.dtype
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(case.shape, generator=generator).to(device, dtype)
    x = x.contiguous(memory_format=case.memory) if x.dim() == 4 else x
    values = layer.values.detach().to(dtype)
    fits = layer.bias is not None and layer.bias.numel() == plan.rows  # of a transposed convolution it does not
    bias = layer.bias.detach().to(dtype) if fits else None

    def run(values: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        if len(plan.shape) == 4:
            return lambda x: conv2d(x, values, plan, bias, kernel)
        return lambda x: spmm(x, values, plan, bias, kernel)

    wanted, trained = x.clone(memory_format=torch.preserve_format).requires_grad_(), values.clone().requires_grad_()
    trained_bias = None if bias is None else bias.clone().requires_grad_()
    inputs = [wanted, trained] if trained_bias is None else [wanted, trained, trained_bias]
    return {
        "forward": forward(run(values, bias), x),
        "input_grad": backward(run(values, bias), wanted, [wanted]),
        "weight_grad": backward(run(trained, bias), x, [trained]),
        "step": step(run(trained, trained_bias), wanted, inputs),
    }


def _fastest(op: str, found: Mapping[Trial, float | str]) -> tuple[Config, dict[str, str]]:
    seconds = {trial.launch: time for trial, time in found.items() if not isinstance(time, str)}
    refused = {f"{op} {tuple(trial.launch)}": time for trial, time in found.items() if isinstance(time, str)}
    if not seconds:
        raise Refused(f"no launch of {op} runs: {next(iter(refused.values()))}")
    return min(seconds, key=seconds.__getitem__), refused


def _with(launches: Mapping[str, Config], call: Timed) -> Timed:
    if not launches:
        return call

    def run() -> object:
        with trying(launches):
            return call()

    return run
