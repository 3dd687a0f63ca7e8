"""Circular sieving: the swap by hand, the score against a loop, the invariants, resuming."""

import io
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from spfde.sieving import Circular, Random, Sieve, SieveEvent

HIT, MISS = [4.0, 0.0], [0.0, 4.0]  # logits of a sample of class 0


def show(sieve: Sieve, outcomes: dict[int, bool]) -> None:
    """One batch in which each sample, of class 0, is predicted right or wrong."""
    logits = torch.tensor([HIT if right else MISS for right in outcomes.values()])
    sieve.observe(torch.tensor(list(outcomes)), logits, torch.zeros(len(outcomes), dtype=torch.int64))


def at(sieve: Sieve, removed: list[int]) -> Sieve:
    """The sieve with a queue chosen by the test."""
    sieve.load_state_dict({**sieve.state_dict(), "removed": torch.tensor(removed)})
    return sieve


def same_state(one: Sieve, two: Sieve) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a | b)


def train_epoch(sieve: Sieve, seed: int, batch: int = 4) -> None:
    generator = torch.Generator().manual_seed(seed)
    for indices in sieve.order().split(batch):
        logits = torch.randn(len(indices), 3, generator=generator)
        sieve.observe(indices, logits, indices % 3)


def test_a_swap_by_hand():
    sieve = at(Circular(10, fraction=0.4, interval=3), removed=[7, 2, 9, 5])  # active 0 1 3 4 6 8, swaps 2
    show(sieve, {0: True, 1: False, 3: True, 4: True, 6: True, 8: False})
    assert sieve.end_epoch() is None
    show(sieve, {0: False, 1: False, 3: True, 4: True, 6: False, 8: True})  # 0 and 6 are forgotten
    assert sieve.end_epoch() is None
    show(sieve, {0: True, 1: False, 3: True, 4: True, 6: True, 8: True})
    event = sieve.end_epoch()
    # 3 and 4: never forgotten and three times right. 8: never forgotten, but a miss. 1: never right.
    assert event.epoch == 3 and event.moved == 2
    assert "the 2 easiest of 6" in event.reason and "since the last swap (3 samples)" in event.reason
    assert sieve.removed.tolist() == [9, 5, 3, 4]  # 7 and 2 are back, from the head
    assert sieve.active.tolist() == [0, 1, 2, 6, 7, 8]


def test_forgetting_counts_before_loss_and_loss_before_index():
    sieve = at(Circular(8, fraction=0.25, interval=1), removed=[6, 7])  # active 0..5, swaps 1
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0], [2.0, 0.0], [9.0, 0.0], [0.0, 1.0], [9.0, 0.0], [0.1, 0.0]])
    indices = torch.tensor([0, 2, 1, 3, 3, 3, 4])  # 3 has large margins but is forgotten once
    sieve.observe(indices, logits, torch.zeros(7, dtype=torch.int64))
    sieve.end_epoch()
    assert sieve.removed.tolist() == [7, 1]  # 1 and 2 are equal: the lower index


def test_a_sample_that_was_never_correct_is_the_hardest():
    sieve = at(Circular(5, fraction=0.4, interval=1), removed=[3, 4])  # active 0 1 2, swaps 1
    logits = torch.tensor([[-0.01, 0.0], [4.0, 0.0], [0.0, 4.0], [-0.01, 0.0], [4.0, 0.0], [0.0, 4.0]])
    sieve.observe(torch.tensor([0, 1, 1, 2, 2, 2]), logits, torch.zeros(6, dtype=torch.int64))
    sieve.end_epoch()  # 0 almost right but never; 1 and 2 forgotten once, 2 with the lower mean loss
    assert sieve.removed.tolist() == [4, 2]


def test_samples_that_were_not_observed_never_leave():
    sieve = at(Circular(10, fraction=0.4, interval=1), removed=[0, 1, 2, 3])
    show(sieve, {8: False})
    assert sieve.end_epoch().moved == 1  # of the two that could go
    assert sieve.removed.tolist() == [1, 2, 3, 8]
    event = sieve.end_epoch()
    assert event.moved == 0 and "no sample was observed" in event.reason


