"""`spfde bench`: networks and layers, sparse beside dense; `--tune` fills a table of measurements."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape

from spfde import bench as benching
from spfde import env
from spfde._files import check_writable
from spfde.bench import Group, Layer, Network, Record, layers_of, load, workload
from spfde.bench.measuring import check_device
from spfde.cli.bench_run import PATIENCE, compare, conclude, measured
from spfde.cli.device_profile import Training, write_profile
from spfde.cli.options import option, refuse
from spfde.cli.terminal import steady
from spfde.sparse.pattern import Pattern
from spfde.train.energy import SECONDS as WINDOW
from spfde.tuning.layer import DTYPES, LayerSpec
from spfde.tuning.sweep import tune_here, usual_layers

LINEAR, BATCH, PATTERN, DTYPE, SPARSITIES, SECONDS = (
    "1024x1024",
    128,
    "unstructured",
    "float32",
    (0.8, 0.9, 0.95),
    500.0,
)
PASSES, CLOCK = 4, "wall"
WIDE = 150  # columns that all of a table has room in


MANY = " May be given again."


def bench(
    model: Annotated[
        list[str] | None, typer.Option(help=f"Network of the zoo, or module:callable that returns one.{MANY}")
    ] = None,
    linear: Annotated[list[str] | None, option(f"OUTxIN of a linear layer.{MANY}", LINEAR)] = None,
    conv: Annotated[
        list[str] | None, typer.Option(help=escape(f"OUTxINxKHxKW@SIZE[/STRIDE][gGROUPS] of a convolution.{MANY}"))
    ] = None,
    batch: Annotated[int | None, option("Samples; of a linear layer: rows.", BATCH, min=1)] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels a side, or tokens, of a network of the zoo."),
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input", help="Of a sample of module:callable: 3x224x224.", metavar="SHAPE")
    ] = None,
    layers: Annotated[bool, typer.Option(help="Also the different layers of a network, alone.")] = True,
    pattern: Annotated[
        list[str] | None, option(f"Pattern of the zeros, as spfde.sparsify takes it.{MANY}", PATTERN)
    ] = None,
    sparsity: Annotated[list[float] | None, option(f"Fraction of zeros.{MANY}", *SPARSITIES)] = None,
    dtype: Annotated[list[str] | None, option(f"{', '.join(DTYPES)}.{MANY}", DTYPE)] = None,
    device: Annotated[str | None, option("cpu or cuda.", "cuda where there is one")] = None,
    threads: Annotated[list[int] | None, option(f"Threads of the CPU.{MANY}", "torch's", min=1)] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Every kernel of a layer, not the chosen one alone.")
    ] = False,
    compiled: Annotated[bool, typer.Option("--compiled", help="torch.compile as one more dense baseline.")] = False,
    clock: Annotated[
        str | None, option("wall, or processor: what one thread had of the CPU, where others use it too.", CLOCK)
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timings of each variant, taken in turns; medians count.")] = 9,
    passes: Annotated[
        int | None,
        option(f"How often to make and time everything anew, if {PATIENCE:.0f} seconds suffice.", PASSES, min=1),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write every timing and the machine to this file.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="A file that --json wrote: say what differs; exit 1 if anything got slower.")
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Measure kernels and launches of this layer, or of usual ones, into a table."),
    ] = False,
    table: Annotated[
        Path | None, option("With --tune: the file to fill, or to go on with.", "named after the machine")
    ] = None,
    device_profile: Annotated[
        Path | None,
        typer.Option(
            help="Fill, or go on with, a profile of this device: what training draws and layers take; or a folder.",
            metavar="FILE",
        ),
    ] = None,
    window: Annotated[
        float | None,
        option("With --device-profile: seconds of each window of training; 0: none.", WINDOW, min=0),
    ] = None,
    seconds: Annotated[
        float | None, option("With --tune or --device-profile: the time it may take.", SECONDS, min=0)
    ] = None,
) -> None:
    """Time networks and layers, sparse beside dense: forward, gradients, whole steps, steps with half of it frozen."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    if threads is not None and device == "cuda":
        raise ValueError("expected --threads on a CPU, got it on cuda, try --device cpu")
    of_tables = {
        "size": size, "input": input_shape, "no_layers": not layers, "kernels": kernels, "compiled": compiled,
        "json": json, "against": against, "passes": passes,
    }  # fmt: skip
    if tune:
        refuse(
            "without --tune", "leaving it out", model=model, sparsity=sparsity, clock=clock,
            device_profile=device_profile, window=window, **of_tables,
        )  # fmt: skip
        spec = {"linear": linear, "conv": conv, "batch": batch, "pattern": pattern, "dtype": dtype}
        _set_threads("--tune", threads)
        _tune(device, spec, table, SECONDS if seconds is None else seconds, repeats)
        return
    refuse("with --tune", "adding --tune", table=table)
    if device_profile is not None:
        refuse("without --device-profile", "leaving it out", linear=linear, conv=conv, **of_tables)
        _set_threads("--device-profile", threads)
        given = {"model": model, "batch": batch, "sparsity": sparsity, "pattern": pattern, "dtype": dtype}
        if window == 0:
            refuse("with windows of training", "leaving out --window 0", **given)
        _device_profile(device_profile, device, given, seconds, window, repeats, clock or CLOCK)
        return
    refuse("with --tune or --device-profile", "adding one", seconds=seconds)
    refuse("with --device-profile", "adding it", window=window)
    if not model:
        refuse("with --model", "--conv 64x64x3x3@32 for a layer", size=size, input=input_shape, no_layers=not layers)
    elif not (layers or linear or conv):
        refuse("of layers", "leaving out --no-layers", kernels=kernels)
    if json is not None:
        check_writable(json)  # told before anything is timed
    before = load(against) if against else None
    torch.manual_seed(0)
    subjects = _subjects(model or [], linear or [], conv or [], batch, size, input_shape, layers)
    how = product(subjects, pattern or [PATTERN], dtype or [DTYPE], threads or [torch.get_num_threads()])
    groups = [
        Group(
            subject, _sparsities(pattern, sparsity), pattern, dtype, threads, device, compiled, kernels, clock or CLOCK
        )
        for subject, pattern, dtype, threads in how
    ]
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    record = Record({**env.portable(env.report()), "gpu": gpu}, date, _command(), repeats)
    console = steady(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDE)  # a file or a pipe has no edge
    record = measured(console, record, groups, passes or PASSES, json)
    conclude(console, record, json)
    if before is not None:
        compare(console, before, record)


