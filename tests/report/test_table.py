"""The table in the terminal, and the command that prints it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from spfde.cli import build
from spfde.report import compare


def printed(report, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(report.table())
    return console.export_text()


def test_the_table_holds_every_figure_and_the_verdict(compared):
    report, _ = compared
    text = printed(report)
    for section in report.sections:
        assert section.title in text
        for row in section.rows:
            line = next(line for line in text.splitlines() if line.strip().startswith(row.name))
            assert all(value in line for value in row.values)
    flat = " ".join(text.split())
    for sentence in str(report.verdicts[0]).splitlines():
        assert sentence in flat


def test_names_are_no_markup(make_run):
    text = printed(compare([make_run("d", "dense"), make_run("s", recipe={"method": "[red]new[/red]"})]))
    assert "[red]new[/red]" in text


@pytest.fixture
def invoke():
    def call(*arguments):
        return CliRunner().invoke(build("report"), ["report", *map(str, arguments)], env={"COLUMNS": "120"})

    return call


def test_the_command_prints_and_writes(pair, tmp_path, invoke):
    page = tmp_path / "out" / "page.html"
    result = invoke(*pair, "--out", page)
    assert result.exit_code == 0, result.output
    assert "training time" in result.output
    assert str(page) in result.output.replace("\n", "")
    assert page.read_text().startswith("<!doctype html>")


def test_the_command_refuses_what_is_no_run(tmp_path, invoke):
    result = invoke(tmp_path / "none")
    assert result.exit_code != 0
    assert isinstance(result.exception, ValueError)
    assert invoke().exit_code == 2
