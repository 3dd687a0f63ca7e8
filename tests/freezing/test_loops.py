"""Every way of freezing in a loop of one's own, in one process and in two under DistributedDataParallel."""

import pytest
import torch
from freezing.loops import EPOCHS, RANKS, WAYS, network, on_two_ranks, plain, train, train_plain

from spfde.freezing import METHODS
from spfde.freezing.schemes import SCHEMES


@pytest.mark.parametrize(
    "way", [way if way != "smartfrz" else pytest.param(way, marks=pytest.mark.full) for way in WAYS]
)
def test_what_is_frozen_does_not_change_by_a_bit_under_adamw_scaler_accumulation_and_clipping(way):
    history = train(way, network())
    assert len(history) == EPOCHS and any(history)
    assert (history[-1] == ()) == (way in SCHEMES and way != "single-shot")


def test_the_ways_are_all_that_there_are():
    assert {*WAYS} == {*METHODS, *SCHEMES} - {"progressive"}


@pytest.mark.full
def test_two_ranks_train_as_one_process_does_while_blocks_freeze_and_thaw(tmp_path):
    first, second = on_two_ranks(tmp_path)
    for name in (*RANKS, "plain", "seconds"):
        assert all(torch.equal(first[name][key], second[name][key]) for key in first[name])
    assert first["seconds"]["mean"].tolist() == [2.0] * 4  # of 1 and 3
    alone = train_plain(model := plain(), model, None)
    for key, weights in alone.items():
        torch.testing.assert_close(first["plain"][key], weights, rtol=1e-12, atol=1e-12)