def test_counters_start_from_zero_in_every_interval():
    sieve = at(Circular(6, fraction=0.34, interval=1), removed=[4, 5])  # active 0..3, swaps 1
    for right in (True, False, True):
        show(sieve, {0: True, 1: right})
    sieve.end_epoch()
    assert sieve.removed.tolist() == [5, 0]
    for one, two in ((False, True), (True, False), (False, False), (True, False)):
        show(sieve, {1: one, 2: two})  # each is forgotten once in this interval, 1 with the lower loss
    sieve.end_epoch()
    assert set(sieve.removed.tolist()) == {0, 1}
    assert sieve.presentations.tolist() == [3, 7, 4, 0, 0, 0]


def test_the_queue_keeps_its_order_until_the_first_draw_is_used_up_and_is_shuffled_after():
    sieve = Circular(200, fraction=0.5, interval=1, seed=3)  # 100 out, 50 swap
    queue = sieve.removed.tolist()
    for expected in (queue[50:], None, None):
        show(sieve, dict.fromkeys(sieve.active.tolist(), True))
        left, head = set(sieve.active.tolist()), sieve.removed[:50].tolist()
        stays = sieve.removed[50:].tolist()
        sieve.end_epoch()
        left -= set(sieve.active.tolist())
        assert set(head) <= set(sieve.active.tolist()) and len(left) == 50
        assert set(sieve.removed.tolist()) == set(stays) | left
        if expected is not None:
            assert sieve.removed[:50].tolist() == expected
        else:
            assert sieve.removed[:50].tolist() != stays and set(sieve.removed[:50].tolist()) & left


@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=9),
        max_size=6,
    )
)
@settings(deadline=None)
def test_counters_equal_those_of_a_loop_over_presentations(batches):
    sieve = Circular(6, fraction=0.0)
    last, expected = {}, torch.zeros(6, 3)  # shown, ever right, forgotten
    for batch in batches:
        indices, guesses, targets = (torch.tensor(column) for column in zip(*batch, strict=True))
        sieve.observe(indices, 3.0 * torch.nn.functional.one_hot(guesses, 3), targets)
        for index, guess, target in batch:
            right = guess == target
            expected[index] += torch.tensor([1.0, 0, last.get(index, False) and not right])
            expected[index, 1] = max(expected[index, 1], right)
            last[index] = right
    window = sieve.window
    assert torch.equal(
        torch.from_numpy(np.stack([window.shown, window.right >> 1, window.forgotten], 1)).float(), expected
    )
    assert torch.equal(sieve.presentations, expected[:, 0].long())


