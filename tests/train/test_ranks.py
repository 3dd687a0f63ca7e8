"""`fit` on many ranks: what one process would decide, to the same bits when resumed, and ended together."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launched import launch
from torch import nn
from train.runs import figures, last_state, same

from spfde.data import Images
from spfde.levers import Step
from spfde.models import ResNet
from spfde.train import Diverged, Interrupted, RankLost, Recipe, fit
from spfde.train.distributed import joined
from spfde.train.run_dir import METRICS, RUN

CLASSES, SAMPLES = 4, 94  # batches of 20: the last one of 14
# Sieves that pass over samples themselves at the end of an epoch.
PASSES = ("kakurenbo", {"confidence": 0.3}), ("grand", {"at": 2})


def images(count: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (count,), generator=generator)
    pixels = torch.randn(count, 1, 8, 8, generator=generator)
    pixels[torch.arange(count), 0, targets * 2] += 3
    return Images(pixels, targets)


def recipe(out=None, **fields) -> Recipe:
    levers = {"sparsity": 0.6, "topology": "rigl", "freeze": 0.15, "sieve": 0.25}
    common = {"epochs": 4, "batch_size": 20, "layout": "contiguous", "lr": 0.05, "threads": 1, "warmup": 0.0}
    return Recipe(**{**common, **levers, **fields}, out=None if out is None else str(out))


def network(norm: bool = True) -> nn.Module:
    torch.manual_seed(1)
    if norm:
        return ResNet(8, CLASSES, in_channels=1, width=0.25)
    layers = [layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, CLASSES))


def train(run: Recipe, model: nn.Module, train_set=None, **options):
    return fit(run, model=model, train_set=train_set or images(SAMPLES, 0), test_set=images(33, 1), **options)


class At:
    """A lever that acts on one rank after an optimizer step."""

    needs = (Step,)

    def __init__(self, rank: int, step: int, act) -> None:
        self.here, self.step, self.act = int(os.environ.get("RANK", 0)) == rank, step, act

    def on(self, event, run):
        if self.here and run.step == self.step:
            self.act()

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def never() -> None:
    raise AssertionError


def fail() -> None:
    raise LookupError("expected a thing, got none, try it")


def on_four_ranks(rank: int, folder: str) -> None:
    """An epoch is cut where the wrapper's buckets are old in one run and new in the other."""
    torch.set_num_threads(1)
    where = Path(folder)
    with joined():
        levers = [At(rank=3, step=-1, act=never)]
        whole = train(recipe(where / "whole"), network(), levers=levers)
        told = [At(rank=3, step=7, act=lambda: signal.raise_signal(signal.SIGTERM))]
        with pytest.raises(Interrupted, match="SIGTERM in epoch 1 after step"):
            train(recipe(where / "cut"), network(), levers=told)
        resumed = train(recipe(where / "cut"), network(), levers=levers, resume=True)
        assert same(whole.model.state_dict(), resumed.model.state_dict())


def on_two_ranks(rank: int, folder: str) -> None:
    """What each of two ranks does, and finds."""
    torch.set_num_threads(1)
    where, found = Path(folder), {}
    with joined():
        alike = train(recipe(accumulate=2), network(norm=False))
        found["alike"] = {"model": alike.model.state_dict(), "epochs": [figures(epoch) for epoch in alike.epochs]}

        for sieve, options in PASSES:
            sieved = train(recipe(sieve_by=sieve, sieve_options=options), network(norm=False))
            found[sieve] = {"model": sieved.model.state_dict(), "sieved": [epoch.sieved for epoch in sieved.epochs]}

        never_told = [At(rank=1, step=-1, act=never)]
        whole = train(recipe(where / "whole"), network(), levers=never_told)
        found["whole"] = whole.model.state_dict()
        told = [At(rank=1, step=7, act=lambda: signal.raise_signal(signal.SIGINT))]
        with pytest.raises(Interrupted, match="in epoch 1 after step"):
            train(recipe(where / "cut"), network(), levers=told)
        if rank == 0:
            shutil.copytree(where / "cut", where / "alone")
        resumed = train(recipe(where / "cut"), network(), levers=never_told, resume=True)
        found["cut"] = resumed.model.state_dict()
        assert [figures(e) for e in resumed.epochs] == [figures(e) for e in whole.epochs]

        broken = images(SAMPLES, 0)
        if rank == 1:
            broken.images[:] = math.nan
        with pytest.raises(Diverged, match=r"at epoch 0, step 0 .*images hold NaN"):
            train(recipe(), network(), broken)
        with pytest.raises(ValueError, match=r"2 samples or more .* on each of 2 ranks, got batch_size=3 of .*size=4"):
            train(recipe(batch_size=3), network())
        with pytest.raises(ValueError, match=r"expected cache='off' on 2 ranks"):
            train(recipe(cache="auto"), network())
    torch.save(found, where / f"{rank}.pt")


