"""`spfde report`: runs side by side, in the terminal and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spfde.cli.terminal import steady
from spfde.report import compare

Runs = Annotated[
    list[Path],
    typer.Argument(
        help="Run directories, or one that holds them; the dense run is the baseline. Files of bench, plan, profile."
    ),
]
Out = Annotated[Path, typer.Option(help="The page to write.")]


def report(runs: Runs, out: Out = Path("report.html")) -> None:
    """Draw runs and files of bench, plan and profile: a table here, and one self-contained HTML page."""
    compared = compare(runs)
    console = steady()
    if compared.runs:
        console.print(compared.table())
    page = compared.save(out)
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
