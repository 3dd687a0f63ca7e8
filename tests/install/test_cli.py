"""The command line: what it offers, and that mistakes end in one line."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest

from spfde import cli


def run(monkeypatch, capsys, *arguments):
    """Exit code or message, and what was printed."""
    monkeypatch.setattr(sys, "argv", ["spfde", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code, capsys.readouterr()


def test_help_lists_every_command(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "--help")
    assert code == 0
    for name in cli.COMMANDS:
        assert f" {name} " in printed.out


def test_env_prints_the_report(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "env")
    assert code == 0
    assert "instruction set" in printed.out
    code, printed = run(monkeypatch, capsys, "env", "--json")
    assert code == 0
    assert json.loads(printed.out)["native"]["isa"]


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_without_the_extra_it_is_named(monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    code, _ = run(monkeypatch, capsys, "env")
    assert code == (
        f"spfde: expected typer and rich, which the command needs, got no {name}, try pip install spfde[cli]"
    )


def test_a_misspelt_command_is_refused_with_the_nearest(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "trian")
    assert code == 2
    assert "train" in printed.err


@pytest.mark.parametrize("error", [ValueError, ImportError, OSError])
def test_what_the_user_can_mend_is_one_line(monkeypatch, capsys, error):
    def fail(command):
        raise error("expected this, got that, try the other")

    monkeypatch.setattr(cli, "build", fail)
    code, _ = run(monkeypatch, capsys, "train")
    assert code == "spfde: expected this, got that, try the other"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory.* batch_size"),
        (RuntimeError("alloc.cpp:\n can't allocate memory: 4 TiB"), "memory.* 4 TiB"),
        (RuntimeError("DataLoader worker (pid 3) is killed"), "pid 3.* workers"),
    ],
)
def test_what_the_machine_lacks_is_one_line(monkeypatch, capsys, error, said):
    def fail(command):
        raise error

    monkeypatch.setattr(cli, "build", fail)
    code, _ = run(monkeypatch, capsys, "train")
    assert re.fullmatch(f"spfde: .*{said}.*", code)


def test_an_interrupt_while_a_command_is_imported_is_no_traceback(monkeypatch, capsys):
    def fail(command):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build", fail)
    assert run(monkeypatch, capsys, "train")[0] == 130


@pytest.mark.parametrize("error", [TypeError, RuntimeError])
def test_a_bug_keeps_its_traceback(monkeypatch, error):
    def fail(command):
        raise error("a bug")

    monkeypatch.setattr(cli, "build", fail)
    with pytest.raises(error, match="a bug"):
        cli.main()


def test_a_command_imports_only_its_own_module(root, python):
    program = (
        "import sys; from spfde import cli; cli.build('env');"
        "heavy = {*cli.COMMANDS.values(), 'spfde.train', 'matplotlib', 'sklearn'};"
        "print(heavy & set(sys.modules))"
    )
    assert python(root, "-c", program, **os.environ).stdout == "{'spfde.cli.env'}\n"
