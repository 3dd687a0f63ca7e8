"""`spfde bench`: one layer, dense beside every kernel that can run here; `--tune` fills a table of measurements."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from spfde.cli.terminal import steady
from spfde.sparse.pattern import Pattern
from spfde.tuning.compare import Cell, Comparison, check_device, compare
from spfde.tuning.layer import DTYPES, PARTS, LayerSpec, parse_shape
from spfde.tuning.sweep import tune_here, usual_layers

SHAPE, BATCH, SIZE, PATTERN, DTYPE, SPARSITIES, SECONDS = (
    "1024x1024", 128, 14, "unstructured", "float32", (0.8, 0.9, 0.95), 500.0,
)  # fmt: skip


def _option(text: str, *default: object, **limits: Any) -> Any:
    """An option whose help names its default; None stays what it is, to tell whether it was given."""
    shown = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in default)
    return typer.Option(help=f"{text} {escape(f'[default: {shown}]')}", **limits)  # else rich takes it for a style


def bench(
    shape: Annotated[str | None, _option("OUTxIN of a linear layer, OUTxINxKHxKW of a convolution.", SHAPE)] = None,
    batch: Annotated[int | None, _option("Samples; of a linear layer: rows.", BATCH, min=1)] = None,
    size: Annotated[int | None, _option("Pixels a side, of a convolution.", SIZE, min=1)] = None,
    stride: Annotated[int | None, _option("Stride of a convolution.", 1, min=1)] = None,
    pattern: Annotated[str | None, _option("Pattern of the zeros, as spfde.sparsify takes it.", PATTERN)] = None,
    sparsity: Annotated[
        list[float] | None, _option("Fraction of weights that are zero; may be given again.", *SPARSITIES)
    ] = None,
    dtype: Annotated[str | None, _option(f"{', '.join(DTYPES)}.", DTYPE)] = None,
    device: Annotated[str | None, _option("cpu or cuda.", "cuda where there is one")] = None,
    threads: Annotated[int | None, _option("Threads of the CPU.", "torch's", min=1)] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timings of each variant, taken in turns; medians count.")] = 9,
    json: Annotated[Path | None, typer.Option(help="Also write every timing and the machine to this file.")] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Measure kernels and launches of this layer, or of usual ones, into a table."),
    ] = False,
    table: Annotated[
        Path | None, _option("With --tune: the file to fill, or to go on with.", "named after the machine")
    ] = None,
    seconds: Annotated[float | None, _option("With --tune: the time it may take.", SECONDS, min=0)] = None,
) -> None:
    """Time a layer, sparse beside dense: forward, backward and both, with every kernel that can run here."""
    layer = {"shape": shape, "batch": batch, "size": size, "stride": stride, "pattern": pattern, "dtype": dtype}
    if tune:
        _refuse("without --tune", "leaving it out", sparsity=sparsity, json=json)
    else:
        _refuse("with --tune", "adding --tune", table=table, seconds=seconds)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    if threads is not None:
        if device == "cuda":
            raise ValueError("expected --threads on a CPU, got it on cuda, try --device cpu")
        torch.set_num_threads(threads)
    if tune:
        _tune(device, layer, table, SECONDS if seconds is None else seconds, repeats)
        return
    made = make_layer(layer)
    if json is not None:  # what cannot be written is told before anything is timed
        json.parent.mkdir(parents=True, exist_ok=True)
    fixed = Pattern.parse(made.pattern).sparsity
    found = compare(made, sparsity or (SPARSITIES if fixed is None else [fixed]), device, repeats)
    console = steady()
    console.print(Text(f"{found.layer}, {_where(found)}, {repeats} repeats"), soft_wrap=True)
    console.print(terminal(found))
    for cell in found.cells:
        console.print(Text(f"auto at sparsity {cell.sparsity:g}: {cell.kernel}, {cell.reason}"), soft_wrap=True)
    for variant, reason in dict.fromkeys(pair for cell in found.cells for pair in cell.absent.items()):
        console.print(Text(f"not timed: {variant}: {reason}"), soft_wrap=True)
    if json is not None:
        json.write_text(dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
        console.print(f"timings: {json}", markup=False, highlight=False, soft_wrap=True)


def make_layer(given: dict[str, Any]) -> LayerSpec:
    """The layer that the options name."""
    shape = parse_shape(given["shape"] or SHAPE)
    size = given["size"] or (SIZE if len(shape) == 4 else 1)
    pattern, dtype = given["pattern"] or PATTERN, given["dtype"] or DTYPE
    return LayerSpec(shape, given["batch"] or BATCH, size, pattern, dtype, given["stride"] or 1)


def _tune(device: str, given: dict[str, Any], path: Path | None, seconds: float, repeats: int) -> None:
    if given["shape"] is None:
        _refuse("with --shape", "adding --shape", **given)
    layers = usual_layers(device) if given["shape"] is None else [make_layer(given)]
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


def _refuse(where: str, instead: str, **options: Any) -> None:
    """Raises ValueError if one of the options was given."""
    for name in [name for name, value in options.items() if value is not None]:
        given = options[name] if isinstance(options[name], list) else [options[name]]
        got = " ".join(f"--{name} {value}" for value in given)
        raise ValueError(f"expected --{name} only {where}, got {got}, try {instead}")


def _where(found: Comparison) -> str:
    if found.device == "cuda":
        return found.machine["gpu"]
    return f"{found.machine['cpu']}, {found.machine['threads']['torch']} threads"


def terminal(found: Comparison) -> Table:
    """The comparison as a table: milliseconds, and how many times as fast as the fastest dense layer."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("sparsity", "kernel", *(f"{part} ms" for part in PARTS)):
        table.add_column(name, justify="right" if name.endswith("ms") else "left", overflow="fold")
    for cell in found.cells:
        for variant in cell.seconds:
            table.add_row(f"{cell.sparsity:g}", variant, *(_time(cell, variant, part) for part in PARTS))
        table.add_section()
    return table


def _time(cell: Cell, variant: str, part: str) -> str:
    return f"{cell.median(variant, part) * 1e3:.3g} {cell.speedup(variant, part):6.2f}x"
