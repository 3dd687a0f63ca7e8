"""What all freezers share that decide as the training goes, by one whose answers are written down."""

import copy
import io

import pytest
import torch
from freezing.models import IMAGES, MODELS, ResNet, ViT
from torch import nn

from spfde import sparsify
from spfde.freezing import Freezer, Verdict, blocks, is_frozen
from spfde.levers import Lever
from spfde.topology import SET


class Told(Freezer):
    """Says yes to the first `ready` blocks, gives all back at the epochs in `thaw`, and counts what it is shown."""

    def __init__(self, model, parts, ready=0, thaw=(), **options):
        super().__init__(model, parts, **options)
        self.ready, self.thaw, self.seen, self.asked = ready, thaw, [], []

    def _verdict(self, block, epoch):
        place = self.blocks.index(block)
        self.asked.append((epoch, block.name))
        return Verdict(place < self.ready, f"{place} of {self.ready}")

    def _give_back(self, epoch):
        return "told to" if epoch in self.thaw else None

    def _note(self, inputs, lr):
        self.seen.append((inputs, lr))

    def _restart(self):
        self.seen = []

    def _own_state(self):
        return {"seen": list(self.seen)}

    def _load_own(self, state):
        self.seen = list(state["seen"])


def told(model: nn.Module, **options) -> Told:
    return Told(model, blocks(model, torch.randn(IMAGES)), **options)


@pytest.mark.parametrize("name", MODELS)
def test_freezes_from_the_front_what_is_ready_and_no_more_than_the_fraction(name):
    model = MODELS[name]()
    freezer = told(model, fraction=0.5)
    names = [block.name for block in freezer.blocks]
    most = max(1, int(len(names) / 2 + 0.5))
    assert isinstance(freezer, Lever) and freezer.begin_epoch(0) == []
    assert freezer.reason == f"{names[0]} stays active: 0 of 0"
    freezer.ready = 1
    assert [block.name for block in freezer.due(1)] == names[:1] and freezer.frozen == ()
    assert freezer.begin_epoch(1) == names[:1]
    freezer.ready = len(names)
    assert freezer.begin_epoch(1) == [] and freezer.begin_epoch(2) == names[1:most]
    assert freezer.frozen == tuple(names[:most])
    assert [d.text for d in freezer.decisions] == [f"froze {each}" for each in names[1:most]]
    model.train()
    for block in freezer.blocks:
        assert block.is_frozen == (block.name in freezer.frozen)
    assert all(p.requires_grad for block in freezer.blocks[most:] for p in block.trainable)


def test_only_asks_of_the_front_and_at_its_interval():
    freezer = told(ResNet(), ready=1, interval=3)
    for epoch in range(7):
        freezer.begin_epoch(epoch)
        freezer.end_epoch()
    first, second = (block.name for block in freezer.blocks[:2])
    assert freezer.asked == [(0, first), (0, second), (3, second), (6, second)]
    assert freezer.begin_epoch(2) == [] and freezer.asked[-1] == (6, second)  # behind it


