"""What `spfde bench` found, as tables of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from spfde._words import count
from spfde.bench.against import Change
from spfde.bench.record import Record, Row
from spfde.tuning.samples import summarise

NONE = "-"


def subject_table(record: Record, rows: Sequence[Row], wide: bool = True) -> Iterator[tuple[str, Table]]:
    """A title and a table for each subject of some rows: milliseconds, and how many times as fast as the best dense.

    efficiency: speed-up of the step x density. GFLOP/s: of the dense work that a step amounts to. MB: of the
    weights and their index. peak: the most MB held in a step. Those four only
    where it is wide.
    """
    for beside in dict.fromkeys(row.beside for row in rows):
        some = [row for row in rows if row.beside == beside]
        parts = list(dict.fromkeys(part for row in some for part in row.seconds))
        if not parts:
            continue
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("sparsity", "variant", *(f"{part.replace('_', ' ')} ms" for part in parts)):
            table.add_column(name, justify="right" if name.endswith("ms") else "left", overflow="fold")
        for name in ("±", "efficiency", "GFLOP/s", "MB", *(["peak MB"] if some[0].kind == "network" else [])) * wide:
            table.add_column(name, justify="right")
        for row in some:
            cells = [f"{row.sparsity:g}" if not row.dense else NONE, _variant(row)]
            cells += [_time(record, row, part) for part in parts]
            more = [_spread(row), _efficiency(record, row), _gflops(row), _mb(row.size)]
            more += [_mb(row.peak)] if row.kind == "network" else []
            table.add_row(*cells, *(more if wide else []))
        first = some[0]
        times = f", {count(first.count, 'time')} in {first.of}" if first.of else ""
        yield f"\n{first.subject}{times}: {first.dtype}, {count(first.threads, 'thread')} of {first.device}", table


def changes_table(found: Sequence[Change], before: Record, now: Record) -> Table:
    """Speed-ups then and now, the significant ones first."""
    table = Table(box=None, header_style="bold", pad_edge=False, title=f"against {before.date}", title_justify="left")
    for name in ("subject", "sparsity", "variant", "part", "then", "now", "change", ""):
        table.add_column(name, overflow="fold")
    for each in sorted(found, key=lambda c: (not c.significant, c.factor)):
        word = "same within noise" if not each.significant else "SLOWER" if each.slower else "faster"
        row = each.row
        table.add_row(
            row.subject, f"{row.sparsity:g}", row.variant, each.part, f"{each.before.value:.2f}x",
            f"{each.now.value:.2f}x", f"{each.factor - 1:+.0%}", word,
        )  # fmt: skip
    return table


def _variant(row: Row) -> str:
    if row.dense or not row.seconds:
        return row.variant
    return f"{row.variant}: {row.kernel}" if row.variant == "auto" and row.kind == "layer" else row.variant


def _time(record: Record, row: Row, part: str) -> str:
    seconds, speedup = row.median(part), record.speedup(row, part)
    if seconds is None:
        return NONE
    return f"{seconds * 1e3:.3g} {f'{speedup.value:6.2f}x' if speedup else ' ' * 7}"


def _spread(row: Row) -> str:
    return f"{summarise(row.seconds['step']).spread:.0%}" if row.seconds.get("step") else NONE


def _efficiency(record: Record, row: Row) -> str:
    speedup = None if row.dense else record.speedup(row, "step")
    return f"{speedup.value * row.density:.2f}" if speedup else NONE


def _gflops(row: Row) -> str:
    rate = row.effective("step")
    return f"{rate / 1e9:.3g}" if rate else NONE


def _mb(size: int | None) -> str:
    return NONE if size is None else f"{size / 1e6:.3g}"
