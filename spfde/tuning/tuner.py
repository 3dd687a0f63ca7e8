"""Fills the table of a GPU: the fastest launches, and the density up to which they beat the masked dense product.

`clock` is all that needs a GPU: it times what it is given, or says why that cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from spfde.kernels.dispatch.problem import STEPS, Problem, bucket_of
from spfde.kernels.triton.candidates import product_candidates, weight_grad_candidates
from spfde.kernels.triton.config import SIZES, Config, Gpu
from spfde.kernels.triton.index import triton_index
from spfde.kernels.triton.table import OPS, VERSIONS, GpuTable, Launches, Measured, key_of, trying
from spfde.nn import SparseLayer
from spfde.sparse.pattern import Pattern
from spfde.tuning import timing
from spfde.tuning.layer import Call, Layer, backward, forward, precision, step

TOLERANCE = 2e-2  # of a result's norm: a wrong index is far above it
BUCKETS = range(0, 7 * STEPS + 1, 2)  # densities that are tried: from 1 down to 0.8%, a sixth apart


class Way(NamedTuple):
    """What is timed: one op with a launch, or a whole step ("step") with a kernel, of a layer at a density."""

    part: str
    how: Config | str
    density: float


Clock = Callable[[Mapping[Way, Call]], Mapping[Way, float | str]]


class Refused(Exception):
    """A layer cannot be measured; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """The table, what could not be measured with its reason (layers and single launches), and what was not reached."""

    table: GpuTable
    refused: Mapping[str, str]
    unfinished: Sequence[str]


def gpu_clock(rounds: int) -> Clock:
    """Median seconds on the GPU of what runs and computes the same as the first that does, in turn."""

    def clock(calls: Mapping[Way, Call]) -> Mapping[Way, float | str]:
        refused: dict[Way, str] = {}
        first = None
        for way, call in calls.items():
            try:
                result = call()
            except Exception as error:  # compiler, assembler and driver each have their own
                refused[way] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                continue
            first = result if first is None else first
            if not same(result, first):
                refused[way] = "another result than the first"
        able = {way: call for way, call in calls.items() if way not in refused}
        return {**timing.medians(able, rounds, "cuda"), **refused}

    return clock


def same(one: Tensor | Sequence[Tensor], other: Tensor | Sequence[Tensor]) -> bool:
    """Whether two results agree but for rounding."""
    pairs = zip(*(((r,) if isinstance(r, Tensor) else r) for r in (one, other)), strict=True)
    return all(float((a.float() - b.float()).norm()) <= TOLERANCE * float(b.float().norm()) for a, b in pairs)


def problem_of(layer: Layer, bucket: int = 0) -> Problem:
    """What dispatch sees of a layer in blocks at a density."""
    size = layer.window.output_size(layer.size, layer.size)
    return Problem(layer.batch, layer.shape, bucket, Pattern.parse(layer.pattern).numbers, layer.window, size)


def check_layers(layers: Sequence[Layer]) -> None:
    """Raises ValueError if a layer has no launches to tune."""
    for layer in layers:
        pattern = Pattern.parse(layer.pattern)
        if pattern.kind != "block" or not {*pattern.numbers} <= {*SIZES}:
            raise ValueError(
                f"expected a pattern block:RxC with R and C of {', '.join(map(str, SIZES))} to tune, got "
                f"{layer.pattern!r}, try --pattern block:64x64"
            )
        if layer.dtype == "float32":
            raise ValueError("expected tf32, float16 or bfloat16 to tune, got float32, try --dtype tf32")


def fill(
    path: Path,
    layers: Sequence[Layer],
    gpu: Gpu,
    about: Mapping[str, str],
    clock: Clock,
    budget: timing.Budget,
    say: Callable[[str], None] = lambda line: None,
    device: str = "cuda",
) -> Outcome:
    """Measures the layers that the table in `path` does not hold while there is time, and writes it after each.

    A layer is begun if as much time is left as the longest one before it took.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it is no table, of another GPU, or made with other versions; or a layer has nothing to tune.
    """
    check_layers(layers)
    table = GpuTable.load(path) if path.exists() else GpuTable(gpu.name, about)
    _check_same(table, gpu, about, path)
    refused: dict[str, str] = {}
    longest = 0.0
    for index, layer in enumerate(layers):
        key, before = key_of(gpu, problem_of(layer), layer.kind), budget.left
        if key in table.entries:
            say(f"{layer}: known")
            continue
        if not budget.allows(longest):
            return Outcome(table, refused, [str(left) for left in layers[index:]])
        try:
            measured, without = measure(layer, gpu, clock, device)
        except Refused as reason:
            refused[str(layer)] = str(reason)
            say(f"{layer}: {reason}")
        else:
            refused.update({f"{layer} {name}": reason for name, reason in without.items()})
            table = table.with_entry(key, measured)
            table.save(path)
            say(f"{layer}: break-even at density {measured.break_even:.2f}")
        longest = max(longest, before - budget.left)
    return Outcome(table, refused, ())


