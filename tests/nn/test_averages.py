"""Averages and other copies of a model whose masks move: they follow, or are refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import spfde

PATTERNS = ("unstructured", "block:4x4", "fan-in", "channel", "2:4")


class ModelEmaV2:  # as timm's: all of the state_dict, integers too
    def __init__(self, model, decay):
        self.module, self.decay = copy.deepcopy(model), decay

    @torch.no_grad()
    def update_parameters(self, model):
        for mine, theirs in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            mine.copy_(self.decay * mine + (1 - self.decay) * theirs)


class ModelEmaV3(ModelEmaV2):
    @torch.no_grad()
    def update_parameters(self, model):
        for mine, theirs in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - self.decay)
            else:
                mine.copy_(theirs)


AVERAGES = {
    "torch": lambda model, d: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(d)),
    "torch, buffers": lambda model, d: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(d), use_buffers=True),
    "timm v2": ModelEmaV2,
    "timm v3": ModelEmaV3,
}


def network(pattern="unstructured"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8))
    return spfde.sparsify(model, None if pattern == "2:4" else 0.75, pattern=pattern)


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_is_that_of_the_dense_weights_at_the_stored_places(kind, decay, after):
    model = network()
    average = AVERAGES[kind](model, decay)
    average.update_parameters(model)  # torch's first is a copy
    start = model[2].dense_weight()
    layer = model[2]
    average_layer = average.module[2]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    topology = spfde.topology.SET(model, optimizer, total_steps=20, every=2)
    want = start
    for _ in range(7):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(16, 16)), torch.randint(8, (16,))).backward()
        optimizer.step()
        if after:
            topology.step()
            want = torch.where(layer.mask(), want, 0)
        average.update_parameters(model)
        want = decay * want + (1 - decay) * layer.dense_weight()
        if not after:
            topology.step()
            want = torch.where(layer.mask(), want, 0)
    assert torch.equal(average_layer.mask(), layer.mask())
    torch.testing.assert_close(average_layer.dense_weight(), want, rtol=1e-5, atol=1e-6)
    state = average.module.state_dict()
    assert torch.equal(state["2.col"], layer.col)
    assert torch.equal(state["2.row_ptr"], layer.row_ptr)
    if decay == 0 and after:
        x, y = torch.randn(4, 16).requires_grad_(), torch.randn(4, 8)
        mine, theirs = average.module(x), model(x)
        assert torch.equal(mine, theirs)
        assert torch.equal(torch.autograd.grad(mine, x, y)[0], torch.autograd.grad(theirs, x, y)[0])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kernel", ["native", "dense"])
def test_averages_of_every_pattern_follow(pattern, kernel):
    model = network(pattern)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.0), use_buffers=True)
    average.module[2].kernel = kernel
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = spfde.topology.SET(model, optimizer, total_steps=20, every=1)
    for _ in range(3):
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
        topology.step()
        average.update_parameters(model)
    x = torch.randn(4, 16)
    torch.testing.assert_close(average.module(x), model(x))
    assert torch.equal(average.module[2].mask(), model[2].mask())
    assert average.module[2].nnz == model[2].nnz


def test_counts_and_room_that_vary_are_followed():
    model = spfde.sparsify(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8)), 0.9, distribution="erk")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.0), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    topology = spfde.topology.GMP(model, optimizer, total_steps=8, every=1, sparsity=0.9)  # makes room
    counts = set()
    for _ in range(8):
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
        topology.step()
        average.update_parameters(model)
        counts.add(average.module[0].nnz)
        assert torch.equal(average.module[0].dense_weight(), model[0].dense_weight())
    assert len(counts) > 2


def moved(layer):
    positions, free = layer.positions(), torch.ones(layer.grid.size, dtype=torch.bool)
    free[positions] = False
    layer.move_to(torch.cat([positions[3:], free.nonzero().view(-1)[:3]]).sort().values)


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("counted", [True, False])
def test_another_copy_is_refused_once_it_was_averaged_across_a_move(counted, indices):
    model = network()
    teacher = copy.deepcopy(model)
    x = torch.randn(4, 16)
    teacher(x)
    moved(model[2])
    before = teacher(x)  # a snapshot is right as it is
    with torch.no_grad():
        for mine, theirs in zip(teacher.parameters(), model.parameters(), strict=True):
            (mine if counted else mine.data).lerp_(theirs + 1, 0.5)
        for mine, theirs in zip(teacher.buffers() if indices else (), model.buffers(), strict=False):
            mine.copy_(theirs)
    for _ in range(2):
        with pytest.raises(ValueError, match="expected a copy of a layer to be averaged weight by weight"):
            teacher(x)
    with pytest.raises(ValueError, match="averaged weight by weight"):
        teacher.state_dict()
    teacher.load_state_dict(model.state_dict())
    assert torch.equal(teacher(x), model(x))
    assert not torch.equal(teacher(x), before)


@pytest.mark.parametrize("decay", [0.5, 0.999])
@pytest.mark.parametrize("dense", [False, True])
def test_an_average_that_is_loaded_is_refused_as_well(decay, dense):
    model = network()
    teacher = copy.deepcopy(model)

    def loaded():
        mine, theirs = teacher.state_dict(), model.state_dict()
        return {k: decay * v + (1 - decay) * theirs[k] if v.is_floating_point() else theirs[k] for k, v in mine.items()}

    with torch.no_grad():
        model[2].values.add_(torch.randn_like(model[2].values))
    teacher.load_state_dict(loaded())  # the masks are the same
    moved(model[2])
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    with pytest.raises(RuntimeError, match="2: expected a copy of a layer to be averaged weight by weight, got"):
        teacher.load_state_dict(loaded())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items() if key.startswith("2."))
    best = model.state_dict()
    if dense:
        best = spfde.densify(copy.deepcopy(model)).state_dict()
    with torch.no_grad():
        best = {key: value.clone() for key, value in best.items()}
        model[2].values.mul_(2)  # trained on: what is loaded is on no line between
    teacher.load_state_dict(best)
    assert torch.equal(teacher.state_dict()["2.values"], model[2].values / 2)


def test_copies_with_a_life_of_their_own_are_left_alone():
    model, x = network(), torch.randn(4, 16)
    other, snapshot = copy.deepcopy(model), copy.deepcopy(model)
    moved(model[2])
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    topology = spfde.topology.SET(other, optimizer, total_steps=10, every=1)
    for _ in range(2):
        optimizer.zero_grad()
        other(x).sum().backward()
        optimizer.step()
        other(x)
        topology.step()
    kept = snapshot.state_dict()
    model.load_state_dict(kept)
    assert torch.equal(model(x), snapshot(x))
    with torch.no_grad():  # a whole copy
        for part in (nn.Module.parameters, nn.Module.buffers):
            for mine, theirs in zip(part(snapshot), part(other), strict=True):
                mine.copy_(theirs)
    assert torch.equal(snapshot(x), other(x))
    snapshot.double()(x.double())
