"""What comes once in a while: an update of the masks, a freeze, a sieve's boundary, each beside a dense step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import Network, optimizer_of, training_step

import spfde
from spfde.freezing import Prefix, blocks
from spfde.sieving import METHODS as SIEVES
from spfde.topology import METHODS, Topology

ROUNDS = {"rounds": 9, "warmup_rounds": 2, "iterations": 1}
NETWORK = Network("resnet20", batch=32)
SAMPLES = 50_000


def dense_step() -> Callable[[], None]:
    """A training step of the dense network: what everything here is held against."""
    model, x, y = NETWORK.parts("channels_last")
    return training_step(model, x, y, optimizer_of(model))


def test_dense_step(benchmark):
    benchmark.group = "boundaries of resnet20, batch 32"
    benchmark.pedantic(dense_step(), **ROUNDS)


@pytest.mark.parametrize("method", ["set", "rigl", "mest", "snfs"])
def test_update(benchmark, method):
    """A step whose topology moves weights after it; gradients that growth needs are armed in it."""
    benchmark.group = "boundaries of resnet20, batch 32"
    model, (x, y) = spfde.sparsify(NETWORK.make(), 0.9), NETWORK.data()
    optimizer = optimizer_of(model)
    topology: Topology = METHODS[method](model, optimizer, total_steps=10_000, every=1)
    train = training_step(model, x, y, optimizer)

    def updated() -> None:
        train()
        topology.step()

    benchmark.pedantic(updated, **ROUNDS)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_step_behind_a_frozen_front(benchmark, share):
    benchmark.group = "boundaries of resnet20, batch 32"
    model, x, y = NETWORK.parts("contiguous")
    model = spfde.fuse(spfde.sparsify(model, 0.9)).train()
    found = blocks(model, x[:1])
    for block in found[: round(share * len(found))]:
        block.freeze()
    prefix, train = Prefix(model, found, "off", len(x)), training_step(model, x, y, optimizer_of(model))

    def step() -> None:
        with prefix():
            train()

    benchmark.pedantic(step, **ROUNDS)


def test_freeze_and_unfreeze(benchmark):
    """All blocks but the last, to and fro."""
    benchmark.group = "boundaries of resnet20, batch 32"
    model, x, _ = NETWORK.parts("contiguous")
    found = blocks(spfde.sparsify(model, 0.9), x[:1])[:-1]

    def to_and_fro() -> None:
        for block in found:
            block.freeze()
        for block in reversed(found):
            block.unfreeze()

    benchmark.pedantic(to_and_fro, **ROUNDS)


@pytest.mark.parametrize("method", ["circular", "random"])
def test_sieve_boundary(benchmark, method):
    """The end of an epoch of 50,000 samples that were all observed."""
    benchmark.group = "boundaries of resnet20, batch 32"
    sieve = SIEVES[method](SAMPLES, fraction=0.2, interval=1, seed=0)
    losses = torch.rand(SAMPLES, generator=torch.Generator().manual_seed(0))

    def observed() -> None:
        order = torch.tensor(list(sieve))
        sieve.observe(order, losses=losses[order])

    benchmark.pedantic(sieve.end_epoch, setup=observed, **ROUNDS)
