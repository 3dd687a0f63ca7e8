"""Windows of sampled weights: which weights, when, and that they go on to the bit."""

import copy

import pytest
import torch
from freezing.models import IMAGES, MODELS
from torch import nn

from spfde import sparsify
from spfde.freezing import blocks
from spfde.freezing.smartfrz.history import SAMPLES, SNAPSHOTS, History, sampled_layers, stored_values


def layer(kind: str) -> nn.Module:
    conv = nn.Conv2d(16, 32, 3)
    if kind == "sparse":
        return sparsify(nn.Sequential(conv), sparsity=0.5, distribution="global")[0]
    return conv.to(memory_format=torch.channels_last) if kind == "channels_last" else conv


def moved(module: nn.Module) -> None:
    with torch.no_grad():
        next(p for p in module.parameters() if p.dim() > 1).add_(0.01)


@pytest.mark.parametrize("kind", ["dense", "channels_last", "sparse"])
def test_follows_the_same_stored_weights_through_a_window(kind):
    module = layer(kind)
    history = History(module, (0,))
    starts = stored_values(module).clone()
    for _ in range(SNAPSHOTS + 5):  # what comes after a full window is not looked at
        history.observe()
        moved(module)
    window = history.window
    assert history.complete and window.shape == (SNAPSHOTS, SAMPLES)
    torch.testing.assert_close(window - window[:1], (0.01 * torch.arange(SNAPSHOTS))[:, None].expand_as(window))
    first = window[0].tolist()
    assert len(set(first)) == SAMPLES and set(first) <= set(starts.tolist())
    history.begin(SNAPSHOTS)
    history.observe()
    assert set(history.window[0].tolist()) != {value + 0.01 * (SNAPSHOTS + 5) for value in first}


@pytest.mark.parametrize("span", [30, 31, 59, 64, 300])
def test_snapshots_are_spread_evenly_and_the_last_step_is_one(span):
    history = History(nn.Linear(40, 40), (0,))
    history.begin(span)
    taken = []
    for step in range(span):
        before = history.taken
        history.observe()
        taken += [step] * (history.taken - before)
    assert history.complete and taken[-1] == span - 1
    gaps = {b - a for a, b in zip([-1, *taken], taken, strict=False)}
    assert max(gaps) - min(gaps) <= 1


def test_a_small_layer_is_sampled_with_each_weight_about_as_often():
    module = nn.Linear(10, 10)
    history = History(module, (0,))
    history.observe()
    counts = history.window[0].unique(return_counts=True)[1]
    assert len(counts) == 100 and counts.max() - counts.min() <= 1


def test_a_window_that_is_cut_begins_anew_as_short_as_the_masks_stood_still():
    history = History(nn.Linear(40, 40), (0,))
    history.begin(300)
    for _ in range(90):
        history.observe()
    assert history.taken == 9
    history.cut()
    for _ in range(90):
        assert not history.complete
        history.observe()
    assert history.complete and history.span == 90
    history.cut()
    assert not history.complete and history.span == 90


def test_goes_on_to_the_bit():
    module = layer("sparse")
    ours = History(module, (3, 1))
    ours.begin(70)
    for _ in range(20):
        ours.observe()
        moved(module)
    theirs = History(copy.deepcopy(module), (3, 1))
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for _ in range(2):
        for history in (ours, theirs):
            for _ in range(70):
                history.observe()
                moved(history.module)
        assert ours.complete and theirs.complete and torch.equal(ours.window, theirs.window)
        ours.begin(70)
        theirs.begin(70)


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_of_a_block_are_its_weights(name):
    model = MODELS[name]()
    for block in blocks(model, torch.randn(IMAGES)):
        named = dict(model.named_modules())
        layers = sampled_layers(block)
        assert layers and all(named[where] is module for where, module in layers)
        assert {m for _, m in layers} >= {each.module for each in block.layers}
