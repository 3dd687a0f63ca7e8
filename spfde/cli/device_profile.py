"""`spfde bench --device-profile`: what a device is, draws and takes, as a file for `spfde plan` and a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from spfde._files import check_writable
from spfde.bench.device import fill
from spfde.bench.workload import workload
from spfde.energy.cost import TrainingCost
from spfde.energy.meter import Meter
from spfde.train.device import Device
from spfde.train.energy import ROUNDS, SECONDS, Case, Plan, measure
from spfde.tuning.device_profile import DeviceProfile
from spfde.tuning.profile_page import markdown, stem
from spfde.tuning.this_device import gpu_uuid, this_device
from spfde.tuning.timing import TimeLimit

MODEL, BATCHES, SPARSITY = "resnet32", (1, 8, 32), 0.9

Say = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """The training that is measured: windows of so many seconds, 0 for none."""

    window: float = SECONDS
    model: str = MODEL
    batches: Sequence[int] = BATCHES
    sparsity: float = SPARSITY
    pattern: str = "unstructured"
    dtype: str = "float32"

    @property
    def cases(self) -> list[Case]:
        """Dense beside sparse, by batch."""
        return [Case(self.model, n, share, self.pattern) for n in self.batches for share in (0.0, self.sparsity)]


def file_of(target: Path, kind: str) -> Path:
    """The profile's file: the target itself, or in a folder one that is named after the device.

    Raises:
        OSError: nothing can be written there.
    """
    path = target / f"{stem(this_device(kind))}.json" if target.is_dir() else target
    check_writable(path)
    return path


def write_profile(
    target: Path, kind: str, command: str, training: Training, seconds: float, repeats: int, clock: str, say: Say
) -> DeviceProfile:
    """Fills the profile with what it lacks, training and what it draws first, then layers and ops; writes its page.

    Raises:
        OSError: the file cannot be written.
        ValueError: it is of another device.
    """
    path = file_of(target, kind)
    start = partial(fill, path, kind, command, repeats=repeats, clock=clock, say=say)
    try:
        if training.window:
            _take_windows(partial(start, TimeLimit(0), layers=(), networks=()), path, kind, training, say)
        made = start(TimeLimit(seconds))
    finally:  # also when it is stopped: what is done counts
        if path.exists():
            path.with_suffix(".md").write_text(
                markdown(fill(path, kind, command, TimeLimit(0), layers=(), networks=()))
            )
    say(f"device profile: {path}, {len(made.layers)} measurements of layers, {len(made.ops)} of other ops")
    say(f"page: {path.with_suffix('.md')}")
    return made


def _take_windows(begin: Callable[[], DeviceProfile], path: Path, kind: str, training: Training, say: Say) -> None:
    """Windows of the cases that the profile lacks, behind one of the idle machine."""
    with Meter.of_machine(gpu=gpu_uuid() if kind == "cuda" else "") as meter:
        say(f"idle, {training.window:g} s")
        idle, state = meter.idle(training.window)  # before anything has run on the device
        profile = begin()
        known = {_key(cost): cost for cost in profile.training}
        cases = [case for case in training.cases if len(_steady(known.get(_case_key(case, training.dtype)))) < ROUNDS]
        if not cases:
            return
        if meter.rails.why_not:
            say(f"energy not available: {meter.rails.why_not}")
        each = training.window * ROUNDS * len(cases)
        say(f"training in windows of {training.window:g} s, dense and sparse in turn: at least {each:.0f} s")
        costs = measure(
            partial(workload, training.model), cases, Device.of(kind, training.dtype), meter,
            Plan(training.window), state.memory_left, say,
        )  # fmt: skip
        for cost in costs:
            known[_key(cost)] = cost
            watts = profile.idle_watts if idle.watts is None else idle.watts
            profile = replace(profile, idle_watts=watts, training=tuple(known.values()))
            profile.save(path)


def _key(cost: TrainingCost) -> tuple[object, ...]:
    return cost.network, cost.batch, cost.sparsity, cost.pattern, cost.dtype


def _case_key(case: Case, dtype: str) -> tuple[object, ...]:
    return case.network, case.batch, case.sparsity, case.pattern if case.sparsity else "dense", dtype


def _steady(cost: TrainingCost | None) -> Sequence[object]:
    return () if cost is None else cost.steady
