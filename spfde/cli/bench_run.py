"""The runs of `spfde bench`: progress, tables as they come, what is kept of an interrupted one, and the verdicts."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spfde.bench import Group, Record, changes, run
from spfde.cli.bench_text import changes_table, subject_table
from spfde.energy.rails import Rails, rails_of
from spfde.tuning.this_device import gpu_uuid
from spfde.tuning.timing import TimeLimit

PATIENCE = 150.0  # seconds after which no further pass is begun that would end later
NARROW = 110  # columns that the least part of a table has room in


def measured(console: Console, record: Record, groups: Sequence[Group], passes: int, json: Path | None) -> Record:
    """The record with the groups; tables are shown once no more passes come, and what is done is kept when stopped."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    task = bar.add_task("", total=len(groups) * passes)
    limit = TimeLimit(PATIENCE)
    shown = 0

    def say(index: int, group: Group) -> None:
        bar.update(task, completed=record.passes * len(groups) + index, description=str(group))

    def show() -> None:
        nonlocal shown
        for title, table in subject_table(record, record.rows[shown:], console.width >= NARROW):
            console.print(title, markup=False, soft_wrap=True)
            console.print(table)
        shown = len(record.rows)

    def save(now: Record) -> None:
        nonlocal record
        record = now
        if json is not None:
            now.save(json)
        only_pass = passes == 1 or (now.passes == 0 and limit.left < PATIENCE / 2)
        if now.finished or only_pass:
            show()

    try:
        with bar:
            return run(record, groups, save, say, passes, limit)
    except KeyboardInterrupt:
        show()
        kept = f", in {json}" if json is not None else ""
        console.print(f"stopped; {len(record.rows)} rows that are done{kept}", markup=False, soft_wrap=True)
        raise typer.Exit(128 + signal.SIGINT) from None


def conclude(console: Console, record: Record, json: Path | None) -> None:
    """What was not timed, the verdict on the machine and where the file is; exit code 1 where nothing was timed."""
    lines = [f"not timed: {row.subject} {row.variant} {row.sparsity:g}: {part}: {why}"
             for row in record.rows for part, why in row.absent.items()]  # fmt: skip
    lines += [each for each in (record.noise(),) if each is not None]
    on_gpu = any(row.device == "cuda" for row in record.rows)
    lines += [energy(rails_of(Path("/"), gpu_uuid() if on_gpu else ""))]
    lines += [f"timings: {json}"] if json is not None else []
    for line in dict.fromkeys(lines):
        console.print(line, markup=False, soft_wrap=True)
    if not any(row.seconds for row in record.rows):
        raise typer.Exit(1)


def energy(rails: Rails) -> str:
    """Where the joules of a step are to be had: a sensor is slower than these steps, windows of training are not."""
    if rails.why_not:
        return f"energy not available: {rails.why_not}"
    return f"energy ({rails.covers}): spfde bench --device-profile FILE has the joules of a step"


def compare(console: Console, before: Record, now: Record) -> None:
    """What differs from an older record; exit code 1 where anything got slower."""
    found = changes(before, now)
    console.print(changes_table(found, before, now))
    slower = [each for each in found if each.slower]
    differs = [name for name in ("cpu", "gpu", "torch") if before.machine.get(name) != now.machine.get(name)]
    for name in differs:
        console.print(f"another {name}: {before.machine.get(name)}, now {now.machine.get(name)}", markup=False)
    console.print(
        f"{len(slower)} of {len(found)} got slower beyond noise (changes below {found[0].resolution:.0%} are none)",
        markup=False,
    )
    if slower:
        raise typer.Exit(1)
