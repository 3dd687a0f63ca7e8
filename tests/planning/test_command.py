"""`spfde plan`: the page, the file, the check, and every bad input."""

import pytest
from planning.test_estimate import PROFILE
from typer.testing import CliRunner

from spfde import cli
from spfde.planning import load

TINY = "--model gpt_micro --size 8 --batch 2 --sparsity 0.9"


def spfde(arguments):
    return CliRunner().invoke(cli.build("plan"), ["plan", *arguments.split()], env={"COLUMNS": "200"})


def test_a_page_and_a_file_by_a_named_profile(tmp_path):
    PROFILE.save(tmp_path / "board.json")
    result = spfde(f"{TINY} --device {tmp_path / 'board.json'} --json {tmp_path / 'plan.json'}")
    assert result.exit_code == 0, result.output
    assert "x, 1 thread" in result.output and "break-even" in result.output
    assert load(tmp_path / "plan.json").batch == 2


def test_a_check_says_how_far_off_it_is(tmp_path):
    PROFILE.save(tmp_path / "board.json")
    result = spfde(f"{TINY} --device {tmp_path / 'board.json'} --fuse --check --repeats 1")
    assert "sparse step: planned" in result.output and "measured" in result.output
    assert (result.exit_code == 1) == (", beyond 20%" in result.output)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--model resnet31", "resnet32"),
        ("--model torch:no_such", "no_such"),
        ("--device no-such-board", "no-such-board"),
        ("--device nowhere.json", "nowhere.json"),
        ("--sparsity 1.5", "sparsity"),
        ("--pattern nonsense", "pattern"),
        ("--recipe nowhere.toml", "nowhere.toml"),
    ],
)
def test_bad_input_is_named(flags, named):
    result = spfde(f"--batch 2 {flags}")
    assert isinstance(result.exception, ValueError | OSError) and named in str(result.exception)


def test_a_corrupt_profile_and_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "cut.json").write_text('{"format": "spfde device profile"')
    for flags in (f"--device {tmp_path / 'cut.json'}", f"--json {tmp_path / 'cut.json' / 'plan.json'}"):
        result = spfde(f"{TINY} {flags}")
        assert isinstance(result.exception, ValueError | OSError) and "cut.json" in str(result.exception)
