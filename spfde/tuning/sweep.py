"""Fills a table with layers at the densities around their break-even, on a CPU or a GPU: `spfde bench --tune`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path

import torch

from spfde._machine import Machine
from spfde.kernels.dispatch.measurement import KernelMeasurement
from spfde.kernels.dispatch.table import Table
from spfde.kernels.gpu import Gpu, gpu_here
from spfde.kernels.problem import STEPS, bucket_of
from spfde.kernels.triton import why_not
from spfde.kernels.triton.config import SIZES
from spfde.sparse.pattern import Pattern
from spfde.tuning.layer import LayerSpec, precision
from spfde.tuning.measure import Case, Clock, Refused, checking_clock, measure
from spfde.tuning.timing import TimeLimit

BUCKETS = range(0, 7 * STEPS + 1, 2)  # densities that are tried: from 1 down to 0.8%, a sixth apart

TOKENS, IMAGES = 16384, 64
GPU_SHAPES = (
    ((4096, 4096), TOKENS, 1, 1), ((1024, 4096), TOKENS, 1, 1), ((4096, 1024), TOKENS, 1, 1),
    ((1024, 1024), TOKENS, 1, 1), ((256, 256, 3, 3), IMAGES, 14, 1), ((512, 512, 3, 3), IMAGES, 7, 1),
    ((128, 128, 3, 3), IMAGES, 28, 1), ((256, 256, 3, 3), IMAGES, 28, 2), ((512, 512, 3, 3), IMAGES, 14, 2),
)  # fmt: skip
SIDES, PRECISIONS = (64, 128, 32, 16), ("bfloat16", "tf32", "float16")
CPU_SHAPES = (
    ((1024, 1024), 128, 1, 1), ((64, 64, 3, 3), IMAGES, 8, 1), ((256, 256, 3, 3), IMAGES, 8, 1),
    ((128, 128, 3, 3), IMAGES, 16, 1), ((32, 32, 3, 3), IMAGES, 16, 1), ((256, 64, 1, 1), IMAGES, 32, 1),
    ((16, 16, 3, 3), IMAGES, 32, 1), ((2048, 2048), 128, 1, 1),
)  # fmt: skip
PATTERNS = ("unstructured", "block:4x1")


@dataclass(frozen=True)
class Outcome:
    """The table, what could not be measured with its reason (layers and single launches), and what was not reached."""

    table: Table
    refused: dict[str, str]
    unfinished: Sequence[str]


def usual_layers(device: str) -> list[LayerSpec]:
    """Shapes of transformers and of ResNets, on a GPU in square blocks; most telling first, as a run may end early."""
    if device == "cpu":
        return [
            LayerSpec(shape, batch, size, pattern, stride=stride)
            for pattern, (shape, batch, size, stride) in product(PATTERNS, CPU_SHAPES)
        ]
    return [
        LayerSpec(shape, batch, size, f"block:{side}x{side}", dtype, stride)
        for dtype, side, (shape, batch, size, stride) in product(PRECISIONS, SIDES, GPU_SHAPES)
    ]


def file_name(machine: Machine) -> str:
    """The name of a machine's file."""
    name = machine.gpu or f"{machine.cpu} {machine.label}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json"


def tune_here(
    device: str,
    layers: Sequence[LayerSpec],
    path: Path | None,
    seconds: float,
    repeats: int,
    say: Callable[[str], None],
) -> tuple[Outcome, Path]:
    """Fills the table of a device ("cpu" or "cuda") of this process and returns where it is; see `fill`.

    Raises:
        ValueError: there is no GPU whose kernels can be timed, or what `fill` raises.
    """
    if device == "cuda":
        reason = why_not("cuda") if torch.cuda.is_available() else "no CUDA device"
        if reason:
            raise ValueError(f"expected a CUDA device and triton for --tune, got: {reason}, try --device cpu")
    machine, gpu = (Machine.of_gpu(), gpu_here()) if device == "cuda" else (Machine.of_cpu(), None)
    path = path or Path(file_name(machine))
    clock = checking_clock(repeats, device)
    return fill(path, layers, machine, gpu, clock, TimeLimit(seconds), say, device), path


