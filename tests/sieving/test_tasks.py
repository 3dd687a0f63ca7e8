"""Any task: soft labels, mixed samples, regression and sequences by their losses, in loops of one's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from spfde.sieving import EL2N, METHODS, UCB, Circular, InfoBatch, Kakurenbo, Once, Sieve


def epoch_of_losses(sieve: Sieve, losses: torch.Tensor) -> None:
    for samples in sieve.order().split(3):
        sieve.observe(samples, losses=losses[samples])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_losses_alone_decide_where_there_are_no_classes(name):
    options = {"at": 1, "epochs": 8} if name in ("once", "forgetting", "el2n", "grand") else {}
    sieve = METHODS[name](12, fraction=0.25, **options)
    losses = torch.tensor([5.0, 1, 9, 7, 2, 8, 6, 3, 11, 10, 4, 12])
    if sieve.by_logits:
        with pytest.raises(ValueError, match=rf"logits and targets for {type(sieve).__name__}, got losses; try"):
            epoch_of_losses(sieve, losses)
        return
    epoch_of_losses(sieve, losses)
    assert sieve.presentations.sum() == len(sieve.active) and sieve.report().never_learned == ()
    if name in ("once", "forgetting"):
        sieve.end_epoch()
        assert sieve.removed.tolist() == [1, 4, 7]  # the lowest mean losses


def test_sequences_of_a_language_model_are_samples():
    tokens = torch.randint(7, (20, 5))
    model = torch.nn.Sequential(torch.nn.Embedding(7, 7))
    sieve = Circular(20, fraction=0.25, interval=1)
    for samples, words in DataLoader(TensorDataset(torch.arange(20), tokens), batch_size=4, sampler=sieve):
        logits = model(words[:, :-1])
        losses = F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten(), reduction="none").view(len(words), -1)
        sieve.observe(samples, losses=losses.mean(1))
    active, means = sieve.active, torch.from_numpy(sieve.window.mean_loss())
    event = sieve.end_epoch()
    easiest = active[means[active].argsort(stable=True)[: event.moved]]
    assert event.moved == 3 and sieve.removed[-3:].tolist() == easiest.tolist() and "loss" in event.reason


def test_soft_labels_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # p = (3/4, 1/4), (1/2, 1/2)
    soft = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    sieve = Circular(2, fraction=0.0)
    sieve.observe(torch.arange(2), logits, soft)
    assert sieve.window.loss.tolist() == pytest.approx([-0.5 * math.log(3 / 16), math.log(2)], rel=1e-6)
    assert not sieve.window.judged and sieve.report().never_learned == ()
    errors = EL2N(2, fraction=0.0, at=1, epochs=4, average=1)
    errors.observe(torch.arange(2), logits, soft)
    assert errors.scores.tolist() == pytest.approx([math.sqrt(2) / 4, math.sqrt(0.5)], rel=1e-6)
    with pytest.raises(ValueError, match=r"logits \[n, classes\] and classes \[n\] for Kakurenbo, .*try InfoBatch"):
        Kakurenbo(2).observe(torch.arange(2), logits, soft)


@pytest.mark.parametrize("kind", [InfoBatch, UCB, Once])
def test_mixed_samples_count_by_the_loss_of_the_mixture(kind):
    x, y = torch.randn(24, 4), torch.arange(24) % 3
    model, mixed = torch.nn.Linear(4, 3), torch.zeros(24)
    sieve = kind(24, fraction=0.5, **({"at": 1, "epochs": 4} if kind is Once else {}))
    for samples in sieve.order().split(8):
        other, part = samples.flip(0), 0.7
        logits = model(part * x[samples] + (1 - part) * x[other])
        first, second = (F.cross_entropy(logits, y[each], reduction="none") for each in (samples, other))
        mixed[samples] = (part * first + (1 - part) * second).detach()
        sieve.observe(samples, losses=part * first + (1 - part) * second)
    soft = kind(24, fraction=0.5, **({"at": 1, "epochs": 4} if kind is Once else {}))
    for samples in soft.order().split(8):  # the same as one target of two classes
        labels = 0.7 * F.one_hot(y[samples], 3) + 0.3 * F.one_hot(y[samples.flip(0)], 3)
        soft.observe(samples, model(0.7 * x[samples] + 0.3 * x[samples.flip(0)]), labels)
    sieve.end_epoch(), soft.end_epoch()
    assert sieve.removed.equal(soft.removed)
    if kind is InfoBatch:
        assert set(sieve.removed.tolist()) < set((mixed < mixed.mean()).nonzero().flatten().tolist())
    elif kind is Once:
        assert sieve.removed.tolist() == sorted(mixed.argsort()[:12].tolist())
