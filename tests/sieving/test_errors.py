"""What a sieve refuses, and that it has changed nothing then."""

import numpy as np
import pytest
import torch

from spfde.sieving import UCB, Circular, InfoBatch, Random


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 3.0}, "num_samples"),
        ({"fraction": 1.0}, "fraction in"),
        ({"fraction": -0.1}, "fraction in"),
        ({"fraction": float("nan")}, "fraction in"),
        ({"fraction": "0.2"}, "fraction in"),
        ({"interval": 0}, "interval"),
        ({"interval": True}, "interval"),
        ({"seed": -1}, "seed"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=rf"expected {words}.*got.*try"):
        Circular(**{"num_samples": 10, **arguments})


@pytest.mark.parametrize(
    ("kind", "given", "plain"),
    [
        (Circular, {"fraction": np.float64(0.29), "interval": np.int32(2)}, {"fraction": 0.29, "interval": 2}),
        (Random, {"fraction": 0}, {"fraction": 0.0}),
        (UCB, {"confidence": 2, "keep": 0}, {"confidence": 2.0, "keep": 0.0}),
        (InfoBatch, {"anneal": 1, "epochs": np.int64(8)}, {"anneal": 1.0, "epochs": 8}),
    ],
)
def test_numbers_of_any_kind_make_one_sieve(kind, given, plain, tmp_path):
    one, two = kind(np.int64(10), seed=np.uint8(3), **given), kind(10, seed=3, **plain)
    assert one.order().equal(two.order())
    torch.save(one.state_dict(), tmp_path / "state.pt")
    two.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    one.load_state_dict(two.state_dict())


def test_a_choice_of_no_sample_is_refused():
    class Nobody(Random):
        def _boundary(self):
            self._choose(torch.empty(0, dtype=torch.int64))

    with pytest.raises(ValueError, match="at least one active sample, got none; try"):
        Nobody(5).end_epoch()


def test_a_sieve_serves_one_training():
    sieve = Circular(10)
    sieve.begin_epoch(2)
    assert sieve.begin_epoch(2) == []
    with pytest.raises(ValueError, match="at epoch 1 or before, got one at epoch 2; try a new one"):
        sieve.begin_epoch(1)


def good() -> dict[str, torch.Tensor]:
    return {
        "indices": torch.tensor([0, 1]),
        "logits": torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        "targets": torch.tensor([0, 0]),
    }


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("indices", torch.tensor([0, 10]), ValueError, r"indices in \[0, 10\), got 10"),
        ("indices", torch.tensor([-1, 0]), ValueError, r"indices in \[0, 10\), got -1"),
        ("indices", torch.tensor([0]), ValueError, r"indices \[n\].*got \[1\]"),
        ("indices", torch.tensor([[0, 1]]), ValueError, r"indices \[n\].*got \[1, 2\]"),
        ("indices", torch.tensor(0), ValueError, r"indices \[n\].*got \[\]"),
        ("indices", torch.tensor([0.0, 1.0]), TypeError, "indices as an int64 tensor, got torch.float32"),
        ("indices", [0, 1], TypeError, "indices as an int64 tensor, got list"),
        ("targets", torch.tensor([0, 2]), ValueError, r"targets in \[0, 2\), got 2"),
        ("targets", torch.tensor([0, -100]), ValueError, r"targets in \[0, 2\), got -100"),
        ("targets", torch.tensor([0]), ValueError, r"targets \[n\]"),
        ("targets", torch.tensor([0, 0], dtype=torch.int32), TypeError, "targets as an int64"),
        ("logits", torch.ones(2), ValueError, r"logits \[n, classes\].*got \[2\], \[2\]"),
        ("logits", torch.ones(3, 2), ValueError, r"logits \[n, classes\]"),
        ("logits", torch.ones(2, 2, dtype=torch.int64), TypeError, "logits as a floating point"),
        ("logits", torch.tensor([[1.0, 0.0], [float("nan"), 0.0]]), ValueError, "finite losses"),
        ("logits", torch.tensor([[1.0, 0.0], [float("-inf"), float("-inf")]]), ValueError, "finite losses"),
    ],
)
def test_observations_that_do_not_fit_change_nothing(name, value, error, words):
    sieve = Circular(10, fraction=0.0)
    with pytest.raises(error, match=words):
        sieve.observe(**{**good(), name: value})
    assert sieve.presentations.sum() == 0
    sieve.observe(**good())
    assert sieve.presentations.sum() == 2


