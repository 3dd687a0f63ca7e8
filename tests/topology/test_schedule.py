"""A topology as a lever: epochs of varying length, skipped steps, decisions; with equal epochs the same bits."""

from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from topology.networks import OPTIMIZERS, net, train_step
from topology.test_methods import VARIANTS

from spfde.levers import EpochStart, Lever, Step
from spfde.topology import MEST, SET, RigL, Topology


@dataclass
class Training:
    """As much of `spfde.levers.Run` as a topology looks at."""

    epochs: int
    epoch: int = 0


def by_epochs(topology, model, optimizer, lengths, skipped=()):
    """Trains epochs of these lengths; the steps, counted from 1 over all, whose update moved a mask."""
    run, number, moved = Training(len(lengths)), 0, []
    for run.epoch, length in enumerate(lengths):
        assert topology.on(EpochStart(run.epoch, length), run) is None
        for _ in range(length):
            train_step(model, optimizer, number)
            number += 1
            if topology.on(Step(number not in skipped), run):
                moved.append(number)
    return moved


def made(method, every_epochs, total=99, **options):
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    return method(model, optimizer, total_steps=total, every_epochs=every_epochs, **options), model, optimizer


@pytest.mark.parametrize("name", VARIANTS)
def test_equal_epochs_give_the_bits_of_a_fixed_interval(name):
    method, options = VARIANTS[name]
    topology, model, optimizer = made(method, 2, 18, seed=5, **options)
    by_epochs(topology, model, optimizer, [3] * 6)
    twin = net()
    steps = OPTIMIZERS["sgd"](twin.parameters())
    fixed = method(twin, steps, total_steps=18, every=6, seed=5, **options)
    for number in range(18):
        train_step(twin, steps, number)
        fixed.step()
    assert topology.reason == fixed.reason
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("every", [1, 2, 3])
def test_updates_follow_the_last_step_of_an_interval(every):
    lengths = [4, 2, 5, 1, 3, 3, 2]
    topology, model, optimizer = made(SET, every)
    ends = list(accumulate(lengths))
    assert by_epochs(topology, model, optimizer, lengths) == [
        end for epoch, end in enumerate(ends[:-1], 1) if epoch % every == 0
    ]
    assert topology.total_steps == topology.steps_done == ends[-1]


def test_the_end_moves_with_the_epochs():
    """RigL ends at half of the training: of 4 + 4 + 4 + 4 steps as is thought at first, of 4 + 2 + 2 + 2 in truth."""
    topology, model, optimizer = made(RigL, 1, 16, end=0.5)
    run = Training(4)
    topology.on(EpochStart(0, 4), run)
    assert topology.total_steps == 16
    for _ in range(4):
        train_step(model, optimizer, 0)
        topology.on(Step(), run)
    topology.on(EpochStart(1, 2), run)
    assert topology.total_steps == 10 and topology.due(4) is False and not topology.due(6)


def test_a_step_of_growth_by_gradient_is_watched_where_the_epoch_ends():
    topology, model, optimizer = made(RigL, 2, 12)
    run, armed = Training(4), []
    for run.epoch, length in enumerate([2, 3, 1, 4]):
        topology.on(EpochStart(run.epoch, length), run)
        for _ in range(length):
            armed.append(topology.armed)
            train_step(model, optimizer, 0)
            topology.on(Step(), run)
    assert armed == [False] * 4 + [True] + [False] * 5


def test_a_skipped_step_does_not_advance_the_schedule():
    """Skipped within an epoch the update still follows its last step, skipped at its end it follows the next one."""
    topology, model, optimizer = made(SET, 1)
    assert by_epochs(topology, model, optimizer, [3, 3, 3, 3], skipped=(2, 6)) == [3, 7, 9]
    assert topology.steps_done == topology.total_steps == 10
    topology, model, optimizer = made(RigL, 1, end=1.0)
    assert by_epochs(topology, model, optimizer, [3, 3, 3, 3], skipped=(2, 6)) == [3, 7, 9]
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    fixed = SET(model, optimizer, total_steps=12, every=3)
    assert by_epochs(fixed, model, optimizer, [6, 6], skipped=(2, 6)) == [4, 8, 11]


@pytest.mark.parametrize("last", [11, 12])
def test_a_training_whose_last_steps_are_skipped_ends_at_the_target(last):
    topology, model, optimizer = made(MEST, 4, soft=True, drop_fraction=0.5)
    topology.update()
    assert model[2].nnz > topology.target["2"]
    by_epochs(topology, model, optimizer, [4, 4, 4], skipped=range(last, 13))
    assert {name: layer.nnz for name, layer in topology.layers.items()} == topology.target


def test_an_epoch_that_was_shorter_than_told_updates_late():
    topology = made(SET, 1)[0]
    run = Training(3)
    topology.on(EpochStart(0, 5), run)
    assert not topology.on(Step(), run)
    topology.on(EpochStart(1, 5), run)
    assert topology.on(Step(), run)


def test_it_is_a_lever_and_says_what_it_did():
    topology = made(SET, 1)[0]
    assert isinstance(topology, Lever) and topology.needs == {EpochStart, Step}
    run = Training(2)
    topology.on(EpochStart(0, 1), run)
    (decision,) = topology.on(Step(), run)
    assert (decision.kind, decision.text) == ("topology", topology.reason)
    assert decision.reason == "due every 1 epochs"


def test_a_run_by_epochs_resumes_to_the_bit():
    lengths = [3, 2, 4, 2]

    def run(stop=None):
        topology, model, optimizer = made(RigL, 1, 12, seed=1, end=1.0)
        training, number = Training(len(lengths)), 0
        for training.epoch, length in enumerate(lengths):
            topology.on(EpochStart(training.epoch, length), training)
            for _ in range(length):
                train_step(model, optimizer, number)
                topology.on(Step(number != 4), training)
                if number == stop:
                    states = [part.state_dict() for part in (model, optimizer, topology)]
                    topology, model, optimizer = made(RigL, 1, 99, seed=2, end=1.0)
                    for part, state in zip((model, optimizer, topology), states, strict=True):
                        part.load_state_dict(state)
                number += 1
        return model.state_dict(), topology.total_steps

    (whole, total), others = run(), [run(stop) for stop in (3, 4, 6)]
    assert total == 10
    for state, steps in others:
        assert steps == total and all(torch.equal(value, state[key]) for key, value in whole.items())


def test_every_and_every_epochs_exclude_each_other():
    with pytest.raises(ValueError, match="every or every_epochs"):
        made(SET, 2, every=3)
    with pytest.raises(ValueError, match="every_epochs >= 1"):
        made(SET, 0)
    assert issubclass(SET, Topology)


def test_epochs_that_nobody_tells_are_an_error():
    topology, *_ = made(SET, every_epochs=1)
    with pytest.raises(ValueError, match="begin_epoch"):
        topology.step()


def test_a_training_made_for_steps_learns_its_real_length():
    topology, *_ = made(SET, every_epochs=None, total=40, every=5)
    topology.begin_epoch(0, steps=8, epochs=4)
    assert topology.total_steps == 32
