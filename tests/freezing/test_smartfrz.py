"""SmartFRZ in a loop of one's own, by predictors whose answers are known."""

import copy

import pytest
import torch
from freezing.models import IMAGES, MODELS, ResNet
from torch import nn

from spfde import sparsify
from spfde.freezing import METHODS, SmartFRZ, blocks
from spfde.freezing.methods import smartfrz as module
from spfde.freezing.smartfrz.history import SAMPLES, SNAPSHOTS, sampled_layers
from spfde.topology import SET


class Told:
    """A predictor that gives the layers it is shown one probability, and keeps what it was shown."""

    def __init__(self, probability=0.0):
        self.answer, self.seen = probability, []

    def to(self, device):
        return self

    def probability(self, windows):
        self.seen.append(windows)
        return torch.full((len(windows),), self.answer)


@pytest.fixture
def smartfrz(monkeypatch):
    """Makes a freezer whose predictor answers as told."""

    def make(model: nn.Module, probability: float = 0.0, **options) -> SmartFRZ:
        freezer = SmartFRZ(model, blocks(model, torch.randn(IMAGES)), **options)
        freezer.predictor = Told(probability)
        return freezer

    read = module.load_predictor
    monkeypatch.setattr(module, "load_predictor", lambda given: given if isinstance(given, Told) else read(given))
    return make


def epoch(freezer: SmartFRZ, number: int, steps: int) -> list[str]:
    names = freezer.begin_epoch(number)
    for _ in range(steps):
        freezer.observe()
    return names


@pytest.mark.parametrize("name", MODELS)
def test_freezes_from_the_front_once_every_layer_is_sure(name, smartfrz):
    freezer = smartfrz(MODELS[name](), 0.9, ahead=2, fraction=0.7)
    order = [block.name for block in freezer.blocks]
    assert epoch(freezer, 0, 40) == [] and not freezer.predictor.seen  # measures how long an epoch is
    assert epoch(freezer, 1, 40) == []
    assert freezer.reason.startswith(f"{order[0]} stays active: 0 of 30 snapshots")
    layers = [name for block in freezer.blocks[:2] for name, _ in sampled_layers(block)]
    assert [list(windows.shape) for windows in freezer.predictor.seen] == [[len(layers), SNAPSHOTS, SAMPLES]]
    most = freezer.blocks[: max(1, int(0.7 * len(order) + 0.5))]
    assert [block.name for block in freezer.due(2)] == order[: min(2, len(most))]
    assert epoch(freezer, 2, 40) == order[: min(2, len(most))]
    assert freezer.decisions[0].reason == (
        f"probability 0.90 of {layers[0]}, the least of {len(sampled_layers(freezer.blocks[0]))}, at least 0.5"
    )
    for number in range(3, 3 + len(order)):
        epoch(freezer, number, 40)
    assert freezer.frozen == tuple(block.name for block in most)
    assert len({id(windows) for windows in freezer.predictor.seen}) == len(freezer.predictor.seen)


def test_stays_active_below_the_threshold_and_with_windows_that_are_not_full(smartfrz):
    freezer = smartfrz(ResNet(), 0.6, threshold=0.7)
    for number in range(3):
        assert epoch(freezer, number, 31) == []
    assert "probability 0.60 of conv1, the least of 3, below 0.7" in freezer.reason
    short = smartfrz(ResNet(), 0.9)
    for number in range(4):
        assert epoch(short, number, 12) == []
        assert number < 2 or f"{12 * (number - 1)} of 30 snapshots" in short.reason
    assert epoch(short, 4, 12) != []  # the third epoch filled them: 12 + 12 + 6


@pytest.mark.parametrize("every", [40, 100])
def test_no_window_lasts_across_a_move_of_the_masks(every, smartfrz):
    model = sparsify(ResNet(), sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    topology = SET(model, optimizer, total_steps=1000, every=every, drop_fraction=0.3)
    freezer = smartfrz(model)
    moves = 0
    for number in range(3):
        freezer.begin_epoch(number)
        for _ in range(100):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(1 + moves)
            freezer.observe()
            moves += topology.step()
    seen = freezer.predictor.seen
    assert len(seen) >= 2 and all((windows == windows[:, :1, :1]).all() for windows in seen)


def test_goes_on_to_the_bit_within_a_window(smartfrz):
    def moved(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)

    ours = smartfrz(ResNet(), 0.4)
    epoch(ours, 0, 50)
    epoch(ours, 1, 20)
    model = copy.deepcopy(ours.model)
    theirs = smartfrz(model, 0.4)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for freezer in (ours, theirs):
        for _ in range(30):
            moved(freezer.model)
            freezer.observe()
        freezer.begin_epoch(2)
    assert len(ours.predictor.seen) == 1 and ours.reason == theirs.reason
    assert torch.equal(ours.predictor.seen[0], theirs.predictor.seen[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1}, r"threshold in \(0, 1\), got 1"),
        ({"ahead": 0}, "ahead to be an integer >= 1, got 0"),
        ({"seed": -1}, "seed to be an integer >= 0, got -1"),
        ({"predictor": "nowhere.npz"}, "a predictor in nowhere.npz, got an error"),
    ],
)
def test_arguments_out_of_range(options, words, smartfrz):
    with pytest.raises(ValueError, match=f"expected {words}.*; try"):
        smartfrz(ResNet(), **options)


def test_the_shipped_predictor_is_there_by_name():
    model = ResNet()
    freezer = METHODS["smartfrz"](model, blocks(model, torch.randn(IMAGES)))
    for number in range(3):
        epoch(freezer, number, 30)
    assert "probability" in freezer.reason
