"""`spfde env`: the environment report as a table or as JSON."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from spfde.cli.terminal import steady
from spfde.env import report, rows


def env(
    as_json: Annotated[bool, typer.Option("--json", help="For records and bug reports.")] = False,
) -> None:
    """Show versions, the native core, the instruction set in use, CUDA, threads and OpenMP."""
    facts = report()
    if as_json:
        steady().print(json.dumps(facts, indent=2), markup=False, emoji=False, highlight=False, soft_wrap=True)
    else:
        table = Table(show_header=False, box=None)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for what, value in rows(facts):
            style = "yellow" if what == "warning" else ""
            table.add_row(Text(what, style or "bold"), Text(value, style))
        steady().print(table)
    if "error" in facts["native"]:
        raise typer.Exit(1)
