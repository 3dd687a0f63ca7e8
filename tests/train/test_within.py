"""A run that stopped within an epoch goes on to the same bits: any step, any generator, any number of workers."""

import multiprocessing
import os
import random
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from train.runs import OPTIONS, Stop, bits, figures, last_state, recipe, same, stop_within

from spfde import data
from spfde.train import Interrupted, Recipe, fit
from spfde.train.build import build
from spfde.train.progress import NullProgress
from spfde.train.run_dir import checkpoint_path, checkpoints
from spfde.train.session import Inputs
from spfde.train.stops import Interrupts

EPOCHS, STEPS = 3, 3
SHORT = {"epochs": EPOCHS, "freeze": 0.05}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, fit(recipe(out=out, **SHORT))


def assert_same_run(out, result, whole):
    assert same(bits(result.model), bits(whole[1].model))
    assert same(last_state(out), last_state(whole[0]))
    assert [figures(e) for e in result.epochs] == [figures(e) for e in whole[1].epochs]


def test_the_run_freezes_and_moves_weights_and_samples(whole):
    events = {event.kind for record in whole[1].epochs for event in record.events}
    assert events == {"topology", "freeze", "sieve"}


@pytest.mark.parametrize(("epoch", "step"), [(0, STEPS), (2, 1)])
def test_stopped_after_a_step_and_resumed(epoch, step, whole, tmp_path):
    stop_within(epoch, step, tmp_path, fields=SHORT)
    assert checkpoints(tmp_path)[-1] == checkpoint_path(tmp_path, epoch, step)
    result = fit(recipe(out=tmp_path, **SHORT), resume=True)
    assert_same_run(tmp_path, result, whole)
    assert [p.name for p in checkpoints(tmp_path)] == [f"epoch-00{e}.pt" for e in range(EPOCHS)]


def test_stopped_after_every_step(whole, tmp_path):
    for epoch in range(EPOCHS):
        for step in range(1, STEPS + 1):
            stop_within(epoch, step, tmp_path, fields=SHORT, resume=bool(checkpoints(tmp_path)))
    assert_same_run(tmp_path, fit(recipe(out=tmp_path, **SHORT), resume=True), whole)


def test_an_optimizer_with_two_moments_and_parts_of_a_batch_goes_on_too(tmp_path):
    options = {**SHORT, "optimizer": "adamw", "accumulate": 2, "clip": 1.0, "crop": 1, "flip": True, "lr": 1e-3}
    first, other = tmp_path / "whole", tmp_path / "stopped"
    whole = first, fit(recipe(out=first, **options))
    stop_within(1, 2, other, fields=options)
    assert_same_run(other, fit(recipe(out=other, **options), resume=True), whole)


def test_a_checkpoint_is_no_larger_than_the_room_that_is_asked_for(tmp_path):
    options = {**OPTIONS, "width": 1, "epochs": 1, "freeze": 0, "optimizer": "adamw", "lr": 1e-3}
    before = build(Inputs(Recipe(**options))).checkpoint_size
    fit(Recipe(out=tmp_path, **options))
    size = checkpoints(tmp_path)[-1].stat().st_size
    assert size <= before <= 1.5 * size


def test_seconds_go_on_from_where_they_were(tmp_path):
    stop_within(0, 2, tmp_path, fields=SHORT)
    before = torch.load(checkpoints(tmp_path)[-1], weights_only=True)["underway"]["seconds"]
    after = fit(recipe(out=tmp_path, **SHORT), resume=True).epochs[0].seconds
    assert before["step"] > 0 and all(after[name] >= before[name] for name in before)


def test_a_crash_costs_the_steps_since_the_last_periodic_checkpoint(whole, tmp_path):
    class Crash(NullProgress):
        def step(self, epoch, step, *_):
            if (epoch, step) == (1, 2):
                raise Stop

    options = {**SHORT, "checkpoint_every_steps": 2}
    with pytest.raises(Stop):
        fit(recipe(out=tmp_path, **options), progress=Crash())
    assert [p.name for p in checkpoints(tmp_path)] == ["epoch-000.pt", "epoch-001-step-000002.pt"]
    assert_same_run(tmp_path, fit(recipe(out=tmp_path, **SHORT), resume=True), whole)


