"""Times groups of variants, each part of all of them in turn; what fails is a row, and the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from math import inf

import torch

from spfde._names import unknown
from spfde.bench.layer_variants import of_layer
from spfde.bench.network_variants import of_network
from spfde.bench.record import Record, Row
from spfde.bench.subject import Layer, Network
from spfde.bench.variant import Maker, Variant
from spfde.tuning import timing
from spfde.tuning.layer import DTYPES, Timed, precision

CALLS_AHEAD = 2  # of a call before it is timed: allocators and libraries settle


@dataclass(frozen=True)
class Group:
    """A subject at several sparsities of a pattern: what is timed in turn. every: all kernels of a layer.

    clock: of `timing.CLOCKS`; processor time is that of one thread.

    Raises:
        ValueError: a field does not fit.
    """

    subject: Layer | Network
    sparsities: tuple[float, ...]
    pattern: str = "unstructured"
    dtype: str = "float32"
    threads: int = 1
    device: str = "cpu"
    compiled: bool = False
    every: bool = False
    clock: str = "wall"

    def __post_init__(self) -> None:
        if self.clock not in timing.CLOCKS:
            raise unknown("a clock", self.clock, timing.CLOCKS)
        if self.clock != "wall" and (self.device != "cpu" or self.threads > 1):
            raise ValueError(
                f"expected --clock {self.clock} of one thread on a CPU, got {self.threads} on {self.device}, "
                "try --threads 1 --device cpu"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"expected dtype to be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.dtype == "tf32" and self.device == "cpu":
            raise ValueError("expected dtype float32, float16 or bfloat16 on a CPU, got tf32, try --dtype float32")
        if any(not 0 < each < 1 for each in self.sparsities):
            raise ValueError(f"expected sparsities between 0 and 1, got {list(self.sparsities)}, try 0.9")

    def __str__(self) -> str:
        return f"{self.subject}, {self.pattern}, {self.dtype}, {self.threads} threads"

    def makers(self) -> Iterable[Maker]:
        """What makes its variants."""
        how = self.pattern, self.sparsities, self.dtype, self.device, self.compiled
        if isinstance(self.subject, Layer):
            return of_layer(self.subject, *how, self.every)
        return of_network(self.subject, *how, timing.CLOCKS[self.clock])


def check_device(device: str) -> None:
    """Raises ValueError unless torch can compute there."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"expected device cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device, got none, try --device cpu, or spfde env to see what torch finds")


def run(
    record: Record,
    groups: Sequence[Group],
    save: Callable[[Record], object] = lambda record: None,
    say: Callable[[int, Group], object] = lambda index, group: None,
    passes: int = 1,
    limit: timing.TimeLimit | None = None,
) -> Record:
    """Times the groups and saves what there is after each of them, so that an interruption loses one group.

    passes: how many times over, everything made anew: then memory lies elsewhere, and a busy moment of the machine
    reaches few of a row's rounds. limit: a further pass is begun only where it is expected to end in time.
    say: told a group's number and the group before it is timed.
    """
    limit = limit or timing.TimeLimit(inf)
    found: list[list[Row]] = [[] for _ in groups]
    save(record)
    start = limit.clock()
    for number in range(passes):
        if number and not limit.allows((limit.clock() - start) / number):
            break
        for index, group in enumerate(groups):
            say(index, group)
            with _threads(group), precision(group.dtype):
                rows = measure(group, record.repeats)
            found[index] = joined(found[index], rows) if number else rows
            record = replace(record, rows=tuple(chain.from_iterable(found)))
            save(record)
        record = replace(record, passes=number + 1)
    record = replace(record, finished=True)
    save(record)
    return record


def joined(rows: Sequence[Row], more: Sequence[Row]) -> list[Row]:
    """The rows of a group with the rounds of another pass; a part that ran in one of them alone keeps those it has."""
    uneven = {part for old, new in zip(rows, more, strict=True) for part in old.seconds.keys() ^ new.seconds.keys()}
    return [
        replace(
            old,
            seconds={
                part: times if part in uneven else times + new.seconds[part] for part, times in old.seconds.items()
            },
        )
        for old, new in zip(rows, more, strict=True)
    ]


def measure(group: Group, repeats: int) -> list[Row]:
    """The rows of a group."""
    made: dict[int, Variant] = {}
    rows: list[Row] = []
    absent: list[dict[str, str]] = []
    subject = group.subject
    for name, pattern, sparsity, make in group.makers():
        row = Row(
            str(subject), subject.kind, name, group.dtype, group.threads, group.device, pattern, sparsity, 1 - sparsity,
            subject.of, subject.count, flops=subject.flops,
        )  # fmt: skip
        rows.append(row)
        absent.append({})
        try:
            variant = make()
            for _ in range(CALLS_AHEAD):
                for call in variant.calls.values():
                    call()
            made[len(rows) - 1] = variant
        except Exception as error:  # memory, compiler, driver: each has its own, and the other rows are still wanted
            absent[-1]["all"] = _why(error)
    seconds: list[dict[str, tuple[float, ...]]] = [{} for _ in rows]
    for part in dict.fromkeys(part for variant in made.values() for part in variant.calls):
        calls = {at: variant.calls[part] for at, variant in made.items() if part in variant.calls}
        found, failed = _interleaved(calls, repeats, group)
        for at, times in found.items():
            seconds[at][part] = tuple(times)
            if part == "step":
                seconds[at].update({name: tuple(noted[-repeats:]) for name, noted in made[at].phases.items()})
        for at, why in failed.items():
            absent[at][part] = why
    return [_row(row, made.get(at), seconds[at], absent[at]) for at, row in enumerate(rows)]


def _row(row: Row, variant: Variant | None, seconds: Mapping[str, tuple[float, ...]], absent: Mapping[str, str]) -> Row:
    if variant is None:
        return replace(row, absent=absent)
    try:
        peak = variant.peak()
    except Exception as error:  # it is measured in a step of its own
        peak, absent = None, {**absent, "peak": _why(error)}
    return replace(
        row, density=variant.density, kernel=variant.kernel, reason=variant.reason, seconds=seconds, size=variant.size,
        peak=peak, absent={**variant.absent, **absent},
    )  # fmt: skip


def _interleaved(calls: Mapping[int, Timed], repeats: int, group: Group) -> tuple[timing.Times[int], Mapping[int, str]]:
    """Seconds of the calls in turn; of one that fails why, and the others begin anew."""
    left, failed = dict(calls), {}
    clock = timing.cold if isinstance(group.subject, Layer) else timing.interleaved
    while left:
        running: list[int] = []

        def noted(at: int, call: Timed, running: list[int] = running) -> Timed:
            def run() -> object:
                running[:] = [at]
                return call()

            return run

        try:
            timed = {at: noted(at, call) for at, call in left.items()}
            return clock(timed, repeats, group.device, timing.CLOCKS[group.clock]), failed
        except Exception as error:
            if not running:
                raise
            failed[running[0]] = _why(error)
            del left[running[0]]
    return {}, failed


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def _threads(group: Group) -> Iterator[None]:
    before = torch.get_num_threads()
    if group.device == "cpu":
        torch.set_num_threads(group.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