def test_a_sample_that_is_out_cannot_be_observed():
    sieve = Circular(10, fraction=0.5)
    out = sieve.removed[0]
    with pytest.raises(ValueError, match=f"expected active samples, got {out}"):
        sieve.observe(torch.stack([sieve.active[0], out]), torch.ones(2, 2), torch.zeros(2, dtype=torch.int64))
    assert sieve.presentations.sum() == 0


@pytest.mark.parametrize("kind", [dict(num_samples=11), dict(fraction=0.3), dict(interval=4), dict(seed=1)])
def test_the_state_of_another_sieve_is_refused(kind):
    sieve = Circular(10)
    with pytest.raises(ValueError, match=f"expected a state with {next(iter(kind))}"):
        sieve.load_state_dict(Circular(**{"num_samples": 10, **kind}).state_dict())


def test_the_state_of_another_method_is_refused():
    with pytest.raises(ValueError, match="method 'Circular', got 'Random'"):
        Circular(10).load_state_dict(Random(10).state_dict())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("removed", torch.tensor([1, 1])),
        ("removed", torch.tensor([1, 10])),
        ("removed", torch.tensor([-1, 1])),
        ("removed", torch.tensor([1])),
        ("removed", [1, 2]),
        ("shown", torch.zeros(10, dtype=torch.int64)),
        ("right", None),
        ("seen", torch.zeros(1, dtype=torch.uint8)),
        ("seen", torch.zeros(10, dtype=torch.bool)),
        ("volumes", [1.5]),
        ("epoch", -1),
        ("epoch", 1.0),
        ("unused", 3),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(name, value):
    sieve = Circular(10)
    before = sieve.state_dict()
    with pytest.raises(ValueError, match=r"expected.*got.*try another checkpoint"):
        sieve.load_state_dict({**before, "epoch": 7, name: value})
    after = sieve.state_dict()
    assert all(torch.equal(after[k], v) if isinstance(v, torch.Tensor) else after[k] == v for k, v in before.items())


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({}, TypeError, "logits and targets, or losses"),
        ({"losses": torch.ones(2), "logits": torch.ones(2, 2), "targets": torch.tensor([0, 1])}, TypeError, "mixture"),
        ({"losses": torch.ones(2), "targets": torch.tensor([0, 1])}, TypeError, "mixture"),
        ({"logits": torch.ones(2, 2), "correct": torch.ones(2, dtype=torch.bool)}, TypeError, "mixture"),
        ({"losses": torch.ones(3), "correct": torch.ones(2, dtype=torch.bool)}, ValueError, "losses"),
        ({"losses": torch.ones(2), "correct": torch.ones(2)}, TypeError, "correct"),
        ({"losses": [1.0, 1.0], "correct": torch.ones(2, dtype=torch.bool)}, TypeError, "losses"),
        ({"losses": torch.tensor([1, torch.inf]), "correct": torch.ones(2, dtype=torch.bool)}, ValueError, "finite"),
    ],
)
def test_losses_that_do_not_fit_change_nothing(given, error, words):
    sieve = Circular(10, fraction=0)
    with pytest.raises(error, match=words):
        sieve.observe(torch.tensor([0, 1]), **given)
    assert not sieve.presentations.any() and not sieve.window.shown.any()


def test_losses_that_are_there_count_as_those_of_logits():
    logits, targets, indices = torch.randn(10, 3), torch.arange(10) % 3, torch.arange(10)
    first, second, control = (kind(10, fraction=0, interval=1) for kind in (Circular, Circular, Random))
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert first.observe(indices, logits, targets) is None
    assert second.observe(indices, losses=losses, correct=logits.argmax(1) == targets) is None
    for name in ("shown", "forgotten", "loss", "right"):
        assert (getattr(first.window, name) == getattr(second.window, name)).all()
    assert first.presentations.equal(second.presentations)
    control.observe(indices, losses=losses)  # a task without classes
    control.observe(indices, losses=torch.full((10,), 3e38))  # large, and finite
    assert control.presentations.eq(2).all()
