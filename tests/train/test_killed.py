"""SIGKILL at random moments, and checkpoints damaged at random: nothing is lost that was good."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train.runs import figures, last_state, recipe, same

from spfde.train import CheckpointError, Epoch, checkpoint, fit, run_dir

LONG = pytest.mark.full


def killed_at_random(kills: int, options: dict, tmp_path: Path) -> tuple[Path, Path]:
    """The directories of a run and of the same one that was killed so often, which end with the same bits."""
    options = {"checkpoint_every_steps": 1, "keep_checkpoints": 2, "interval": 1, **options}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), str(whole), str(killed), str(kills), "0"]
    tests = str(Path(__file__).parents[1])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([tests, *filter(None, sys.path)]),
    }
    done = subprocess.run([*command, json.dumps(options)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == kills and told["halves"] > 0  # some hit a checkpoint while it was written
    assert same(last_state(killed), last_state(whole))
    assert not list(killed.rglob("*.partial")) and (killed / run_dir.RESULT).exists()
    return whole, killed


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / run_dir.METRICS).read_text().splitlines()]


@pytest.mark.parametrize(("kills", "epochs"), [(2, 4), pytest.param(20, 24, marks=LONG)])
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(kills, epochs, tmp_path):
    whole, killed = (
        [figures(Epoch.from_dict(line)) for line in lines(out)]
        for out in killed_at_random(kills, {"epochs": epochs}, tmp_path)
    )
    assert whole == killed and len(whole) == epochs


@LONG
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_so_does_one_whose_frozen_front_is_read_from_files(dtype, tmp_path):
    options = {"cache": "auto", "cache_dtype": dtype, "freeze_by": "static", "freeze_options": {"start": 1}}
    whole, killed = killed_at_random(12, {"epochs": 12, "sieve": 0.25, "freeze": 0.1, **options}, tmp_path)
    assert all(line["cache"]["hits"] > 0 for line in lines(whole)[2:])
    assert [line["train_loss"] for line in lines(whole)] == [line["train_loss"] for line in lines(killed)]
    assert not (killed / "cache").exists()


class Trap:
    """What a stranger may put into a pickle: code that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def damaged(whole: bytes, draw: random.Random) -> bytes:
    """A random fault of a file: cut, flipped, blanked, shifted, shuffled, or something else altogether."""
    at, length = draw.randrange(len(whole)), draw.randint(1, 4096)
    head, hit, tail = whole[:at], whole[at : at + length], whole[at + length :]
    faults = {
        "cut": lambda: head,
        "beheaded": lambda: tail,
        "flipped": lambda: head + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :],
        "blanked": lambda: head + bytes(len(hit)) + tail,
        "noise": lambda: head + draw.randbytes(len(hit)) + tail,
        "removed": lambda: head + tail,
        "doubled": lambda: head + hit + hit + tail,
        "swapped": lambda: tail + hit + head,
        "garbage": lambda: draw.randbytes(length),
        "text": lambda: b'{"epoch": 1}\n' * length,
    }
    return faults[draw.choice(list(faults))]()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    out = tmp_path_factory.mktemp("kept")
    fit(recipe(out=out, epochs=2, freeze=0))
    return out


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=LONG)])
def test_damaged_checkpoints_give_one_clear_error_each_and_the_good_one_stays(count, kept, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(kept, out)
    good, newest = run_dir.checkpoints(out)
    content, before = newest.read_bytes(), good.read_bytes()
    state = checkpoint.load(newest)
    draw, refused = random.Random(count), 0
    while refused < count:
        newest.write_bytes(damaged(content, draw))
        try:
            read = checkpoint.read(newest)
        except CheckpointError as error:
            refused += 1
            text = str(error)
            assert text.startswith("expected ") and ", got " in text and ", try " in text
            assert str(newest) in text and "\n" not in text
            used, errors = checkpoint.newest(out)
            assert used.path == good and list(errors) == [newest]
        else:
            assert same(read.session, state["session"])  # it hit padding, or a date
    assert good.read_bytes() == before


def test_nothing_that_a_stranger_made_is_run(kept, tmp_path):
    path, trace = tmp_path / "epoch-000.pt", tmp_path / "trace"
    whole = checkpoint.load(run_dir.checkpoints(kept)[-1])
    torch.save({**whole, "session": Trap(trace)}, path)
    with pytest.raises(CheckpointError, match="expected a complete .*more than tensors and plain values"):
        checkpoint.read(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("history", []),
        ("history", [{"epoch": 0}]),
        ("history", 3),
        ("underway", {"epoch": 9}),
        ("underway", [1]),
        ("layout", {"name": "contiguous"}),
        ("recipe", 1),
        ("samples", "many"),
        ("session", None),
        ("machine", 2.5),
    ],
)
def test_a_state_with_a_fault_is_refused(name, value, kept, tmp_path):
    path = tmp_path / "epoch-001.pt"
    whole = checkpoint.load(run_dir.checkpoints(kept)[-1])
    checkpoint.save(path, {**whole, name: value})
    with pytest.raises(CheckpointError, match=r"expected a whole run's state at .*epoch-001\.pt, got one with a fault"):
        checkpoint.read(path)
    del whole[name]
    checkpoint.save(path, whole)
    with pytest.raises(CheckpointError, match=rf"KeyError: '{name}'"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("part", "told"),
    [("model", "network"), ("optimizer", "optimizer"), ("levers", "run's levers"), ("random", "run")],
)
@pytest.mark.parametrize("value", [None, {}, 3, {"torch": 1, "numpy": ()}])
def test_a_session_that_does_not_fit_is_refused(part, told, value, kept, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(kept, out)
    newest = run_dir.checkpoints(out)[-1]
    whole = checkpoint.load(newest)
    checkpoint.save(newest, {**whole, "session": {**whole["session"], part: value}})
    with pytest.raises(CheckpointError, match=f"expected the checkpoint of this {told}, got another one .*, try "):
        fit(recipe(out=out, epochs=2, freeze=0), resume=True)