def measure(layer: Layer, gpu: Gpu, clock: Clock, device: str = "cuda") -> tuple[Measured, dict[str, str]]:
    """The fastest launches and the break-even density of a layer, and why other launches could not be timed.

    Launches are timed at the densities that the search for the break-even visits, where block rows that share a program
    are not the same as at one before.

    Raises:
        Refused: no launch of a kernel runs, or the dense product does not.
    """
    launches: dict[str, dict[int, Config]] = {op: {} for op in OPS}
    refused: dict[str, str] = {}
    densities: dict[int, float] = {}  # of the buckets tried, as a layer can have them

    def wins(bucket: int) -> bool:
        sparse, x = layer.sparse(2 ** (-bucket / STEPS), device), layer.input(device, last=True)
        sparse.kernel = "triton"
        stored = bucket_of(sparse.plan.multiplied, prod(layer.shape))
        density = densities[bucket] = problem_of(layer, stored).density
        fastest = {}
        for op, (outputs, candidates) in _programs(layer, sparse, gpu).items():
            if outputs not in launches[op]:
                launches[op][outputs], without = _fastest(op, candidates, density, sparse, x, clock)
                refused.update(without)
            fastest[op] = launches[op][outputs]
        return _race(fastest, density, sparse, x, clock)

    with precision(layer.dtype):
        first = first_win(wins)
    measured = Measured(*(_sorted(launches[op]) for op in OPS), 0.0 if first is None else densities[first])
    return measured, refused


def first_win(wins: Callable[[int], bool]) -> int | None:
    """The lowest of BUCKETS at which the kernels win, if they do so at every higher one; None: at none."""
    loses, at = -1, len(BUCKETS)
    while at - loses > 1:
        middle = (loses + at) // 2
        loses, at = (loses, middle) if wins(BUCKETS[middle]) else (middle, at)
    return BUCKETS[at] if at < len(BUCKETS) else None


def _programs(layer: Layer, sparse: SparseLayer, gpu: Gpu) -> dict[str, tuple[int, list[Config]]]:
    """Outputs of a program of every op, and the launches to time."""
    (height, width), op = sparse.plan.block, "linear" if sparse.window.linear else "conv2d"
    index = triton_index(sparse.plan)
    together, together_back = index.tiles.together, index.t_tiles.together
    outputs, back = height * together, width * together_back
    kind, positions = layer.kind, problem_of(layer).positions
    return {
        "forward": (outputs, product_candidates(gpu, outputs, width, together, kind, positions, op)),
        "input_grad": (back, product_candidates(gpu, back, height, together_back, kind, positions, op)),
        "weight_grad": (outputs, weight_grad_candidates(gpu, outputs, width, kind)),
    }


def _fastest(
    op: str, candidates: Sequence[Config], density: float, sparse: SparseLayer, x: Tensor, clock: Clock
) -> tuple[Config, dict[str, str]]:
    call = _op(op, sparse, x)
    found = clock({Way(op, how, density): _with({op: how}, call) for how in candidates})
    seconds = {way.how: time for way, time in found.items() if not isinstance(time, str)}
    refused = {f"{op} {tuple(way.how)}": time for way, time in found.items() if isinstance(time, str)}
    if not seconds:
        raise Refused(f"no launch of {op} runs: {next(iter(refused.values()))}")
    return min(seconds, key=seconds.__getitem__), refused


def _race(launches: Mapping[str, Config], density: float, sparse: SparseLayer, x: Tensor, clock: Clock) -> bool:
    """Whether forward + backward of the kernels is faster than that of the masked dense product."""
    masked = deepcopy(sparse)
    masked.kernel = "dense"
    calls = {}
    for layer in (sparse, masked):
        given = x.detach().requires_grad_()
        calls[layer] = step(layer, given, [given, *layer.parameters()])
    ours, dense = Way("step", "triton", density), Way("step", "dense", density)
    found = clock({ours: _with(launches, calls[sparse]), dense: calls[masked]})
    for way in (ours, dense):
        if isinstance(found[way], str):
            raise Refused(f"a step of kernel {way.how!r} does not run: {found[way]}")
    return found[ours] < found[dense]


def _op(op: str, sparse: SparseLayer, x: Tensor) -> Call:
    """One kernel alone."""
    if op == "forward":
        return forward(sparse, x)
    if op == "weight_grad":
        return backward(sparse, x, [sparse.values])
    frozen, given = deepcopy(sparse).requires_grad_(False), x.detach().requires_grad_()
    return backward(frozen, given, [given])


def _with(launches: Mapping[str, Config], call: Call) -> Call:
    def run() -> object:
        with trying(launches):
            return call()

    return run


def _sorted(launches: Launches) -> Launches:
    return dict(sorted(launches.items()))


def _check_same(table: GpuTable, gpu: Gpu, about: Mapping[str, str], path: Path) -> None:
    there, here = ({"gpu": name, **{v: facts[v] for v in VERSIONS}} for name, facts in (
        (table.gpu, table.about), (gpu.name, about),
    ))  # fmt: skip
    if differs := [name for name in here if there[name] != here[name]]:
        got, want = (", ".join(f"{name} {facts[name]}" for name in differs) for facts in (there, here))
        raise ValueError(f"expected {path} to be measured with {want}, got {got}, try another file")