def fill(
    path: Path,
    layers: Sequence[LayerSpec],
    machine: Machine,
    gpu: Gpu | None,
    clock: Clock,
    limit: TimeLimit,
    say: Callable[[str], None] = lambda line: None,
    device: str = "cuda",
) -> Outcome:
    """Measures the layers that the table in `path` does not hold while there is time, and writes it after each.

    A layer is begun if as much time is left as the longest one before it took.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it is no table, or of another machine; or a layer has nothing to tune.
    """
    check_layers(layers, on_gpu=gpu is not None)
    table = Table.load(path, allow_other_machine=True) if path.exists() else Table(machine, ())
    table.check_machine(machine, "another file")
    refused: dict[str, str] = {}
    longest = 0.0
    for index, layer in enumerate(layers):
        if table.knows(layer.problem()):
            say(f"{layer}: known")
            continue
        before = limit.left
        if not limit.allows(longest):
            return Outcome(table, refused, [str(left) for left in layers[index:]])
        try:
            entries, without = around_break_even(layer, Table(machine, ()), gpu, clock, device)
        except Refused as reason:
            refused[str(layer)] = str(reason)
            say(f"{layer}: {reason}")
        else:
            refused.update({f"{layer} {name}": reason for name, reason in without.items()})
            table = table.with_entries(entries)
            table.save(path)
            won = max((entry.density for entry in entries if entry.kernel != "dense"), default=0.0)
            say(f"{layer}: break-even at density {won:.2f}")
        longest = max(longest, before - limit.left)
    return Outcome(table, refused, ())


def check_layers(layers: Sequence[LayerSpec], on_gpu: bool) -> None:
    """Raises ValueError if a layer has no kernels to choose among."""
    for layer in layers:
        if not on_gpu:
            if layer.dtype != "float32":
                raise ValueError(f"expected dtype float32 to tune on a CPU, got {layer.dtype}, try --dtype float32")
            continue
        pattern = Pattern.parse(layer.pattern)
        if pattern.kind != "block" or not {*pattern.numbers} <= {*SIZES}:
            raise ValueError(
                f"expected a pattern block:RxC with R and C of {', '.join(map(str, SIZES))} to tune, got "
                f"{layer.pattern!r}, try --pattern block:64x64"
            )
        if layer.dtype == "float32":
            raise ValueError("expected a dtype of tf32, float16 or bfloat16 to tune, got float32, try --dtype tf32")


def around_break_even(
    layer: LayerSpec, table: Table, gpu: Gpu | None, clock: Clock, device: str
) -> tuple[list[KernelMeasurement], dict[str, str]]:
    """A layer's measurements at the densities that a search for its break-even visits, and why launches were refused.

    Launches are timed where block rows that share a program are not the same as at a density before.

    Raises:
        Refused: a kernel does not run.
    """
    entries: list[KernelMeasurement] = []
    refused: dict[str, str] = {}

    kernel, memory = ("native", torch.contiguous_format) if gpu is None else ("triton", torch.channels_last)

    def wins(bucket: int) -> bool:
        nonlocal table
        sparse = layer.sparse(2 ** (-bucket / STEPS), device)
        problem = layer.problem(bucket_of(sparse.plan.multiplied, prod(layer.shape)))
        case = Case(problem, sparse, torch.Size(layer.input_shape), layer.kind, memory, (kernel, "dense"))
        entry, without = measure(case, clock, gpu, table)
        entries.append(entry)
        refused.update(without)
        table = table.with_entries([entry])
        return entry.kernel != "dense"

    with precision(layer.dtype):
        first_win(wins)
    return entries, refused


def first_win(wins: Callable[[int], bool]) -> int | None:
    """The lowest of BUCKETS at which the kernels win, if they do so at every higher one; None: at none."""
    loses, at = -1, len(BUCKETS)
    while at - loses > 1:
        middle = (loses + at) // 2
        loses, at = (loses, middle) if wins(BUCKETS[middle]) else (middle, at)
    return BUCKETS[at] if at < len(BUCKETS) else None
