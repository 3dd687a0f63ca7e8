"""Runs side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spfde.report.files import Measured, read_file
from spfde.report.measured import headline
from spfde.report.measured import sections as measured_sections
from spfde.report.measures import Section, sections
from spfde.report.page import measured_page, page
from spfde.report.run import Run, files, read
from spfde.report.verdict import Verdict, alone, controls, judge, judged, labels

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Report:
    """Runs side by side; the first is the baseline that the others are measured against. files: drawn beside them."""

    runs: tuple[Run, ...]
    files: tuple[tuple[str, Measured], ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """A short name for each run."""
        return labels(self.runs)

    @property
    def sections(self) -> tuple[Section, ...]:
        """Every figure with its definition."""
        return sections(self.runs, self.labels)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What each run shows against the baseline; str() is the text."""
        baseline, name = self.runs[0], self.labels[0]
        if len(self.runs) == 1:
            return (alone(baseline, name),)
        label = dict(zip((run.path for run in self.runs), self.labels, strict=True))
        less = controls(self.runs)
        return tuple(
            judge(run, label[run.path], baseline, name, () if run in less else less) for run in judged(self.runs)
        )

    def table(self) -> Table:
        """The figures as a rich table, with the verdict below.

        Raises:
            ImportError: rich is not installed; `html` needs none.
        """
        try:
            from rich.table import Table
            from rich.text import Text
        except ImportError as error:
            raise ImportError(
                "expected rich, which lays the table out, got no such module, try pip install spfde[cli], or .html()"
            ) from error

        # Text, not str: a run called "[red]" is no markup.
        caption = Text("\n\n".join(("", *map(str, self.verdicts))))
        table = Table(caption=caption, caption_justify="left", caption_style="", box=None, pad_edge=False)
        table.add_column("")
        for label in self.labels:
            table.add_column(Text(label), justify="right")
        for section in self.sections:
            table.add_row(Text(section.title, style="bold"))
            for row in section.rows:
                table.add_row(Text(f"  {row.name}"), *map(Text, row.values), end_section=row is section.rows[-1])
        return table

    def html(self) -> str:
        """The report as one page: no script, nothing fetched, light and dark.

        Raises:
            ImportError: matplotlib is missing.
        """
        measured = measured_sections(self.files)
        if not self.runs:
            return measured_page(measured, [name for name, _ in self.files], headline(self.files))
        return page(self.runs, self.labels, self.verdicts, self.sections, measured)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, making its directory where needed; the path is returned.

        Raises:
            ImportError: matplotlib is missing.
            OSError: the file cannot be written.
        """
        path, text = Path(path), self.html()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")  # a name may be no UTF-8
        except OSError as error:
            raise OSError(f"expected to write the page {path}, got {error.strerror}, try another out") from error
        return path


def compare(runs: Iterable[str | os.PathLike[str]]) -> Report:
    """Read runs; the first dense one, or else the first, is the baseline and comes first.

    Args:
        runs: run directories; one that holds runs (as `spfde train --compare` makes it) stands for them. Files of
            `spfde bench`, `spfde plan` and `spfde profile` are drawn beside them, or alone.

    Raises:
        TypeError: `runs` is a single path.
        ValueError: there is no run, one comes twice, or one is damaged or of another schema, or they
            are of different tasks.
    """
    if isinstance(runs, str | os.PathLike):
        raise TypeError(f"expected a list of run directories, got {runs!r}, try [{runs!r}]")
    given = [Path(run) for run in runs]
    measured = tuple((path.stem, read_file(path)) for path in given if path.suffix == ".json")
    paths = [path for run in given if run.suffix != ".json" for path in _expand(run)]
    if not paths and not measured:
        raise ValueError("expected at least one run directory, got none, try the out directory of spfde train")
    twice = [str(path) for i, path in enumerate(paths) if path.resolve() in map(Path.resolve, paths[:i])]
    if twice:
        raise ValueError(f"expected each run once, got {', '.join(twice)} again, try leaving it out")
    found = [read(path) for path in paths]
    if not found:
        return Report((), measured)
    tasks = {run.task.name: run.path for run in found}
    if len(tasks) > 1:
        raise ValueError(
            f"expected runs of one task, got {' and '.join(f'{name} in {path}' for name, path in tasks.items())},"
            " try a report of each"
        )
    found.sort(key=lambda run: not run.finished)
    baseline = next((run for run in found if run.method == "dense" and run.finished), found[0])
    return Report((baseline, *(run for run in found if run is not baseline)), measured)


def _expand(path: Path) -> list[Path]:
    if not path.is_dir() or (path / files.METRICS).exists():
        return [path]
    return sorted(each.parent for each in path.glob(f"*/{files.METRICS}")) or [path]
