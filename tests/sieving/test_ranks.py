"""Sieves on many ranks: equal shards, one decision, resuming on another number of them."""

import math
import os
from contextlib import nullcontext
from itertools import chain, product
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from sieve_ranks import CASES, EPOCHS, SAMPLES, run, train, work
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, TensorDataset

from spfde.sieving import Circular, InfoBatch, Random


def found_by(world: int, folder: Path) -> dict[tuple[int, int], dict]:
    """What each rank of two and of `world` found, by (world, rank)."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        mp.spawn(work, (world, str(folder)), nprocs=world)
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
    return {
        (size, rank): torch.load(folder / f"{size}-{rank}.pt", weights_only=True)
        for size in (2, world)
        for rank in range(size)
    }


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory) -> dict[tuple[int, int], dict]:
    return found_by(3, tmp_path_factory.mktemp("ranks"))


def alike(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(torch.nan_to_num(a, -1.0), torch.nan_to_num(two[k], -1.0))
        if isinstance(a, torch.Tensor)
        else a == two[k]
        for k, a in one.items()
    )


@pytest.mark.parametrize("name", CASES)
def test_two_and_three_ranks_decide_as_one_does_to_the_bit(name, on_ranks):
    alone = run(name, EPOCHS)
    for found in on_ranks.values():
        assert all(alike(a, b) for a, b in zip(alone, found[name], strict=True))
        assert alike(alone[-1], found["resumed"][name])  # begun by three and ended by two, or the other way round


@pytest.mark.full
def test_four_ranks_decide_and_resume_as_one_does_to_the_bit(tmp_path):
    on_four = found_by(4, tmp_path)
    assert sorted(on_four) == [(2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3)]
    for name in CASES:
        test_two_and_three_ranks_decide_as_one_does_to_the_bit(name, on_four)


@pytest.mark.parametrize("world", [2, 3])
def test_a_half_epoch_goes_on_with_any_number_of_ranks(world, on_ranks):
    parts = [on_ranks[world, rank] for rank in range(world)]
    begun, rest = (list(chain.from_iterable(part[name] for part in parts)) for name in ("begun", "rest"))
    sieve = Circular(SAMPLES, fraction=0.3, interval=1, seed=5)
    sieve.load_state_dict(parts[0]["half"])
    left = list(sieve)
    assert sorted(begun + left) == sieve.active.tolist() and set(rest) >= set(left)
    train(sieve, 0)
    whole = Circular(SAMPLES, fraction=0.3, interval=1, seed=5)
    train(whole, 0)
    assert alike(sieve.state_dict(), whole.state_dict())
    for other in (1, 2, 4, 5):
        shares = []
        for rank in range(other):
            resumed = Circular(SAMPLES, fraction=0.3, interval=1, seed=5, rank=rank, world=other)
            resumed.load_state_dict(parts[0]["half"])
            shares.append(list(resumed))
        assert {len(each) for each in shares} == {math.ceil(len(left) / other)}
        assert set(chain.from_iterable(shares)) >= set(left)


def test_every_rank_raises_when_one_batch_is_at_fault(on_ranks):
    for world in (2, 3):
        first, second, third = zip(*(on_ranks[world, rank]["faults"] for rank in range(world)), strict=True)
        assert "finite losses" in first[-1] and all(f"on rank {world - 1}" in each for each in first[:-1])
        assert "indices in" in second[0] and all("on rank 0" in each for each in second[1:])
        assert third[-1] == "out of memory" and all(f"on rank {world - 1}" in each for each in third[:-1])


@pytest.mark.parametrize(("samples", "world"), [*product([1, 2, 7, 12], [1, 2, 3, 5])])
def test_shards_are_equal_and_cover_the_order(samples, world):
    shards = [list(Random(samples, fraction=0.0, rank=rank, world=world)) for rank in range(world)]
    assert {len(shard) for shard in shards} == {math.ceil(samples / world)}
    assert set(chain.from_iterable(shards)) == set(range(samples))
    order = Random(samples, fraction=0.0).order().tolist()
    assert [shards[i % world][i // world] for i in range(samples)] == order


def test_a_sharded_sieve_needs_its_process_group():
    sieve = Circular(8, rank=0, world=2)
    batch = torch.tensor(list(sieve))
    with pytest.raises(ValueError, match=r"process group of 2 ranks.*init_process_group, or observe.*gathered=True"):
        sieve.observe(batch, torch.zeros(len(batch), 2), batch * 0)
    sieve.observe(sieve.active, torch.zeros(sieve.volume, 2), sieve.active * 0, gathered=True)
    assert sieve.presentations.sum() == sieve.volume


def test_a_batch_that_shows_another_skipped_is_refused():
    sieve = Circular(40, fraction=0.0)
    order = sieve.order()
    sieve.observe(order[:8], losses=torch.ones(8))
    resumed = Circular(40, fraction=0.0)
    for skipped in (order[16:24], order[34:]):
        resumed.load_state_dict(sieve.state_dict())
        for _ in range(2):  # not only the first time
            with pytest.raises(ValueError, match=rf"expected the first samples to hold {order[8]}, .*skips nothing"):
                resumed.observe(skipped, losses=torch.ones(len(skipped)))
        assert resumed.presentations.equal(sieve.presentations)
    resumed.observe(order[[8, 9, 20, 30]], losses=torch.ones(4))  # an order of the loader's own
    again = Circular(40, fraction=0.0)
    again.load_state_dict(resumed.state_dict())
    assert list(again) == [sample for at, sample in enumerate(order.tolist()) if at >= 10 and at not in (20, 30)]


def test_batches_of_one_sample_tell_by_the_second_whether_another_skipped():
    begun = Circular(40, fraction=0.0)
    order = begun.order()
    begun.observe(order[:8], losses=torch.ones(8))
    for places, skipped in (((20, 30), False), ((20, 21), True)):
        sieve = Circular(40, fraction=0.0)
        sieve.load_state_dict(begun.state_dict())
        sieve.observe(order[[places[0]]], losses=torch.ones(1))
        with pytest.raises(ValueError, match="expected the first samples to hold") if skipped else nullcontext():
            sieve.observe(order[[places[1]]], losses=torch.ones(1))


def test_samplers_and_data_sets_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match=r"expected a data set in DistributedSampler, got a sieve.*sampler="):
        DistributedSampler(Circular(10), num_replicas=2, rank=0)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(ValueError, match=r"num_samples to be an integer >= 1, got Stream; try a map-style data set"):
        Circular(Stream())
    with pytest.raises(ValueError, match=r"got TensorDataset; try its len\(\)"):
        InfoBatch(TensorDataset(torch.zeros(3)))


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_see_every_epoch_s_own_samples(workers):
    sieve = InfoBatch(60, fraction=0.5, epochs=8)
    data = TensorDataset(torch.arange(60))
    loader = DataLoader(data, batch_size=8, sampler=sieve, num_workers=workers, persistent_workers=bool(workers))
    volumes = set()
    for _ in range(3):
        seen = []
        for (samples,) in loader:
            sieve.observe(samples, losses=samples.float())
            seen += samples.tolist()
        assert seen == sieve.order().tolist() and len(loader) == math.ceil(len(sieve) / 8)
        volumes.add(len(seen))
        sieve.end_epoch()
    assert len(volumes) > 1
    dropping = DataLoader(data, batch_size=7, sampler=sieve, drop_last=True)
    assert sum(len(samples) for (samples,) in dropping) == len(sieve) // 7 * 7


@pytest.mark.parametrize("given", [{}, {"num_workers": 2, "prefetch_factor": 3, "persistent_workers": True}])
def test_what_a_loader_had_fetched_ahead_is_not_skipped_after_a_resume(given):
    sieve, data = Random(60, fraction=0.2, interval=1), TensorDataset(torch.arange(60))
    loader, shown = DataLoader(data, batch_sampler=BatchSampler(sieve, 5, drop_last=False), **given), []
    for samples in (batch for (batch,) in loader):
        sieve.observe(samples, losses=torch.ones(len(samples)))
        shown += samples.tolist()
        if len(shown) == 15:
            break
    resumed = Random(60, fraction=0.2, interval=1)
    resumed.load_state_dict(sieve.state_dict())
    loader = DataLoader(data, batch_sampler=BatchSampler(resumed, 5, drop_last=False), **given)
    for epoch in range(2):
        rest = []
        for (samples,) in loader:
            resumed.observe(samples, losses=torch.ones(len(samples)))
            rest += samples.tolist()
        assert (shown if epoch == 0 else []) + rest == resumed.order().tolist()
        resumed.end_epoch()