class Augmented(Dataset):
    """Digits with noise from every global generator."""

    def __init__(self, digits):
        self.digits = digits

    def __len__(self):
        return len(self.digits)

    def __getitem__(self, index):
        image, target = self.digits[index]
        noise = torch.randn(image.shape) + float(np.random.rand()) + random.random()
        return image + 0.1 * noise, target


class Dropping(nn.Module):
    """Draws from torch's, NumPy's and Python's generators at every step."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 8, 3, stride=2), nn.Linear(8, 10)

    def forward(self, x):
        x = torch.dropout(self.body(x).relu().mean((2, 3)), 0.3, self.training)
        scale = 1 + 0.1 * (float(np.random.rand()) + random.random()) if self.training else 1
        return self.head(x * scale)


def test_every_generator_goes_on_with_any_number_of_workers(tmp_path):
    digits = data.load("digits", train=128, test=32)
    options = {"epochs": 2, "freeze": 0, "sparsity": 0}

    def run(out, fields=None, **given):
        torch.manual_seed(1)
        sets = {"train_set": Augmented(digits.train), "test_set": Augmented(digits.test)}
        return fit(recipe(out=out, **options, **(fields or {})), model=Dropping(), **sets, **given)

    whole = tmp_path / "whole"
    results = whole, run(whole)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for name, workers in (("same", 0), ("workers", 1)):
        out = tmp_path / name

        def stopped(kept, progress, out=out):
            return run(out, progress=progress)

        stop_within(1, 1, out, fit=stopped)
        assert_same_run(out, run(out, {"workers": workers}, resume=True), results)
    torch.manual_seed(1)
    assert not torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]


def test_the_second_signal_acts_at_once(tmp_path):
    class Press(NullProgress):
        def step(self, *_):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(recipe(out=tmp_path, **SHORT), progress=Press())
    assert not isinstance(caught.value, Interrupted) and not checkpoints(tmp_path)


def test_a_signal_after_an_epoch_stops_there(whole, tmp_path):
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM after epoch 0 \(from 0\), kept in .*epoch-000\.pt") as e:
        fit(recipe(out=tmp_path, **SHORT), on_epoch=lambda record: signal.raise_signal(signal.SIGTERM))
    assert e.value.signal == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert_same_run(tmp_path, fit(recipe(out=tmp_path, **SHORT), resume=True), whole)


def test_a_signal_to_the_whole_group_finds_the_workers_alive(tmp_path):
    digits = data.load("digits", train=128, test=32)

    class Press(NullProgress):
        def step(self, *_):
            children = multiprocessing.active_children()
            assert children
            for number in (signal.SIGINT, signal.SIGTERM):
                for child in children:
                    os.kill(child.pid, number)
            signal.raise_signal(signal.SIGTERM)

    sets = {"train_set": Augmented(digits.train), "test_set": Augmented(digits.test)}
    options = {"epochs": 2, "freeze": 0, "sparsity": 0, "workers": 1, "out": tmp_path}
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM in epoch 0 after step 1 \(from 0\)"):
        fit(recipe(**options), model=Dropping(), **sets, progress=Press())
    assert checkpoints(tmp_path) == [checkpoint_path(tmp_path, 0, 1)]


def test_a_callers_own_handler_stays():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        interrupts = Interrupts()
        with interrupts.caught():
            signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM] and interrupts.asked is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_of_the_main_thread_handlers_stay():
    found = []

    def look():
        with Interrupts().caught():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_without_a_directory_signals_act_as_ever():
    class Press(NullProgress):
        def step(self, *_):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(recipe(**{**OPTIONS, **SHORT}), progress=Press())
    assert not isinstance(caught.value, Interrupted)