def _subjects(
    models: Sequence[str], linears: Sequence[str], convs: Sequence[str], batch: int | None, size: int | None,
    shape: str | None, layers: bool,
) -> list[Layer | Network]:  # fmt: skip
    found: list[Layer | Network] = []
    for name in models:
        made = workload(name, batch, size, shape, usual=BATCH)
        found += [Network(made), *(layers_of(made) if layers else [])]
    found += [benching.linear(text, batch or BATCH) for text in linears]
    found += [benching.conv(text, batch or BATCH) for text in convs]
    return found or [benching.linear(LINEAR, batch or BATCH)]


def _sparsities(pattern: str, given: Sequence[float] | None) -> tuple[float, ...]:
    fixed = Pattern.parse(pattern).sparsity
    return tuple(given or (SPARSITIES if fixed is None else [fixed]))


def layer_spec(given: dict[str, Any]) -> LayerSpec:
    """The layer that the options of --tune name: one, of one pattern and dtype.

    Raises:
        ValueError: they name several, or one that no table holds.
    """
    given = _one_of_each("--tune", given)
    if given["linear"] and given["conv"]:
        raise ValueError("expected --linear or --conv with --tune, got both, try one at a time")
    batch, pattern, dtype = given["batch"] or BATCH, given["pattern"] or PATTERN, given["dtype"] or DTYPE
    if given["linear"]:
        return LayerSpec(tuple(benching.linear(given["linear"], batch).module.weight.shape), batch, 1, pattern, dtype)
    made = benching.conv(given["conv"], batch)
    if made.module.groups > 1:
        raise ValueError(f"expected a convolution of one group with --tune, got {made}, try it without g")
    size, stride = made.shape[2], made.module.stride[0]
    return LayerSpec(tuple(made.module.weight.shape), batch, size, pattern, dtype, stride)


def _tune(device: str, given: dict[str, Any], path: Path | None, seconds: float, repeats: int) -> None:
    named = given["linear"] or given["conv"]
    if not named:
        refuse("with --linear or --conv", "adding --linear", **given)
    layers = [layer_spec(given)] if named else usual_layers(device)
    console = steady(highlight=False)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    outcome, path = tune_here(device, layers, path, seconds, repeats, say)
    for name, reason in outcome.refused.items():
        say(f"not measured: {name}: {reason}")
    if outcome.unfinished:
        say(f"out of time for {len(outcome.unfinished)} layers; the same command goes on")
    if outcome.table.entries:
        say(f"table: {path}, {len(outcome.table.entries)} entries; in use with SPFDE_TABLE={path}")


def _device_profile(
    target: Path, device: str, given: dict[str, Any], seconds: float | None, window: float | None, repeats: int,
    clock: str,
) -> None:  # fmt: skip
    console = steady(highlight=False)
    known = {name: value for name, value in _one_of_each("--device-profile", given).items() if value is not None}
    if "batch" in known:
        known["batches"] = (known.pop("batch"),)
    training = Training(**known, **({} if window is None else {"window": window}))

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    try:
        write_profile(
            target, device, _command(), training, SECONDS if seconds is None else seconds, repeats, clock, say
        )
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        raise typer.Exit(128 + signal.SIGINT) from None


def _set_threads(where: str, threads: list[int] | None) -> None:
    count = _one_of_each(where, {"threads": threads})["threads"]
    if count is not None:
        torch.set_num_threads(count)


def _one_of_each(where: str, given: dict[str, Any]) -> dict[str, Any]:
    """Options that may be given again, each taken once.

    Raises:
        ValueError: one was given again.
    """
    for name, values in given.items():
        if isinstance(values, list) and len(values) > 1:
            raise ValueError(f"expected one --{name} with {where}, got {len(values)}, try one at a time")
    return {name: values[0] if isinstance(values, list) else values for name, values in given.items()}


def _command() -> str:
    return shlex.join(["spfde", *sys.argv[1:]])
