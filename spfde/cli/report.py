"""`spfde report`: runs side by side, in the terminal and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spfde.cli.terminal import steady
from spfde.report import compare

Runs = Annotated[
    list[Path],
    typer.Argument(help="Run directories, or a directory that holds them; the dense run is the baseline."),
]
Out = Annotated[Path, typer.Option(help="The page to write.")]


def report(runs: Runs, out: Out = Path("report.html")) -> None:
    """Compare finished runs: a table here, and one self-contained HTML page."""
    compared = compare(runs)
    console = steady()
    console.print(compared.table())
    page = compared.save(out)
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
