"""Iterative magnitude pruning: which epochs are trained, what is kept, what is rewound, and resuming."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import spfde
from spfde.nn import SparseLayer
from spfde.topology import Lottery, Round


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3)
    )


X = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (16,), generator=torch.Generator().manual_seed(2))
SIZES = {"0": 108, "4": 240, "6": 30}


class Trainer:
    """Two steps of SGD an epoch; notes the epochs, and the model before and after."""

    def __init__(self):
        self.calls, self.before, self.after = [], [], []

    def __call__(self, model, first, last):
        self.calls.append((first, last))
        self.before.append(copy.deepcopy(model))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(2 * (last - first)):
            optimizer.zero_grad()
            loss = cross_entropy(model(X), Y)
            loss.backward()
            optimizer.step()
        self.after.append(copy.deepcopy(model))
        return loss.item()


def sparse(model) -> dict[str, SparseLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}


def lottery(train, **options):
    return Lottery(net(), train, **{"sparsity": 0.9, "rounds": 3, "epochs": 4, **options})


@pytest.mark.parametrize(
    ("start", "calls"), [(0, [(0, 4), (0, 4), (0, 4), (0, 4)]), (1, [(0, 1), (1, 4), (1, 4), (1, 4), (1, 4)])]
)
def test_epochs_and_table(start, calls):
    train = Trainer()
    run = lottery(train, rewind_epoch=start)
    table = run.run()
    assert train.calls == calls
    assert table is run.table
    assert [row.number for row in table] == [0, 1, 2, 3]
    stored = [round(378 * 0.1 ** (k / 3)) for k in range(4)]
    assert [row.sparsity for row in table] == pytest.approx([1 - n / 378 for n in stored])
    outcome = cross_entropy(train.before[-1](X), Y).item()
    assert table[-1].outcome != outcome  # what train returned, after its steps
    assert run.done
    with pytest.raises(ValueError, match="expected a round left to train, got all 4 done"):
        run.step()


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
def test_counts_are_exact_and_masks_nested(distribution):
    train = Trainer()
    run = lottery(train, distribution=distribution)
    run.run()
    models = train.after[1:]
    for k, model in enumerate(models, 1):
        same = spfde.sparsify(net(), run.target(k), distribution=distribution)
        counts = {name: m.nnz for name, m in sparse(model).items()}
        if distribution == "global":
            assert sum(counts.values()) == sum(m.nnz for m in sparse(same).values())
        else:
            assert counts == {name: m.nnz for name, m in sparse(same).items()}
    for old, new in pairwise(models):
        for name, layer in sparse(new).items():
            assert bool((sparse(old)[name].mask() | ~layer.mask()).all())


def test_the_largest_trained_weights_are_kept_over_all_layers():
    train = Trainer()
    lottery(train).run()
    dense = train.after[0]
    for old, new in zip(train.after, train.before[1:], strict=False):
        masks = {name: m.mask() for name, m in sparse(new).items()}
        alive = {name: m.mask() for name, m in sparse(old).items()} or {n: m >= 0 for n, m in masks.items()}
        weights = {n: (m.dense_weight() if sparse(old) else m.weight.detach()).abs()
                   for n, m in old.named_modules() if n in masks}  # fmt: skip
        kept = torch.cat([weights[n][masks[n]] for n in masks])
        gone = torch.cat([weights[n][alive[n] & ~masks[n]] for n in masks])
        assert kept.numel() and gone.numel()
        assert float(kept.min()) >= float(gone.max())
    assert dense[0].weight.shape == (6, 2, 3, 3)


@pytest.mark.parametrize("start", [0, 2])
def test_weights_are_rewound_with_biases_and_statistics(start):
    train = Trainer()
    lottery(train, rewind_epoch=start).run()
    early = train.before[1 if start else 0].state_dict()
    for model in train.before[2 if start else 1 :]:
        for name, layer in sparse(model).items():
            assert torch.equal(layer.dense_weight(), early[f"{name}.weight"] * layer.mask())
            assert torch.equal(layer.bias, early[f"{name}.bias"])
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(model.state_dict()[f"1.{key}"], early[f"1.{key}"])


def test_learning_rate_rewinding_keeps_what_was_trained():
    train = Trainer()
    lottery(train, rewind="learning-rate", rewind_epoch=1).run()
    assert train.calls == [(0, 1), (1, 4), (1, 4), (1, 4), (1, 4)]
    for old, new in zip(train.after[1:], train.before[2:], strict=False):
        old = spfde.densify(copy.deepcopy(old))
        for name, layer in sparse(new).items():
            assert torch.equal(layer.dense_weight(), old.get_submodule(name).weight * layer.mask())
            assert torch.equal(layer.bias, old.get_submodule(name).bias)
        assert torch.equal(new[1].running_mean, old[1].running_mean)


@pytest.mark.parametrize("rewind", ["weights", "learning-rate"])
@pytest.mark.parametrize("rounds_before", [0, 1, 2, 4])
def test_resuming_gives_the_same_bits(rewind, rounds_before, tmp_path):
    options = dict(rewind=rewind, rewind_epoch=1)
    whole = lottery(Trainer(), **options)
    whole.run()
    first = lottery(Trainer(), **options)
    for _ in range(rounds_before):
        first.step()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Lottery(
        net().apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") and rounds_before else None),
        Trainer(), sparsity=0.9, rounds=3, epochs=4, **options,
    )  # fmt: skip
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.run() == whole.table
    got, wanted = second.model.state_dict(), whole.model.state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


def test_a_state_does_not_change_with_later_training():
    run = lottery(Trainer())
    run.step()
    state = run.state_dict()
    kept = copy.deepcopy(state)
    run.step()
    for part in ("early", "late"):
        assert all(torch.equal(state[part][key], kept[part][key]) for key in kept[part])
    assert state["table"] == kept["table"]


@pytest.mark.parametrize("pattern", ["block:2x1", "fan-in", "channel"])
def test_patterns(pattern):
    run = lottery(Trainer(), pattern=pattern, sparsity=0.7)
    run.run()
    assert {layer.pattern for layer in sparse(run.model).values()} == {pattern}


def test_a_bare_layer_and_exclusions():
    def train(model, first, last):
        return len(sparse(model))

    run = Lottery(nn.Linear(6, 4), train, sparsity=0.5, rounds=2, epochs=1)
    assert (
        run.run() == [Round(0, 0.0, 0), Round(1, pytest.approx(1 - 17 / 24), 1), Round(2, 0.5, 1)][:1] + run.table[1:]
    )
    assert [row.sparsity for row in run.table] == pytest.approx([0, 1 - 17 / 24, 0.5])
    assert isinstance(run.model, spfde.nn.SparseLinear)
    run = lottery(Trainer(), exclude=["4"])
    run.run()
    assert set(sparse(run.model)) == {"0", "6"}


def test_foreign_states_are_refused_and_change_nothing():
    run = lottery(Trainer())
    run.step()
    state = run.state_dict()
    other = lottery(Trainer(), rounds=4)
    with pytest.raises(ValueError, match="rounds=4.*got 3"):
        other.load_state_dict(state)
    small = Lottery(nn.Sequential(nn.Linear(4, 3)), Trainer(), sparsity=0.9, rounds=3, epochs=4)
    kept = copy.deepcopy(small.model.state_dict())
    with pytest.raises(ValueError, match="expected the state of this model and exclude, got another one's"):
        small.load_state_dict(state)
    run.step()
    less = lottery(Trainer(), exclude=["4"])
    with pytest.raises(ValueError, match="expected the state of this model and exclude"):
        less.load_state_dict(run.state_dict())
    assert all(torch.equal(value, net().state_dict()[key]) for key, value in less.model.state_dict().items())
    assert all(torch.equal(small.model.state_dict()[key], kept[key]) for key in kept)
    assert small.table == other.table == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparsity", 1.0), ("sparsity", 0), ("rounds", 0), ("rewind_epoch", 4), ("rewind_epoch", -1),
        ("rewind", "weight"), ("distribution", {"0": 0.5}), ("exclude", ["7"]),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"expected {name}"):
        lottery(Trainer(), **{name: value})


def test_a_pattern_that_fixes_the_sparsity_is_refused():
    with pytest.raises(ValueError, match="sparsity 0.5.*'2:4'"):
        lottery(Trainer(), pattern="2:4")


def test_bad_models():
    with pytest.raises(TypeError, match="expected a torch.nn.Module, got int"):
        Lottery(3, Trainer(), sparsity=0.5, rounds=1, epochs=1)
    with pytest.raises(ValueError, match="expected a dense model, got '0' already sparse"):
        Lottery(spfde.sparsify(net(), 0.5, distribution="erk"), Trainer(), sparsity=0.5, rounds=1, epochs=1)
