"""An epoch's record and its line; where the seconds went."""

import dataclasses
import json
import math
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spfde.levers import Decision
from spfde.train.stats import CATEGORIES, Epoch, Stopwatch, is_whole, parse_lines, reconcile

RECORD = Epoch(
    epoch=3,
    train_loss=0.5,
    train_accuracy=0.75,
    test_accuracy=0.5,
    lr=0.1,
    samples=90,
    flops=1e9,
    seconds={name: 0.1 * i for i, name in enumerate(CATEGORIES)},
    frozen=("layer1.0",),
    sieved=30,
    sparsity=0.9,
    events=(Decision("freeze", "froze layer1.0", "planned"),),
    layers={"conv1": 0.0, "layer1.0.conv1": 0.9},
    memory=2**28,
)


def test_a_record_survives_json():
    values = json.loads(json.dumps(RECORD.to_dict()))
    assert Epoch.from_dict(values) == RECORD
    assert values["total_seconds"] == pytest.approx(math.fsum(values["seconds"].values()), abs=1e-9)
    assert values["events"] == [{"kind": "freeze", "text": "froze layer1.0", "reason": "planned"}]


def test_a_record_of_an_older_version_has_no_layers_and_no_memory():
    values = RECORD.to_dict()
    del values["layers"], values["memory"]
    assert Epoch.from_dict(values) == dataclasses.replace(RECORD, layers={}, memory=0)


def test_training_time_leaves_out_evaluation_and_checkpoint():
    seconds = RECORD.seconds
    expected = sum(seconds.values()) - seconds["evaluation"] - seconds["checkpoint"]
    assert RECORD.training_seconds == pytest.approx(expected)


@pytest.mark.parametrize("cut", ['{"epoch": 1, "tr', "[1]", "nonsense"])
def test_lines_are_read_up_to_the_first_damaged_one(cut):
    assert parse_lines(f'{{"epoch": 0}}\n{cut}\n{{"epoch": 2}}\n') == [{"epoch": 0}]


LATER = {"layers", "memory", "test_loss", "task", "cache", "total_seconds"}  # what an older version did not write


def test_a_line_is_whole_with_every_field_and_category():
    values = RECORD.to_dict()
    assert is_whole(values)
    assert is_whole({name: value for name, value in values.items() if name not in LATER})
    for name in set(values) - LATER:
        assert not is_whole({key: value for key, value in values.items() if key != name}), name
    for wrong in ({"seconds": {"step": 1.0}}, {"seconds": 3}, {"seconds": {**RECORD.seconds, "step": "1"}},
                  {"events": [{"kind": "freeze"}]}, {"events": 1}, {"frozen": None}):  # fmt: skip
        assert not is_whole({**values, **wrong}), wrong


@given(st.integers(0, 6), st.integers(0, 6))
def test_lines_are_cut_and_filled_to_the_checkpoints_epochs(written, checkpointed):
    lines = [{"epoch": e, "from": "line"} for e in range(written)]
    history = [{"epoch": e, "from": "checkpoint"} for e in range(checkpointed)]
    result = reconcile(lines, history)
    assert [record["epoch"] for record in result] == list(range(checkpointed))
    kept = min(written, checkpointed)
    assert [record["from"] for record in result] == ["line"] * kept + ["checkpoint"] * (checkpointed - kept)


def test_lines_of_other_epochs_give_way_to_the_checkpoints():
    history = [{"epoch": 0}, {"epoch": 1}]
    assert reconcile([{"epoch": 5}, {"epoch": 1}], history) == history


class Clock:
    """Time that passes when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@given(st.lists(st.tuples(st.sampled_from(CATEGORIES), st.integers(0, 1000), st.integers(0, 1000))))
def test_the_parts_make_up_the_total(laps):
    clock = Clock()
    watch = Stopwatch(clock)
    expected = dict.fromkeys(CATEGORIES, 0.0)
    for category, before, inside in laps:
        clock.now += before
        with watch(category):
            clock.now += inside
        expected["other"] += before
        expected[category] += inside
    assert watch.seconds() == expected
    assert sum(watch.seconds().values()) == clock.now - 100


def test_it_goes_on_from_the_seconds_that_it_is_given():
    clock = Clock()
    watch = Stopwatch(clock, {"data": 5.0})
    with watch("data"):
        clock.now += 2
    assert watch.seconds() == {**dict.fromkeys(CATEGORIES, 0.0), "data": 7.0}


def test_an_inner_block_takes_its_time_from_the_outer_one():
    clock = Clock()
    watch = Stopwatch(clock)
    with watch("step"):
        clock.now += 1
        with watch("data"):
            clock.now += 2
        clock.now += 4
    seconds = watch.seconds()
    assert (seconds["step"], seconds["data"], seconds["other"]) == (5, 2, 0)


def test_a_block_that_raises_is_closed():
    clock = Clock()
    watch = Stopwatch(clock)
    with pytest.raises(KeyError), watch("evaluation"):
        clock.now += 3
        raise KeyError
    clock.now += 1
    assert (watch.seconds()["evaluation"], watch.seconds()["other"]) == (3, 1)


def test_moving_never_takes_more_than_there_is():
    watch = Stopwatch(count().__next__)
    with watch("step"):
        pass
    watch.move("step", "kernels", 0.25)
    assert (watch.seconds()["step"], watch.seconds()["kernels"]) == (0.75, 0.25)
    watch.move("step", "kernels", 10)
    assert (watch.seconds()["step"], watch.seconds()["kernels"]) == (0, 1)


def test_an_unknown_category_is_refused_and_counts_nothing():
    watch = Stopwatch(Clock())
    with pytest.raises(ValueError, match="expected one of kernels, .*, got 'lunch'"), watch("lunch"):
        pass
    assert set(watch.seconds()) == set(CATEGORIES)
