"""What each of two processes under Accelerate does in integrations/test_accelerate.py."""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader, TensorDataset

from spfde.sieving import InfoBatch, Sieve

SAMPLES, BATCH, EPOCHS = 47, 6, 5
DATA = TensorDataset(torch.arange(SAMPLES))


def losses_of(samples: torch.Tensor, epoch: int) -> torch.Tensor:
    return (samples + 1.7 * epoch).sin() + 2


def new(**ranks: Any) -> Sieve:
    return InfoBatch(SAMPLES, fraction=0.6, epochs=8, seed=3, **ranks)


def prepared(accelerator: Accelerator, sieve: Sieve) -> Any:
    return accelerator.prepare(DataLoader(DATA, batch_size=BATCH, sampler=sieve))


def accelerator_of(**given: bool) -> Accelerator:
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**given))


def work(rank: int, folder: str) -> None:
    for split in (False, True):
        for dispatch in (False, True):  # the first rank reads for all
            shards_exactly_once(accelerator_of(split_batches=split, dispatch_batches=dispatch), split)
    resumes_in_mid_epoch(accelerator_of(), folder)
    places_that_two_keep_are_refused(accelerator_of(use_stateful_dataloader=True), folder)
    a_sieve_that_shares_out_itself_is_refused(accelerator_of())
    accelerator_of().end_training()


def shards_exactly_once(accelerator: Accelerator, split: bool) -> None:
    """Every epoch each active sample counts once, whatever even_batches repeats."""
    for gathered in (False, True):
        sieve, alone = new(rank=0, world=1), new(rank=0, world=1)
        loader, repeats = prepared(accelerator, sieve), 0
        for epoch in range(EPOCHS):
            active, before = sieve.active, sieve.presentations
            for (samples,) in loader:
                losses = losses_of(samples, epoch)
                repeats += len(samples)
                if gathered:
                    samples, losses = accelerator.gather((samples, losses))
                sieve.observe(samples, losses=losses, gathered=gathered)
            shown = sieve.presentations - before
            assert shown[active].eq(1).all() and shown.sum() == len(active)
            repeats -= len(active) / accelerator.num_processes
            order = alone.order()
            alone.observe(order, losses=losses_of(order, epoch), gathered=True)
            assert sieve.end_epoch() == alone.end_epoch() and sieve.active.equal(alone.active)
        assert repeats > 0 and len(set(sieve.report().volumes)) > 2  # both were tried
        assert len(loader) == -(-sieve.volume // (BATCH if split else BATCH * accelerator.num_processes))


def resumes_in_mid_epoch(accelerator: Accelerator, folder: str) -> None:
    sieve = new(rank=0, world=1)
    accelerator.register_for_checkpointing(sieve)
    loader = prepared(accelerator, sieve)
    for epoch in range(2):
        shown = []
        for step, (samples,) in enumerate(loader):
            sieve.observe(samples, losses=losses_of(samples, epoch))
            shown += samples.tolist()
            if epoch == 1 and step == 0:
                accelerator.save_state(folder)
                break
        else:
            sieve.end_epoch()
    begun = set(accelerator.gather(torch.tensor(shown)).tolist())

    resumed = new(rank=0, world=1)
    accelerator._custom_objects.clear()
    accelerator.register_for_checkpointing(resumed)
    loader = prepared(accelerator, resumed)
    accelerator.load_state(folder)
    shown = []
    for (samples,) in loader:
        resumed.observe(samples, losses=losses_of(samples, 1))
        shown += samples.tolist()
    left = accelerator.gather(torch.tensor(shown)).tolist()
    assert len(left) - BATCH * accelerator.num_processes < len(set(left)) == resumed.volume - len(begun)
    assert begun | set(left) == set(resumed.active.tolist())
    assert resumed.presentations[resumed.active].eq(2).all()


def places_that_two_keep_are_refused(accelerator: Accelerator, folder: str) -> None:
    """Neither a loader that is told to skip nor one that skips by its own state."""
    state = torch.load(Path(folder) / "custom_checkpoint_0.pkl", weights_only=True)
    loader = prepared(accelerator, new(rank=0, world=1))
    next(iter(loader))
    place = loader.state_dict()
    for skip in (True, False):
        sieve = new(rank=0, world=1)
        sieve.load_state_dict(state)
        loader = prepared(accelerator, sieve)
        if skip:
            loader = accelerate.skip_first_batches(loader, 1)
        else:
            loader.load_state_dict(place)
        with pytest.raises(ValueError, match="expected the first samples to hold .*skips nothing by itself"):
            for (samples,) in loader:
                sieve.observe(samples, losses=losses_of(samples, 1))
        assert sieve.presentations.equal(state["presentations"].long())


def a_sieve_that_shares_out_itself_is_refused(accelerator: Accelerator) -> None:
    sieve = new()
    assert sieve.world == accelerator.num_processes
    with pytest.raises(
        ValueError, match=r"first samples to hold .*try rank=0, world=1|fault on all ranks, got one on rank 1"
    ):
        for (samples,) in prepared(accelerator, sieve):
            sieve.observe(samples, losses=losses_of(samples, 0))
    assert not sieve.presentations.any()
    sieve = new(rank=0, world=1)  # nobody shares these out
    with pytest.raises(ValueError, match=r"2 ranks to show samples of their own, got \d+ on all of them"):
        for (samples,) in DataLoader(DATA, batch_size=BATCH, sampler=sieve):
            sieve.observe(samples, losses=losses_of(samples, 0))
    assert not sieve.presentations.any()
