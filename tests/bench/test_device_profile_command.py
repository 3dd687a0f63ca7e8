"""`spfde bench --device-profile`: the file, its page, and the windows of training in them."""

import pytest
import torch
from typer.testing import CliRunner

from spfde import cli
from spfde.bench import device
from spfde.cli import device_profile as command
from spfde.train import energy
from spfde.tuning.device_profile import load
from spfde.tuning.profile_page import stem
from spfde.tuning.this_device import this_device

TINY = "--device cpu --model resnet20 --batch 1 --window 0.05"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The roofline alone, and no time for trials."""
    without = {"layers": (), "networks": ()}
    monkeypatch.setattr(command, "fill", lambda *args, **options: device.fill(*args, **{**options, **without}))
    monkeypatch.setattr(energy, "TRIAL", 0.0)


def spfde(arguments):
    return CliRunner().invoke(cli.build("bench"), ["bench", *arguments.split()], env={"COLUMNS": "200"})


def test_a_file_and_a_page_named_after_the_device(tmp_path):
    result = spfde(f"--device-profile {tmp_path} {TINY}")
    assert result.exit_code == 0, result.output
    path = tmp_path / f"{stem(this_device('cpu'))}.json"
    made = load(path)
    assert [(cost.sparsity, len(cost.windows)) for cost in made.training] == [(0.0, 2), (0.9, 2)]
    assert "| resnet20, 1 | unstructured 90% |" in path.with_suffix(".md").read_text()
    if made.idle_watts is None:  # this machine has no sensors
        assert "energy not available: " in result.output
        assert made.training[0].joules() is None
    windows = made.training[0].windows
    assert spfde(f"--device-profile {path} {TINY} --sparsity 0.5").exit_code == 0  # goes on
    again = load(path).training
    assert [cost.sparsity for cost in again] == [0.0, 0.9, 0.5]
    assert again[0].windows == windows


def test_without_windows(tmp_path):
    assert spfde(f"--device-profile {tmp_path / 'a.json'} --device cpu --window 0").exit_code == 0
    assert load(tmp_path / "a.json").training == ()


def test_what_is_done_is_kept_when_it_is_stopped(tmp_path, monkeypatch):
    def stopped(*args):
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", stopped)
    result = spfde(f"--device-profile {tmp_path / 'a.json'} {TINY}")
    assert (result.exit_code, "the same command goes on" in result.output) == (130, True)
    assert load(tmp_path / "a.json").peak
    assert "No training was measured" in (tmp_path / "a.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--device-profile {} --model resnet20 --model vgg19_bn", "expected one --model"),
        ("--window 3", "--window only with --device-profile"),
        ("--device-profile {} --linear 8x8", "--linear"),
        ("--device-profile {}/a.txt/b.json", "a.txt"),
        ("--device-profile {} --device cuda", "CUDA"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, said, tmp_path):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "a.txt").touch()
    result = spfde(arguments.format(tmp_path))
    assert isinstance(result.exception, ValueError | OSError), result.output
    assert said in str(result.exception)
