"""Cells as text."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean

from record import Cell, times
from targets import cpu_verdicts

OTHERS = ("masked", "auto", "torch csr", "sparseprop")
HEAD = ("sparsity", "dense ms", "speed-up", "efficiency", "target", "", *OTHERS, "over SparseProp", "", "spread")


def block(cells: Sequence[Cell]) -> str:
    """The cells of one layer and pattern: a headline, then a line per sparsity."""
    timed = [cell for cell in cells if cell.seconds]
    dense = ", ".join(dict.fromkeys(str(cell.best_dense()) for cell in timed))
    lines = ["", f"{cells[0].layer} · {cells[0].pattern}" + (f" · best dense: {dense}" if dense else "")]
    if timed:
        rows = [HEAD, *(_row(cell) for cell in timed)]
        shown = [i for i in range(len(HEAD)) if i < 4 or any(row[i].strip("- ") for row in rows[1:])]
        widths = {i: max(len(row[i]) for row in rows) for i in shown}
        lines += ["  " + "  ".join(row[i].rjust(widths[i]) for i in shown) for row in rows]
    return "\n".join([*lines, *_absent(cells)])


def summary(cells: Sequence[Cell]) -> str:
    """Targets met, the geometric means by pattern, group and sparsity, and what was missed, worst first."""
    lines = ["", "geometric mean of speed-up (efficiency) of the native kernels"]
    keys = list(dict.fromkeys((cell.pattern, cell.group) for cell in cells))
    for pattern, group in keys:
        means = []
        for sparsity in sorted({cell.sparsity for cell in cells}):
            some = [c for c in cells if (c.pattern, c.group, c.sparsity) == (pattern, group, sparsity)]
            speedups = [(c.speedup("native"), c.efficiency("native")) for c in some if "native" in c.seconds]
            if speedups:
                speedup, efficiency = map(geometric_mean, zip(*speedups, strict=True))
                means.append(f"{sparsity:.0%} {speedup:.2f}x ({efficiency:.2f})")
        lines.append(f"  {pattern:14} {group:9} " + ("  ".join(means) or "absent"))
    verdicts = [(cell, *verdict) for cell in cells for verdict in cpu_verdicts(cell)]
    timed = [verdict for verdict in verdicts if verdict[2] is not None]
    missed = sorted((v for v in timed if v[2] < v[3]), key=lambda v: v[2] / v[3])
    lines.append(
        f"targets: {len(timed) - len(missed)} met, {len(missed)} missed, {len(verdicts) - len(timed)} not timed"
    )
    for cell, what, got, aim in missed:
        lines.append(f"  {cell.layer} · {cell.pattern} · {cell.sparsity:.0%}: {got:.2f}x {what}, target {aim:g}x")
    return "\n".join(lines)


def _absent(cells: Sequence[Cell]) -> list[str]:
    """A line per reason, with the names it holds for."""
    names: dict[str, list[str]] = {}
    for cell in cells:
        for name, reason in (*cell.absent.items(), *cell.failed.items()):
            known = names.setdefault(reason, [])
            known += [] if name in known else [name]
    return [f"  absent: {', '.join(some)}: {reason}" for reason, some in names.items()]


def _row(cell: Cell) -> tuple[str, ...]:
    verdicts = {what: (got, aim) for what, got, aim in cpu_verdicts(cell)}
    got, aim = verdicts.get("dense", (None, None))
    peer, peer_aim = verdicts.get("SparseProp", (None, None))
    others = (times(cell.speedup(name)) for name in OTHERS)
    steps = [cell.seconds[name]["step"] for name in (cell.best_dense(), "native") if name in cell.seconds]
    return (
        f"{cell.sparsity:.0%}",
        f"{cell.median(cell.best_dense()) * 1e3:.2f}",
        times(cell.speedup("native")),
        _number(cell.efficiency("native")),
        "-" if aim is None else f"{aim:g}x",
        _verdict(got, aim),
        *others,
        times(cell.over_sparseprop),
        _verdict(peer, peer_aim),
        f"±{max(step.spread for step in steps):.0%}",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _verdict(got: float | None, aim: float | None) -> str:
    return "" if got is None or aim is None else "pass" if got >= aim else "FAIL"