def one_fails(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    error, words = (RankLost, "rank 1, LookupError: expected a thing") if rank == 0 else (LookupError, "^expected a")
    with pytest.raises(error, match=words):
        train(recipe(), network(), levers=[At(rank=1, step=2, act=fail)])


def test_two_ranks_train_one_model(tmp_path):
    launch(on_two_ranks, 2, str(tmp_path), start="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert same(first["alike"], second["alike"]) and same(first["whole"], first["cut"])

    alone = train(recipe(accumulate=2), network(norm=False))  # batches and decisions are those of one process
    state = alone.model.state_dict()
    for name, value in first["alike"]["model"].items():
        torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-5, msg=name)
    for ours, theirs in zip(map(figures, alone.epochs), first["alike"]["epochs"], strict=True):
        for name in ("samples", "frozen", "sieved", "sparsity", "events", "test_accuracy", "train_accuracy", "lr"):
            assert ours[name] == theirs[name], name
        assert ours["flops"] == pytest.approx(theirs["flops"])
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-4)
    assert alone.epochs[-1].frozen and alone.epochs[-1].events
    for sieve, options in PASSES:
        alone = train(recipe(sieve_by=sieve, sieve_options=options), network(norm=False))
        assert same(first[sieve]["model"], second[sieve]["model"])
        assert first[sieve]["sieved"] == [epoch.sieved for epoch in alone.epochs]
        assert max(first[sieve]["sieved"]) > 0

    assert json.loads((tmp_path / "whole" / RUN).read_text())["ranks"] == 2
    assert len((tmp_path / "whole" / METRICS).read_text().splitlines()) == 4
    assert same(last_state(tmp_path / "whole"), last_state(tmp_path / "cut"))
    with pytest.warns(RuntimeWarning, match=r"expected ranks 2, as the checkpoint was made with, got 1"):
        one = train(recipe(tmp_path / "alone"), network(), levers=[At(0, -1, never)], resume=True)
    assert len(one.epochs) == 4 and one.epochs[-1].train_loss < one.epochs[0].train_loss


def test_a_rank_that_fails_ends_all_with_its_error(tmp_path):
    launch(one_fails, 2, str(tmp_path), start="fork")


@pytest.mark.full
def test_four_ranks_go_on_to_the_same_bits(tmp_path):
    launch(on_four_ranks, 4, str(tmp_path), start="fork")
    assert same(last_state(tmp_path / "whole"), last_state(tmp_path / "cut"))


@pytest.mark.full
def test_torchrun_starts_a_killed_rank_again_and_it_goes_on(tmp_path):
    job = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
    ]
    script = Path(__file__).with_name("restarted.py")
    tests = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*job, str(script), str(tmp_path / "killed")],
        env={**os.environ, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"RankLost: expected all 2 ranks to go on, got one that was killed or lost", done.stderr)
    assert len((tmp_path / "killed" / METRICS).read_text().splitlines()) == 4
    launch(train_whole, 2, str(tmp_path / "whole"), start="fork")
    assert same(last_state(tmp_path / "whole"), last_state(tmp_path / "killed"))


def train_whole(rank: int, out: str) -> None:
    torch.set_num_threads(1)
    train(recipe(out, checkpoint_every_steps=2), network(), levers=[At(rank=1, step=-1, act=never)])
