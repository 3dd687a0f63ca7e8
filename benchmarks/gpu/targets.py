"""What was asked of a GPU and what a record says of it.

PYTHONPATH=.:benchmarks python -m gpu.targets RECORD.json   # prints the targets, writes all of it as RECORD.md
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

from gpu.cases import AUTO, OURS, PARTS, TARGETS, Case, Network, Target
from gpu.record import NOISE, Cell, Record, times

HEAD = ("target", "case", "asked", "measured", "met")
COLUMNS = dict.fromkeys((*PARTS, "half frozen step", "frozen forward"))
PEERS = ("torch bsr", "torch 2:4")


@dataclass(frozen=True)
class Verdict:
    """A target as text. met: None where it was not measured."""

    what: str
    case: str
    asked: str
    measured: str
    met: bool | None

    @property
    def row(self) -> tuple[str, ...]:
        """As HEAD names them."""
        return self.what, self.case, self.asked, self.measured, {None: "-", True: "yes", False: "NO"}[self.met]


def verdicts(record: Record) -> list[Verdict]:
    """Every target, measured or not, then that of "auto"."""
    return [*(_verdict(record, target) for target in TARGETS), _auto(record)]


def break_even(record: Record, case: Case, part: str) -> tuple[str, float] | None:
    """The sparsity from which on `part` is no slower than dense, for layers that differ from `case` in density alone.

    Returns ("", sparsity), interpolated between the nearest measured on either side; ("below", the lowest measured) or
    ("above", the highest) where all or none of them are; None where nothing was measured.
    """
    like = [
        cell for cell in record.cells if isinstance(cell.case, Case) and _but_density(cell.case) == _but_density(case)
    ]
    points = sorted((1 - cell.case.density, gain) for cell in like if (gain := cell.speedup(part)) is not None)
    slower = [index for index, (_, gain) in enumerate(points) if gain < 1]
    if not points:
        return None
    if not slower:
        return "below", points[0][0]
    if slower[-1] == len(points) - 1:
        return "above", points[-1][0]
    (left, slow), (right, fast) = points[slower[-1]], points[slower[-1] + 1]
    return "", left + (right - left) * log(slow) / (log(slow) - log(fast))


def _but_density(case: Case | Network) -> tuple[Any, ...]:
    return tuple(value for name, value in vars(case).items() if name != "density")


def _verdict(record: Record, target: Target) -> Verdict:
    gains = [cell.speedup(target.part, over=target.over) for cell in record.cells if cell.case == target.case]
    gain = next((gain for gain in gains if gain is not None), None)
    measured, asked = "not measured" if gain is None else times(gain), f"at least {target.speedup:g}x"
    what = target.what
    if target.break_even:
        what, asked = f"{target.what}, break-even sparsity", f"at most {1 - target.case.density:.0%}"
        found = break_even(record, target.case, target.part)
        if found is not None:
            measured = f"{found[0]} {found[1]:.0%} ({measured} at {1 - target.case.density:.0%})".strip()
    return Verdict(what, str(target.case), asked, measured, None if gain is None else gain >= target.speedup)


def _auto(record: Record) -> Verdict:
    """Of all cases the one where "auto" fares worst against dense."""
    gains = [(gain, str(cell.case)) for cell in record.cells if (gain := cell.speedup("step", cell.auto)) is not None]
    what, asked = 'training step, kernel = "auto"', f"at least {AUTO:g}x"
    if not gains:
        return Verdict(what, "every case", asked, "not measured", None)
    gain, case = min(gains)
    return Verdict(what, "every case", asked, f"{times(gain)} at worst of {len(gains)}: {case}", gain >= AUTO)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned so that it reads as text as well."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))} |" for row in lines)


def summary(record: Record) -> str:
    """The targets, and what failed."""
    lines = ["## Targets", "", table(HEAD, [verdict.row for verdict in verdicts(record)]), ""]
    if record.failures:
        lines += ["## Failed", "", *(f"- {cell.case}, {name}: {why}" for cell, name, why in record.failures), ""]
    return "\n".join(lines)


def page(record: Record) -> str:
    """All of a record as Markdown: machine, targets, failures, choices, cases."""
    wrong = [cell for cell in record.cells if cell.missed is not None and cell.missed > NOISE]
    lines = [f"# {record.machine['gpu']}, {str(record.machine['date'])[:10]}", "", *_facts(record.machine), ""]
    lines += [summary(record), '## Where `kernel = "auto"` chose wrong', ""]
    lines += [f"- {c.case}: took {c.auto} ({c.reason}), {c.missed:.2f} x the time of our fastest" for c in wrong]
    lines += ["" if wrong else "Nowhere.\n", "## Speed-up over the fastest dense layer", ""]
    shown = [part for part in COLUMNS if any(cell.speedup(part) is not None for cell in record.cells)]
    head = ("case", *shown, "masked step", *(f"{peer} forward" for peer in PEERS), "auto", "notes")
    lines += [table(head, [_row(cell, shown) for cell in record.cells]), ""]
    if record.unfinished:
        lines += ["## Not reached", "", *(f"- {name}" for name in record.unfinished), ""]
    return "\n".join(lines)


def _row(cell: Cell, parts: Sequence[str]) -> tuple[str, ...]:
    bound = [f"{part}: host {ratio:.1f} x device" for part, ratio in cell.launch_bound.items()]
    notes = [*(f"no {way}: {why}" for way, why in cell.absent.items()), *bound]
    gains = (*(cell.speedup(part) for part in parts), cell.speedup("step", OURS[1]))
    peers = (cell.speedup("forward", peer) for peer in PEERS)
    text = (str(cell.case), *map(times, (*gains, *peers)), cell.auto or "-", "; ".join(notes))
    return tuple(part.replace("|", "/") for part in text)


def _facts(machine: Mapping[str, Any]) -> list[str]:
    """The machine, a line for each fact."""
    flat = {name: value for name, value in machine.items() if not isinstance(value, Mapping)}
    states = {when: machine[when] for when in ("before", "after") if machine.get(when)}
    lines = [f"- {name}: {value}" for name, value in flat.items()]
    return lines + [f"- {when}: {', '.join(f'{n} {v}' for n, v in state.items())}" for when, state in states.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the targets and writes the whole record as Markdown beside it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("json", type=Path, help="what gpu.run wrote")
    path = parser.parse_args(arguments).json
    record = Record.read(path)
    path.with_suffix(".md").write_text(page(record))
    print(summary(record))


if __name__ == "__main__":
    main()
