"""`spfde plan`: the page, the file, the check, and every bad input."""

from importlib import import_module

import pytest
import torch
from planning.test_estimate import PROFILE
from typer.testing import CliRunner

from spfde import cli
from spfde.planning import load, steps_to_loss

TINY = "--model gpt_micro --size 8 --batch 2 --sparsity 0.9"


def spfde(arguments):
    return CliRunner().invoke(cli.build("plan"), ["plan", *arguments.split()], env={"COLUMNS": "200"})


def test_a_page_and_a_file_by_a_named_profile(tmp_path):
    PROFILE.save(tmp_path / "board.json")
    result = spfde(f"{TINY} --device {tmp_path / 'board.json'} --json {tmp_path / 'plan.json'}")
    assert result.exit_code == 0, result.output
    assert "x, 1 thread" in result.output and "break-even" in result.output
    assert load(tmp_path / "plan.json").batch == 2


NET = """
from torch import nn
def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
"""


def test_steps_to_a_loss(tmp_path, monkeypatch):
    (tmp_path / "fine_net.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    PROFILE.save(tmp_path / "board.json")
    torch.manual_seed(0)
    model, x, y = import_module("fine_net").build(), torch.randn(12, 2, 4), torch.randint(3, (12,))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    torch.save((x, y), tmp_path / "samples.pt")
    found = steps_to_loss(model, x, y, 1.05, 0.02, momentum=0.9)
    plan = f"--model fine_net:build --input 2x4 --batch 4 --sparsity 0 --device {tmp_path / 'board.json'}"
    files = f"--weights {tmp_path / 'weights.pt'} --samples {tmp_path / 'samples.pt'}"
    result = spfde(f"{plan} --to-loss 1.05 {files} --lr 0.02")
    assert result.exit_code == 0, result.output
    assert f"to a loss of 1.05, {found.steps} steps: the loss falls" in result.output
    told = " ".join(result.output.split())
    assert "s at 4 samples a step (SGD at 0.02 all along, momentum 0.9, no weight decay)" in told


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--to-loss 0.1", "--weights, --samples and --lr"),
        ("--weights a.pt", "--weights only with --to-loss"),
        ("--samples a.pt", "--samples only with --to-loss"),
        ("--to-loss 0.1 --weights a.pt --samples b.pt", "--weights, --samples and --lr"),
        ("--to-loss 0.1 --weights a.pt --samples b.pt --lr 0.1 --recipe {adamw}", "optimizer sgd"),
        ("--to-loss 0.1 --weights a.pt --samples b.pt --recipe {clip}", "no clip with --to-loss"),
        ("--to-loss 0.1 --weights a.pt --samples b.pt --recipe {smooth}", "no label_smoothing with --to-loss"),
        ("--to-loss 0.1 --weights a.pt --samples b.pt --recipe {nesterov}", "no nesterov with --to-loss"),
    ],
)
def test_steps_to_a_loss_need_more(flags, named, tmp_path):
    recipes = {
        "adamw": 'optimizer = "adamw"',
        "clip": "lr = 0.1\nclip = 1.0",
        "smooth": "lr = 0.1\nlabel_smoothing = 0.1",
        "nesterov": "lr = 0.1\nnesterov = true",
    }
    for name, text in recipes.items():
        (tmp_path / name).write_text(text)
    result = spfde(f"{TINY} {flags.format(**{name: tmp_path / name for name in recipes})}")
    assert result.exit_code != 0 and named in str(result.exception)


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
        ("--repeats 2", "--repeats only with --check"),
        ("--clock processor", "--clock only with --check"),
        ("--lr 0.1", "--lr only with --to-loss"),
    ],
)
def test_bad_input_is_named(flags, named):
    result = spfde(f"--batch 2 {flags}")
    assert isinstance(result.exception, ValueError | OSError) and named in str(result.exception)


OWN_BATCH = "import torch\nmade = lambda: (torch.nn.Linear(3, 2), torch.ones(5, 3))\n"


@pytest.mark.parametrize("command", ["plan", "bench", "profile"])
def test_a_batch_beside_the_networks_own_is_refused(command, tmp_path, monkeypatch):
    (tmp_path / "own_batch.py").write_text(OWN_BATCH)
    monkeypatch.chdir(tmp_path)
    arguments = [command, "--model", "own_batch:made", "--batch", "4"]
    result = CliRunner().invoke(cli.build(command), arguments)
    told = "expected no --batch with 'own_batch:made', which has its own batch of 5, got 4"
    assert isinstance(result.exception, ValueError) and told in str(result.exception)


def test_a_corrupt_profile_and_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "cut.json").write_text('{"format": "spfde device profile"')
    for flags in (f"--device {tmp_path / 'cut.json'}", f"--json {tmp_path / 'cut.json' / 'plan.json'}"):
        result = spfde(f"{TINY} {flags}")
        assert isinstance(result.exception, ValueError | OSError) and "cut.json" in str(result.exception)
