"""What happens between two epochs, and in which order: prune and grow, sieve, reset, settle, freeze."""

import pytest
from train.runs import OPTIONS, recipe

from spfde.freezing import Progressive, is_frozen
from spfde.nn import SparseLayer
from spfde.sieving import Circular
from spfde.topology import MEST
from spfde.train import fit


@pytest.fixture
def log(monkeypatch):
    """Every call that a lever gets in a run, in order."""
    calls = []

    def record(owner, method, entry):
        original = getattr(owner, method)

        def wrapped(self, *args):
            result = original(self, *args)
            calls.append(entry(self, result, *args))
            return result

        monkeypatch.setattr(owner, method, wrapped)

    record(MEST, "step", lambda lever, moved: "prune and grow" if moved else "step")
    record(MEST, "settle", lambda lever, names, module: ("settle", *names))
    record(Progressive, "on", lambda lever, made, event, run: ("freeze", *(d.text for d in made)))
    record(Circular, "end_epoch", lambda lever, event: ("sieve", event is not None, lever.window.shown.sum()))
    return calls


def test_order_at_a_boundary(log):
    result = fit(recipe())
    steps = log.count("step") + log.count("prune and grow")
    assert steps == OPTIONS["epochs"] * 3  # 96 of 128 samples in batches of 32
    for name in result.epochs[-1].frozen[:2]:
        freeze = log.index(("freeze", f"froze {name}"))
        settled = freeze
        while log[settled - 1][0] == "settle":
            settled -= 1
        layers = [layer for entry in log[settled:freeze] for layer in entry[1:]]
        assert f"{name}.conv1" in layers and f"{name}.conv2" in layers
        assert log[settled - 1] == ("sieve", True, 0)  # swapped, and the counters are at zero
        assert log[settled - 2] == "prune and grow"  # on the last step of the epoch before
        assert log[freeze + 1] == "step"


def test_without_an_interval_in_between_nothing_moves(log):
    result = fit(recipe(interval=2, freeze=0.03, epochs=4))
    assert [i for i, entry in enumerate(e for e in log if isinstance(e, str)) if entry == "prune and grow"] == [5]
    assert [{event.kind for event in record.events} for record in result.epochs] == [
        set(),
        {"topology"},
        {"freeze", "sieve"},
        set(),
    ]


def test_what_is_frozen_has_its_target_count_and_stays_as_it_was():
    kept = {}

    def look(record):
        for name in record.frozen:
            block = model.get_submodule(name)
            state = {key: value.clone() for key, value in block.state_dict().items()}
            before = kept.setdefault(name, state)
            assert is_frozen(block) and all(before[key].equal(state[key]) for key in state)

    from spfde import data, models

    digits = data.load("digits", train=128, test=32)
    model = models.create("resnet20", in_channels=1, width=0.25)
    result = fit(recipe(), model=model, train_set=digits.train, test_set=digits.test, on_epoch=look)
    assert result.model is model and len(kept) >= 3
    layers = [m for m in model.modules() if isinstance(m, SparseLayer)]
    assert len(layers) > 10
    assert all(layer.nnz == round((1 - OPTIONS["sparsity"]) * layer.shape.numel()) for layer in layers)


def test_a_topology_event_says_what_moved_and_how_often():
    (event,) = (e for e in fit(recipe(epochs=2, freeze=0, sieve=0)).epochs[0].events)
    assert event.kind == "topology"
    assert event.text.startswith("MEST moved ") and event.reason == "due every 1 epochs"


def test_freezing_saves_the_flops_it_planned():
    result = fit(recipe(sieve=0))
    spent = [record.flops for record in result.epochs]
    never = spent[0] * len(spent)
    assert spent == sorted(spent, reverse=True) and spent[-1] < spent[0]
    assert OPTIONS["freeze"] <= 1 - sum(spent) / never < OPTIONS["freeze"] + 0.06


def test_sieving_saves_its_fraction_of_flops():
    all_of_them, sieved = (fit(recipe(epochs=1, freeze=0, sieve=s)).epochs[0] for s in (0, 0.25))
    assert sieved.samples == 96 and all_of_them.samples == 128
    assert sieved.flops == pytest.approx(0.75 * all_of_them.flops)


def test_each_blocks_rate_reaches_zero_where_it_freezes(monkeypatch):
    from spfde.train.session import Session

    rates, set_rate = [], Session.set_learning_rate

    def spy(self, progress):
        rate = set_rate(self, progress)
        rates.append([group["lr"] for group in self.optimizer.param_groups])
        return rate

    monkeypatch.setattr(Session, "set_learning_rate", spy)
    result = fit(recipe(warmup=0, sieve=0))
    plan = [next(i for i, e in enumerate(result.epochs) if name in e.frozen) for name in result.epochs[-1].frozen]
    assert len(rates[0]) == len(plan) + 1
    for group, epoch in enumerate(plan):
        rate = [step[group] for step in rates]
        first = 4 * epoch  # 128 samples in batches of 32
        assert rate == sorted(rate, reverse=True)
        assert 0 < rate[first - 1] < 0.3 * rate[0] and not any(rate[first:])
    assert rates[-1][-1] > 0
