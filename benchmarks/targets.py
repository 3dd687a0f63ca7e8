"""What was asked of a CPU and of a GPU, and what a record says of it.

python benchmarks/targets.py RECORD.json   # of a GPU: prints the targets, writes all of it as RECORD.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

from cases import BIG, RESNET, SINGLE, SPARSITIES, VIT_MLP, Case, in_blocks
from networks import PARTS as NETWORK_PARTS
from record import NOISE, Cell, Record, times
from variants import PARTS

# ---- on a CPU --------------------------------------------------------------------------------------------------------

# Speed-up over the best dense layer, forward + backward, at each of SPARSITIES.
CPU_TARGETS = {
    ("unstructured", "linear"): (1.0, 2.0, 4.0, 7.0, 12.0),
    ("unstructured", "conv"): (1.0, 2.0, 3.5, 6.0, 9.0),
    ("block:4x1", "linear"): (1.3, 2.8, 5.5, 9.0, 14.0),
    ("block:4x1", "conv"): (1.3, 2.8, 5.5, 9.0, 14.0),
}
PEER_TARGET = 3.0  # times faster than SparseProp
PEER_SPARSITY = 0.9


def asked(pattern: str, kind: str, sparsity: float) -> float | None:
    """The speed-up aimed at on a CPU, or None where there is no aim."""
    aims = CPU_TARGETS.get((pattern, kind))
    return None if aims is None or sparsity not in SPARSITIES else aims[SPARSITIES.index(sparsity)]


def cpu_verdicts(cell: Cell) -> Iterator[tuple[str, float | None, float]]:
    """(what, measured or None if absent, aimed at) of each target that applies to a cell."""
    aim = asked(cell.pattern, cell.kind, cell.sparsity)
    if aim is not None:
        yield "dense", cell.speedup("native"), aim
    if cell.pattern == "unstructured" and cell.sparsity == PEER_SPARSITY:
        yield "SparseProp", cell.over_sparseprop, PEER_TARGET


# ---- on a GPU --------------------------------------------------------------------------------------------------------

HEAD = ("target", "case", "asked", "measured", "met")
COLUMNS = dict.fromkeys((*PARTS, *NETWORK_PARTS))
PEERS = ("torch bsr", "torch csr", "torch 2:4")
SINGLES = "training step, single weights"
GAIN = 1.1  # a gain beyond what two runs differ by
STOCK = 1.25  # what torch's 2:4 training of that MLP gains on an A100 (torchao, pull request 184)
AUTO = 0.9  # speed-up that "auto" is to have at least, wherever there is a case


@dataclass(frozen=True)
class Target:
    """That our time for a part of a case is to be that of the fastest dense layer for `over` / `speedup`, or less.

    over: a part, the same one unless given. break_even: it is asked as a sparsity from which on nothing is lost.
    """

    what: str
    case: Case
    part: str
    speedup: float
    over: str | None = None
    break_even: bool = False


def _big(block: int, density: float) -> Case:
    return in_blocks(BIG, block, density)


GPU_TARGETS = (
    *(Target("training step", _big(block, 0.1), "step", gain) for block, gain in ((64, 2.5), (32, 1.5), (128, 4.0))),
    *(Target("forward", _big(*at), "forward", 1.0, break_even=True) for at in ((64, 0.4), (32, 0.25), (16, 0.15))),
    *(Target("weight gradient", _big(*at), "weight gradient", 1.0, break_even=True) for at in ((64, 0.3), (32, 0.2))),
    *(Target(f"{part}, every block stored", _big(128, 1.0), part, 0.85) for part in ("forward", "step")),
    Target("frozen, no gradient wanted below, over a dense step", _big(64, 0.1), "frozen prefix", 3.0, over="step"),
    *(Target("training step, ResNet-50 layer", in_blocks(layer, 64, 0.2), "step", GAIN) for layer in RESNET),
    *(Target("training step, ViT-L MLP", in_blocks(layer, 64, 0.1, "float16"), "step", STOCK) for layer in VIT_MLP),
    *(Target(f"{SINGLES}, float32", Case(SINGLE, sparsity=s), "step", x) for s, x in ((0.8, 1.5), (0.9, 3.0))),
    *(Target(f"{SINGLES}, ResNet-50 layer", Case(layer), "step", GAIN) for layer in RESNET),
    Target(f"{SINGLES}, 16 bits", Case(SINGLE, sparsity=0.98, dtype="bfloat16"), "step", GAIN),
)


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
    return [*(_verdict(record, target) for target in GPU_TARGETS), _auto(record)]


def break_even(record: Record, case: Case, part: str) -> tuple[str, float] | None:
    """The sparsity from which on `part` is no slower than dense, for layers that differ from `case` in density alone.

    Returns ("", sparsity), interpolated between the nearest measured on either side; ("below", the lowest measured) or
    ("above", the highest) where all or none of them are; None where nothing was measured.
    """
    like = [c for c in record.cells if (c.layer, c.pattern, c.dtype) == (str(case.layer), case.pattern, case.dtype)]
    points = sorted((cell.sparsity, gain) for cell in like if (gain := cell.speedup(part=part)) is not None)
    slower = [index for index, (_, gain) in enumerate(points) if gain < 1]
    if not points:
        return None
    if not slower:
        return "below", points[0][0]
    if slower[-1] == len(points) - 1:
        return "above", points[-1][0]
    (left, slow), (right, fast) = points[slower[-1]], points[slower[-1] + 1]
    return "", left + (right - left) * log(slow) / (log(slow) - log(fast))


def _verdict(record: Record, target: Target) -> Verdict:
    named = [cell for cell in record.cells if cell.name == str(target.case)]
    gains = [cell.speedup(part=target.part, over=target.over) for cell in named]
    gain = next((gain for gain in gains if gain is not None), None)
    measured, asked = "not measured" if gain is None else times(gain), f"at least {target.speedup:g}x"
    what = target.what
    if target.break_even:
        what, asked = f"{target.what}, break-even sparsity", f"at most {target.case.sparsity:.0%}"
        found = break_even(record, target.case, target.part)
        if found is not None:
            measured = f"{found[0]} {found[1]:.0%} ({measured} at {target.case.sparsity:.0%})".strip()
    return Verdict(what, str(target.case), asked, measured, None if gain is None else gain >= target.speedup)


def _auto(record: Record) -> Verdict:
    """Of all cases the one where "auto" fares worst against dense."""
    gains = [(gain, cell.name) for cell in record.cells if cell.auto and (gain := cell.speedup(cell.auto)) is not None]
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
        lines += ["## Failed", "", *(f"- {cell.name}, {name}: {why}" for cell, name, why in record.failures), ""]
    return "\n".join(lines)


def page(record: Record) -> str:
    """All of a record as Markdown: machine, targets, failures, choices, cases."""
    wrong = [cell for cell in record.cells if cell.missed is not None and cell.missed > NOISE]
    lines = [f"# {record.machine['gpu']}, {str(record.machine['date'])[:10]}", "", *_facts(record.machine), ""]
    lines += [summary(record), '## Where `kernel = "auto"` chose wrong', ""]
    lines += [f"- {c.name}: took {c.auto} ({c.reason}), {c.missed:.2f} x the time of our fastest" for c in wrong]
    lines += ["" if wrong else "Nowhere.\n", "## Speed-up over the fastest dense layer", ""]
    shown = [part for part in COLUMNS if any(cell.speedup(part=part) is not None for cell in record.cells)]
    head = ("case", *shown, "masked step", "cuda step", *(f"{peer} forward" for peer in PEERS), "auto", "notes")
    lines += [table(head, [_row(cell, shown) for cell in record.cells]), ""]
    if record.unfinished:
        lines += ["## Not reached", "", *(f"- {name}" for name in record.unfinished), ""]
    return "\n".join(lines)


def _row(cell: Cell, parts: Sequence[str]) -> tuple[str, ...]:
    bound = [f"{part}: host {ratio:.1f} x device" for part, ratio in cell.launch_bound.items()]
    notes = [*(f"no {name}: {why}" for name, why in cell.absent.items()), *bound]
    gains = (*(cell.speedup(part=part) for part in parts), cell.speedup("masked"), cell.speedup("cuda"))
    peers = (cell.speedup(peer, "forward") for peer in PEERS)
    text = (cell.name, *map(times, (*gains, *peers)), cell.auto or "-", "; ".join(notes))
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
    parser.add_argument("json", type=Path, help="what layers.py --device cuda wrote")
    path = parser.parse_args(arguments).json
    record = Record.read(path)
    path.with_suffix(".md").write_text(page(record))
    print(summary(record))


if __name__ == "__main__":
    main()
