"""Freezers whose schedule is known beforehand, by tables worked out by hand; ResNet has four blocks."""

import math

import pytest
import torch
from freezing.models import IMAGES, MODELS, ResNet

from spfde.freezing import METHODS, FreezeOut, Linear, Static, blocks

NAMES = ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]


def made(kind, **options):
    model = ResNet()
    return kind(model, blocks(model, torch.randn(IMAGES)), **options)


@pytest.mark.parametrize(
    ("kind", "options", "epochs"),
    [
        (Static, {"epochs": 10, "count": 3}, [0, 0, 0]),
        (Static, {"epochs": 10, "fraction": 0.5, "start": 4}, [4, 4]),
        # floor(4 (p - 0.5) / 0.5) blocks: 1 at 6.25 of 10 epochs, 2 at 7.5, 3 at 8.75, 4 at 10
        (Linear, {"epochs": 10, "fraction": 1}, [7, 8, 9]),
        (Linear, {"epochs": 10, "fraction": 1, "interval": 3}, [9, 9, 9]),
        (Linear, {"epochs": 10, "fraction": 0.5, "start": 0}, [5]),
        # 0.8, 0.85, 0.9, 0.95 cubed: 0.512, 0.614125, 0.729, 0.857375
        (FreezeOut, {"epochs": 100}, [52, 62, 73, 86]),
        (FreezeOut, {"epochs": 100, "fraction": 0.5}, [52, 62]),
        (FreezeOut, {"epochs": 100, "curve": "linear", "first": 0.2}, [20, 40, 60, 80]),
        (
            FreezeOut,
            {"epochs": 10, "curve": "squared", "first": 0.2, "interval": 2},
            [2, 2, 4, 8],
        ),  # 0.4, 1.6, 3.6, 6.4
    ],
)
def test_the_plan_by_hand_is_what_freezes(kind, options, epochs):
    freezer = made(kind, **options)
    assert freezer.plan == tuple(zip(epochs, NAMES, strict=False))
    frozen = {epoch: freezer.begin_epoch(epoch) for epoch in range(options["epochs"])}
    assert {e: f for e, f in frozen.items() if f} == {
        e: [name for at, name in freezer.plan if at == e] for e in dict.fromkeys(epochs)
    }
    assert freezer.frozen == tuple(NAMES[: len(epochs)])


def test_freezeout_s_rates():
    freezer = made(FreezeOut, epochs=100, fraction=0.5)
    assert freezer.horizons == {"layer1.0": pytest.approx(0.512), "layer1.1": pytest.approx(0.614125)}
    assert freezer.lr_factor("layer1.0", 0) == pytest.approx(1 / 0.512)
    assert freezer.lr_factor("layer1.0", 0.256) == pytest.approx(0.5 / 0.512)
    assert freezer.lr_factor("layer1.0", 0.512) == freezer.lr_factor("layer1.0", 1) == 0
    assert freezer.lr_factor("layer2.0", 0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    steps = [(i + 0.5) / 1000 for i in range(1000)]
    for name in NAMES:  # scaled: all move as far
        assert sum(freezer.lr_factor(name, p) for p in steps) / 1000 == pytest.approx(0.5, rel=1e-3)
    plain = made(FreezeOut, epochs=100, scaled=False)
    assert plain.lr_factor("layer1.0", 0.256) == pytest.approx(0.5) and set(plain.lr_factors.values()) == {1.0}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", [Static, Linear, FreezeOut])
def test_on_models_written_as_the_well_known_ones(kind, name):
    model = MODELS[name]()
    freezer = kind(model, blocks(model, torch.randn(IMAGES)), epochs=4, fraction=0.6)
    for epoch in range(4):
        freezer.begin_epoch(epoch)
    model.train()
    assert [block.name for block in freezer.blocks if block.is_frozen] == list(freezer.frozen)
    assert len(freezer.frozen) == len(freezer.plan) and freezer.reason


def test_a_plan_resumes_and_another_is_refused():
    freezer, again = made(Linear, epochs=10, fraction=1), made(Linear, epochs=10, fraction=1)
    for epoch in range(8):
        freezer.begin_epoch(epoch)
    again.load_state_dict(freezer.state_dict())
    assert again.frozen == freezer.frozen == ("layer1.0",) * 0 + tuple(NAMES[:1])
    assert again.begin_epoch(8) == ["layer1.1"]
    for other in (made(Linear, epochs=11, fraction=1), made(Static, epochs=10)):
        with pytest.raises(ValueError, match=r"expected a state with .*; try"):
            other.load_state_dict(freezer.state_dict())


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Static, {"epochs": 10, "start": 10}, r"start to be an integer in \[0, 9\], got 10"),
        (Static, {"epochs": 10, "start": 0.5}, r"start to be an integer in \[0, 9\], got 0.5"),
        (Static, {"count": 5}, r"count to be an integer in \[1, 4\], got 5"),
        (Static, {"epochs": 0}, "epochs to be an integer >= 1, got 0"),
        (Linear, {"start": 1}, r"start in \[0, 1\), got 1"),
        (Linear, {"start": False}, r"start in \[0, 1\), got False"),
        (Linear, {"fraction": 0}, r"fraction in \(0, 1\], got 0"),
        (Linear, {"interval": 0}, "interval to be an integer >= 1, got 0"),
        (FreezeOut, {"first": 1.0}, r"first in \(0, 1\), got 1.0"),
        (FreezeOut, {"curve": "cubed"}, "curve to be one of cubic, linear, squared, got 'cubed'"),
        (FreezeOut, {"scaled": 1}, "scaled to be True or False, got 1"),
    ],
)
def test_refusals(kind, options, words):
    with pytest.raises(ValueError, match=f"expected {words}.*try"):
        made(kind, **options)


def test_registered_by_name():
    assert {name: METHODS[name] for name in ("static", "linear", "freezeout")} == {
        "static": Static,
        "linear": Linear,
        "freezeout": FreezeOut,
    }