def test_gives_everything_back_with_the_reason_and_begins_anew():
    model = ResNet()
    freezer = told(model, ready=2, thaw=(2,))
    model.train()
    freezer.begin_epoch(0)
    freezer.observe("batch", lr=0.1)
    assert freezer.seen == [("batch", 0.1)] and len(freezer.frozen) == 2
    assert freezer.due(2) == [] and freezer.begin_epoch(2) == []
    assert freezer.frozen == () and freezer.seen == []
    assert [(d.kind, d.reason) for d in freezer.decisions] == [("unfreeze", "told to")]
    assert "gave back layer1.0, layer1.1: told to" in str(freezer)
    assert not any(is_frozen(m) for m in model.modules()) and all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert len(freezer.begin_epoch(3)) == 2


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(IMAGES)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("when", ["before saving", "after loading", "never"])
def test_what_was_seen_before_the_masks_moved_is_forgotten(when):
    model = sparsify(ResNet(), sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    topology = SET(model, optimizer, total_steps=10, every=1, drop_fraction=0.3)
    freezer = told(model)
    freezer.observe(1)
    freezer.observe(2)
    assert freezer.seen == [(1, None), (2, None)]
    if when == "before saving":
        step(model, optimizer)
        assert topology.step()
    file = io.BytesIO()
    torch.save({"freezer": freezer.state_dict(), "model": model.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    resumed = sparsify(ResNet(), sparsity=0.5)
    again = told(resumed)
    again.load_state_dict(kept["freezer"])  # the masks come after
    resumed.load_state_dict(kept["model"])
    if when == "after loading":
        for each, its in ((model, optimizer), (resumed, torch.optim.SGD(resumed.parameters(), 0.1))):
            moving = SET(each, its, total_steps=10, every=1, drop_fraction=0.3)
            step(each, its)
            assert moving.step()
    for each in (freezer, again):
        each.observe(3)
        each.observe(4)
        assert each.seen == [(1, None), (2, None)] * (when == "never") + [(3, None), (4, None)]


def test_resumes_to_the_same_front():
    freezer = told(ViT(), ready=2, fraction=1)
    freezer.begin_epoch(0)
    freezer.observe(1)
    state = freezer.state_dict()
    again = told(ViT(), ready=3, fraction=1)
    again.load_state_dict(copy.deepcopy(state))
    assert again.state_dict() == state and again.frozen == freezer.frozen and again.reason == freezer.reason
    assert again.begin_epoch(0) == [] and again.begin_epoch(1) == [again.blocks[2].name]
    again.load_state_dict(state)  # back to an earlier front
    assert [block.is_frozen for block in again.blocks] == [True, True] + [False] * (len(again.blocks) - 2)


def on_each_rank(rank: int, path: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{path}", rank=rank, world_size=2)
    freezer = told(ResNet(), ready=rank + 1, thaw=(3,) if rank else ())
    assert freezer.begin_epoch(0) == ["layer1.0"] and freezer.due(1) == []
    assert ("not ready on another rank" in freezer.reason) == bool(rank)
    freezer.ready = 2
    assert freezer.begin_epoch(1) == ["layer1.1"] and freezer.begin_epoch(2) == []
    assert freezer.begin_epoch(3) == [] and freezer.frozen == ()
    assert [d.reason for d in freezer.decisions] == ["told to" if rank else "another rank says so"]
    torch.distributed.destroy_process_group()


@pytest.mark.full
def test_ranks_decide_alike(tmp_path):
    torch.multiprocessing.spawn(on_each_rank, (str(tmp_path / "ranks"),), nprocs=2)


def test_another_rank_s_answer_counts(monkeypatch):
    freezer, votes = told(ResNet(), ready=2), iter([True, False, True])
    monkeypatch.setattr(freezer, "_ranks", type("Ranks", (), {"agree": lambda self, flags, any_rank: [next(votes)]})())
    assert freezer.begin_epoch(0) == ["layer1.0"] and "layer1.1 stays active: it is not ready on" in freezer.reason
    assert freezer.begin_epoch(1) == [] and freezer.frozen == ()
    assert [d.reason for d in freezer.decisions] == ["another rank says so"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"interval": 0}, "interval to be an integer >= 1, got 0"),
        ({"fraction": 0}, r"fraction in \(0, 1\], got 0"),
        ({"fraction": 0.999}, "a fraction that leaves 5% of the parameters to train, got "),
    ],
)
def test_arguments_out_of_range(options, words):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    with pytest.raises(ValueError, match=f"expected {words}.*; try"):
        Told(model, blocks(model, torch.randn(1, 64)), **options)


def test_blocks_of_another_model_and_epochs_that_are_none_are_refused():
    with pytest.raises(ValueError, match="expected blocks of this model"):
        Told(ResNet(), blocks(ResNet(), torch.randn(IMAGES)))
    with pytest.raises(ValueError, match="expected epoch to be an integer >= 0, got -1; try"):
        told(ResNet()).begin_epoch(-1)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("freezer", "Static", "a state with freezer 'Told', got 'Static'"),
        ("interval", 2, "a state with interval 1, got 2"),
        ("blocks", ["a"], r"a state with blocks \['layer1.0'.*, got \['a'\]"),
        ("frozen", ["layer1.1"], r"frozen blocks at the front of .*, got \['layer1.1'\]"),
        ("frozen", None, "frozen blocks at the front of .*, got None"),
        ("own", {}, r"a whole state, got a damaged one \(KeyError\('seen'\)\)"),
        ("masks", None, "a whole state, got a damaged one"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(key, value, words):
    freezer = told(ResNet(), ready=1)
    state = copy.deepcopy(freezer.state_dict())
    freezer.begin_epoch(0)
    freezer.observe(1)
    with pytest.raises(ValueError, match=f"expected {words}.*; try"):
        freezer.load_state_dict({**state, key: value})
    assert freezer.frozen == ("layer1.0",) and freezer.seen == [(1, None)]