@given(
    kind=st.sampled_from([Circular, Random]),
    num_samples=st.integers(1, 60),
    fraction=st.floats(0, 0.95),
    interval=st.integers(1, 3),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_active_and_removed_partition_the_samples_and_all_get_used(kind, num_samples, fraction, interval, seed):
    sieve = kind(num_samples, fraction=fraction, interval=interval, seed=seed)
    exact = Fraction(repr(fraction))  # as it is written: 0.29 of 100 is 29
    out = math.floor(exact * num_samples)
    swap = min(max(1, math.floor(exact * (num_samples - out))), out)
    used = set(sieve.active.tolist())
    for epoch in range(interval * math.ceil(out / swap) if out else interval):
        assert len(sieve) == num_samples - out and len(sieve.removed) == out
        assert sorted(sieve.active.tolist() + sieve.removed.tolist()) == list(range(num_samples))
        assert sorted(sieve) == sieve.active.tolist()
        train_epoch(sieve, epoch)
        event = sieve.end_epoch()
        assert (event is None) == bool((epoch + 1) % interval)
        assert event is None or event.moved == swap
        used |= set(sieve.active.tolist())
    assert used == set(range(num_samples))


def test_the_paper_s_numbers():
    sieve = Circular(50_000, fraction=0.2)
    assert (len(sieve), len(sieve.removed)) == (40_000, 10_000)
    train_epoch(sieve, 0, batch=5000)
    events = [sieve.end_epoch() for _ in range(5)]
    assert events[:4] == [None] * 4 and events[4].moved == 8_000
    assert isinstance(events[4], SieveEvent) and events[4].reason


def test_order_is_a_pure_function_of_seed_epoch_and_active():
    one, two = Circular(100, seed=5), Circular(100, seed=5)
    torch.manual_seed(1)
    first = list(one)
    torch.manual_seed(2)
    assert first == list(one) == list(two)
    one.end_epoch()
    assert list(one) != first and sorted(one) == sorted(first)
    assert list(Circular(100, seed=6)) != first
    two.load_state_dict(one.state_dict())
    assert list(one) == list(two)


def test_iterating_leaves_torch_s_random_state_alone():
    before = torch.random.get_rng_state()
    sieve = Circular(50, interval=1)
    list(sieve)
    train = sieve.order()
    sieve.observe(train, torch.ones(len(train), 2), torch.zeros_like(train))
    sieve.end_epoch()
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", [Circular, Random])
@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_a_resumed_sieve_goes_on_as_if_nothing_had_happened(kind, stop):
    straight = kind(40, fraction=0.3, interval=2, seed=1)
    resumed = kind(40, fraction=0.3, interval=2, seed=1)
    for epoch in range(10):
        if epoch == stop:
            train_epoch(straight, epoch)  # half way through an interval, counters included
            file = io.BytesIO()
            torch.save(straight.state_dict(), file)
            file.seek(0)
            resumed.load_state_dict(torch.load(file, weights_only=True))
        train_epoch(straight, epoch + 100)
        if epoch >= stop:
            train_epoch(resumed, epoch + 100)
            assert straight.order().equal(resumed.order()) and same_state(straight, resumed)
        a, b = straight.end_epoch(), resumed.end_epoch() if epoch >= stop else None
        if epoch >= stop:
            assert a == b
            assert same_state(straight, resumed)


def test_a_loaded_state_is_a_copy():
    source, sieve = Circular(20), Circular(20)
    state = source.state_dict()
    sieve.load_state_dict(state)
    train_epoch(sieve, 0)
    assert state["shown"].sum() == 0 and source.presentations.sum() == 0
    sieve.removed.fill_(0)
    sieve.active.fill_(0)
    assert sorted(sieve.active.tolist() + sieve.removed.tolist()) == list(range(20))


def test_serves_a_data_loader():
    data = TensorDataset(torch.arange(30), torch.arange(30) % 3)
    sieve = Circular(30, interval=1)
    loader = DataLoader(data, batch_size=7, sampler=sieve)
    for _ in range(3):
        seen = []
        for indices, targets in loader:
            sieve.observe(indices, torch.randn(len(indices), 3), targets)
            seen += indices.tolist()
        assert seen == list(sieve) and len(loader) == math.ceil(24 / 7)
        assert sieve.end_epoch().moved == 4
    assert [len(batch) for batch in BatchSampler(sieve, 10, drop_last=False)] == [10, 10, 4]


def test_observing_has_no_loop_over_samples():
    def calls(n: int) -> int:
        sieve, count = Circular(1000, fraction=0.0), 0
        batch = sieve.order()[:n], torch.randn(n, 4), torch.zeros(n, dtype=torch.int64)

        def note(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(note)
        try:
            sieve.observe(*batch)
        finally:
            sys.setprofile(None)
        return count

    calls(8)
    assert calls(8) == calls(800) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_observes_logits_of_any_precision_that_require_a_gradient(dtype):
    sieve = Circular(4, fraction=0.0)
    logits = torch.tensor([HIT, MISS], dtype=dtype, requires_grad=True)
    sieve.observe(torch.tensor([0, 1]), logits, torch.tensor([0, 0]))
    assert sieve.report().never_learned == (1,)
    assert logits.grad is None


def test_an_empty_batch_counts_nothing():
    sieve = Circular(4)
    sieve.observe(torch.empty(0, dtype=torch.int64), torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert sieve.presentations.sum() == 0


def test_small_sets_keep_the_promise_that_every_sample_is_used():
    sieve = Circular(5, fraction=0.2, interval=1)  # floor(0.2 * 4) = 0, but one sample waits outside
    (waiting,) = sieve.removed.tolist()
    train_epoch(sieve, 0)
    assert sieve.end_epoch().moved == 1
    assert waiting in sieve.active.tolist()


def test_without_a_fraction_nothing_is_ever_out():
    sieve = Circular(10, fraction=0.0, interval=1)
    train_epoch(sieve, 0)
    event = sieve.end_epoch()
    assert event.moved == 0 and "no sample is out" in event.reason and len(sieve) == 10


def test_random_moves_the_same_number_whatever_it_observed():
    sieve = Random(50_000, fraction=0.2, interval=1)
    head = sieve.removed[:8000]
    before = sieve.active
    event = sieve.end_epoch()
    assert event.moved == 8000 and "random" in event.reason
    assert set(head.tolist()) <= set(sieve.active.tolist())
    went = set(before.tolist()) - set(sieve.active.tolist())
    low = sum(sample < 25_000 for sample in went)
    assert len(went) == 8000 and abs(low - 4000) < 400  # nine standard deviations
