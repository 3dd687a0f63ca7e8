"""Freezers that decide by what they see of the network: their rules by hand, what they leave alone, and resuming."""

import copy
import io
import math
from itertools import chain as joined
from itertools import pairwise

import numpy as np
import pytest
import torch
from freezing.models import IMAGES, MODELS, ResNet
from torch import nn

from spfde import sparsify
from spfde.analysis import sp_loss
from spfde.freezing import METHODS, AutoFreeze, Egeria, SimFreeze, blocks
from spfde.freezing.methods.egeria import trend
from spfde.freezing.probe import Probe
from spfde.topology import SET

SHORT = {"every": 1, "bootstrap": 0, "samples": 6}


def chain(depth: int = 5) -> nn.Sequential:
    """Linear layers without bias: what comes out of the first is its input times its weight."""
    return nn.Sequential(*[nn.Linear(3, 3, bias=False) for _ in range(depth)])


def made(kind, model, example=None, **options):
    return kind(model, blocks(model, torch.randn(1, 3) if example is None else example), **options)


def set_weight(layer: nn.Linear, weight: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    return weight


# ---- Egeria ---------------------------------------------------------------------------------------------------------


def plasticity(x: np.ndarray, now: np.ndarray, before: np.ndarray) -> float:
    """Tung & Mori's loss between x @ now.T and x @ before.T, in float64."""
    grams = [y @ y.T for y in (x @ now.T, x @ before.T)]
    g, h = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in grams)
    return float(((g - h) ** 2).sum() / len(x) ** 2)


def test_the_trend_by_hand():
    assert trend([1, 2, 3]) == pytest.approx(1.0)  # from 1 to 3 at a mean of 2
    assert trend([3, 3, 3, 3]) == 0 and trend([0, 0]) == 0
    assert trend([1.2, 1.1, 1.0]) == pytest.approx(0.2 / 1.1)
    values = np.random.default_rng(0).random(7)
    slope = np.polyfit(range(7), values, 1)[0]
    assert trend(values.tolist()) == pytest.approx(abs(slope) * 6 / values.mean())


def test_egeria_freezes_the_front_block_when_its_plasticity_is_level():
    rng, model = np.random.default_rng(1), chain()
    freezer = made(Egeria, model, window=3, tolerance=0.2, **SHORT)
    x = torch.randn(9, 3)
    probe = x[:6].double().numpy()  # as many as samples
    first, drift = (rng.standard_normal((3, 3)) for _ in range(2))
    assert freezer.begin_epoch(0) == []
    values, ready = [], []
    for step, way in enumerate([0, 0.5, 1.0, 2.0, 2.05, 2.0, 2.02]):  # moving away, then level
        set_weight(model[0], first + way * drift)
        freezer.observe(x if step == 0 else torch.randn(9, 3), lr=0.1)  # the samples of the first batch stay
        values.append(plasticity(probe, first + way * drift, first))
        seen = values[1:][-3:]
        change = abs(np.polyfit(range(len(seen)), seen, 1)[0]) * 2 / np.mean(seen) if len(seen) == 3 else math.inf
        ready.append(change < 0.2)
        assert (freezer.due(1) != []) == ready[-1]
    assert ready[-1] and not any(ready[:4])  # what the scenario was made for
    assert freezer.begin_epoch(1) == ["0"]  # not the second: nothing was seen of it
    assert freezer.decisions[0].reason == f"its plasticity changed by {change:.1%} over 3 comparisons, below 20.0%"
    assert freezer.reason == "1 stays active: 0 of 3 comparisons with one reference"


def test_egeria_takes_its_reference_anew_after_three_windows():
    model = chain()
    freezer = made(Egeria, model, window=2, tolerance=1e-6, **SHORT)
    x = torch.randn(6, 3)
    freezer.begin_epoch(0)
    weights = [np.eye(3) + step for step in range(9)]
    for weight in weights:  # a reference and 6 values, then another reference and a value
        set_weight(model[0], weight)
        freezer.observe(x, lr=0.1)
    value = plasticity(x.double().numpy(), weights[8], weights[7])
    assert freezer.state_dict()["own"]["values"] == [pytest.approx(value, rel=1e-3)]


def test_egeria_s_plasticity_is_the_loss_between_network_and_a_copy():
    model = sparsify(ResNet(), sparsity=0.5)
    freezer = made(Egeria, model, torch.randn(IMAGES), window=3, **SHORT)
    optimizer, x = torch.optim.SGD(model.parameters(), 0.05), torch.randn(6, *IMAGES[1:])
    copies = []
    freezer.begin_epoch(0)
    for _ in range(4):
        model(x).square().mean().backward()
        copies.append(copy.deepcopy(model).eval())
        freezer.observe(x, lr=0.05)
        optimizer.step()
    outputs = [each.layer1[0](each.maxpool(each.relu(each.bn1(each.conv1(x))))) for each in copies]
    expected = [sp_loss(each, outputs[0]).item() for each in outputs[1:]]
    assert freezer.state_dict()["own"]["values"] == pytest.approx(expected, rel=1e-3) and all(expected)


def test_egeria_gives_all_back_when_the_rate_has_fallen_tenfold():
    model = chain()
    freezer = made(Egeria, model, window=4, **SHORT)
    freezer.begin_epoch(0)
    for _ in range(5):
        freezer.observe(torch.randn(6, 3), lr=0.1)  # nothing moves
    assert freezer.begin_epoch(1) == ["0"]
    freezer.observe(torch.randn(6, 3), lr=0.1)
    freezer.observe(torch.randn(6, 3), lr=0.011)
    assert freezer.begin_epoch(2) == [] and freezer.frozen == ("0",)
    freezer.observe(torch.randn(6, 3), lr=0.01)
    assert freezer.begin_epoch(3) == [] and freezer.frozen == ()
    assert [d.reason for d in freezer.decisions] == ["the learning rate fell from 0.1 to 0.01"]
    for _ in range(3):
        freezer.observe(torch.randn(6, 3), lr=0.01)
    assert freezer.window == 2 and freezer.begin_epoch(4) == ["0"]
    freezer.observe(torch.randn(6, 3), lr=0.005)
    assert freezer.begin_epoch(5) == [] and freezer.frozen == ("0",)  # tenfold since it froze again
    with pytest.raises(ValueError, match=r"expected the learning rate of the step, got None; try"):
        freezer.observe(torch.randn(6, 3))


# ---- SimFreeze ------------------------------------------------------------------------------------------------------


def alignment(a: np.ndarray, b: np.ndarray) -> float:
    """CKA by U-centred Gram matrices (Szekely & Rizzo), whose inner products are unbiased."""
    n, centred = len(a), []
    for k in (a @ a.T, b @ b.T):
        np.fill_diagonal(k, 0)
        rows = k.sum(1, keepdims=True) / (n - 2)
        k = k - rows - rows.T + k.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(k, 0)
        centred.append(k)
    k, m = centred
    return float((k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum()))


def test_simfreeze_freezes_what_has_a_stable_likeness_to_the_snapshot():
    rng, model = np.random.default_rng(2), chain(4)
    freezer = made(SimFreeze, model, window=2, threshold=0.02, fraction=1, **SHORT)
    x = torch.randn(6, 3)
    starts, drifts = rng.standard_normal((2, 3, 3, 3))
    # how far each of the three blocks is from the snapshot: the second settles last
    second = [0, 1, -1, 1, -1, -1.001, -1, -1]
    ways = [(min(epoch, 2), far, 0) for epoch, far in enumerate(second)]
    values: list[list[float]] = [[], [], []]
    frozen = 0
    for epoch, way in enumerate(ways):
        settled = [all(abs(b - a) < 0.02 * abs(a) for a, b in pairwise(v[-3:])) and len(v) > 2 for v in values]
        front = next((place for place in range(3) if place >= frozen and not settled[place]), 3)
        assert freezer.begin_epoch(epoch) == ["0", "1", "2"][frozen:front]
        frozen, outputs, y = front, [], x.double().numpy()
        for layer, start, far, drift in zip(model, starts, way, drifts, strict=False):
            y = y @ set_weight(layer, start + far * drift).T
            outputs.append(y)
        freezer.observe(x, lr=0.1)
        if epoch == 0:
            snapshot = outputs
        else:
            for seen, *pair in zip(values, outputs, snapshot, strict=True):
                seen.append(alignment(*pair))
        if epoch == 5:
            assert frozen == 1  # what the scenario was made for
    assert frozen == 3


def test_simfreeze_begins_anew_when_the_data_change():
    model = chain()
    freezer = made(SimFreeze, model, window=1, fraction=0.5, **SHORT)
    for epoch in range(3):
        freezer.begin_epoch(epoch)
        freezer.observe(torch.randn(6, 3))
    assert freezer.begin_epoch(3) == ["0", "1"]
    freezer.data_changed()
    freezer.observe(torch.randn(6, 3))  # of the old data still
    assert freezer.begin_epoch(4) == [] and freezer.frozen == ()
    assert [d.reason for d in freezer.decisions] == ["the data changed"]
    new = torch.randn(6, 3) + 5
    for epoch in range(5, 8):
        assert freezer.begin_epoch(epoch) == []
        freezer.observe(new if epoch == 5 else torch.randn(6, 3))
    assert torch.equal(freezer.state_dict()["own"]["probe"]["inputs"], new)
    freezer.data_changed()
    freezer.load_state_dict({**freezer.state_dict(), "frozen": []})
    assert freezer.begin_epoch(8) == [] and freezer.reason == "0 stays active: the data changed"


def test_simfreeze_thaws_what_the_new_data_look_different_to():
    model = chain(4)
    freezer = made(SimFreeze, model, window=1, threshold=0.01, fraction=1, **SHORT)
    old, new = torch.randn(2, 6, 3)
    old[:, 2] = 0  # the second block changes where only the new data show it
    starts = [torch.eye(3), torch.eye(3), torch.eye(3)]
    for epoch in range(3):
        assert freezer.begin_epoch(epoch) == []
        for layer, start in zip(model, starts, strict=False):
            set_weight(layer, start.numpy())
        freezer.observe(old)
        starts[1] = torch.eye(3) + 2 * torch.eye(3)[[2, 0, 1]] * torch.tensor([0.0, 0, 1])
    assert freezer.begin_epoch(3) == ["0", "1", "2"]
    with pytest.raises(ValueError, match="expected inputs of 4 samples or more, got 3"):
        freezer.data_changed(new[:3])
    freezer.data_changed(new)
    again = made(SimFreeze, model, window=1, threshold=0.01, fraction=1, **SHORT)
    again.load_state_dict(copy.deepcopy(freezer.state_dict()))  # what was told is not forgotten
    for each in (freezer, again):
        each.begin_epoch(4)
        assert each.frozen == ("0",)
        now, then = new.double().numpy(), new.double().numpy() @ starts[1].double().numpy().T
        text = f"on the new data the CKA of 1 with the snapshot is {alignment(now, then):.3f}, not 1.000"
        assert [d.reason for d in each.decisions] == [text]
        assert torch.equal(each.state_dict()["own"]["probe"]["inputs"], new)
        each.data_changed(old)
        assert each.due(5) == [] and each.begin_epoch(5) == [] and each.frozen == ("0",)
        each.data_changed()
        each.begin_epoch(6)
        assert each.frozen == () and each.state_dict()["own"]["old"] is None


def test_simfreeze_does_not_freeze_what_makes_the_same_of_all_samples():
    model = chain()
    freezer = made(SimFreeze, model, window=1, **SHORT)
    set_weight(model[0], np.zeros((3, 3)))
    for epoch in range(4):
        assert freezer.begin_epoch(epoch) == []
        freezer.observe(torch.randn(6, 3))
    assert "nan" in freezer.reason and "not below" in freezer.reason


# ---- AutoFreeze -----------------------------------------------------------------------------------------------------


def show(freezer, model, *sizes):
    """A step in which every weight of layer i has the gradient sizes[i]."""
    for layer, size in zip(model, sizes, strict=False):
        layer.weight.grad = torch.full_like(layer.weight, size)
    freezer.observe()


def test_autofreeze_by_hand():
    model = chain(5)  # four blocks and the head
    freezer = made(AutoFreeze, model, window=2, fraction=1)
    freezer.begin_epoch(0)
    show(freezer, model, 4, 3, 12, 1)
    show(freezer, model, 6, 7, -2, 9)  # added up: 10 each
    assert freezer.begin_epoch(1) == [] and "1 of 2 windows of 2 steps" in freezer.reason
    show(freezer, model, 5, 10, 10, 1)
    show(freezer, model, 4, -2, -5, 1)  # 9, 8, 5, 2: changes of 10%, 20%, 50%, 80%; their median is 35%
    assert freezer.rates == {name: pytest.approx(rate) for name, rate in zip("0123", (0.1, 0.2, 0.5, 0.8), strict=True)}
    assert [b.name for b in freezer.due(2)] == ["0", "1"]
    assert freezer.begin_epoch(2) == ["0", "1"]
    assert freezer.decisions[1].reason.startswith(
        "its gradient's norm changed by 20.0%, below 35.0%, the 50% percentile"
    )
    assert freezer.begin_epoch(3) == [] and freezer.rates == {}  # a decision takes windows of its own
    for sizes in ((0, 0, 1, 1), (0, 0, 1, 1), (0, 0, 2, 1), (0, 0, 2, 1.5)):
        show(freezer, model, *sizes)
    assert freezer.begin_epoch(4) == []  # 100% and 25%: the front one changes most
    assert "not below 62.5%" in freezer.reason


def test_autofreeze_s_percentile_and_gradients_that_are_not_numbers():
    model = chain(5)
    for percentile, frozen in ((0.99, ["0", "1", "2"]), (0.3, ["0"]), (0.2, ["0"])):
        model = chain(5)
        freezer = made(AutoFreeze, model, window=1, fraction=1, percentile=percentile)
        show(freezer, model, 10, 10, 10, 10)
        show(freezer, model, 9, 8, 5, 2)
        assert freezer.begin_epoch(0) == frozen
    model = chain(5)
    freezer = made(AutoFreeze, model, window=1, fraction=1)
    show(freezer, model, 10, 10, math.inf, 10)
    show(freezer, model, 9, 8, 5, 2)
    assert freezer.begin_epoch(0) == []


def test_autofreeze_refuses_sums_of_other_shapes():
    freezer = made(AutoFreeze, chain(), window=2)
    state = freezer.state_dict()
    for sums in ([], [torch.zeros(2, 3)]):
        with pytest.raises(ValueError, match="expected a whole state, got a damaged one"):
            freezer.load_state_dict({**state, "own": {**state["own"], "sums": {"0": sums}}})
    assert freezer.state_dict()["own"] == state["own"]


# ---- all of them ----------------------------------------------------------------------------------------------------

BY_DATA = {
    Egeria: {**SHORT, "window": 2, "tolerance": 10.0},
    SimFreeze: {**SHORT, "window": 1, "threshold": 0.99},
    AutoFreeze: {"window": 2, "percentile": 0.9},
}


def train(freezer, model, optimizer, epochs, steps=6, topology=None):
    """Epochs of a loop of one's own; the names that froze in each."""
    told = []
    for epoch in epochs:
        told.append(freezer.begin_epoch(epoch))
        model.train()
        for step in range(steps):
            torch.manual_seed(100 * epoch + step)
            inputs = torch.randn(6, *IMAGES[1:])
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            freezer.observe(inputs, lr=0.05)
            optimizer.step()
            if topology is not None:
                topology.step()
        freezer.end_epoch()
    return told


@pytest.mark.parametrize("kind", BY_DATA)
@pytest.mark.parametrize("name", MODELS)
def test_on_models_written_as_the_well_known_ones(kind, name):
    model = MODELS[name]()
    freezer = made(kind, model, torch.randn(IMAGES), **BY_DATA[kind])
    told = train(freezer, model, torch.optim.SGD(model.parameters(), 0.05), range(3))
    assert [*joined(*told)] == list(freezer.frozen) and freezer.frozen
    assert [block.name for block in freezer.blocks if block.is_frozen] == list(freezer.frozen)
    assert all(decision.reason for decision in freezer.decisions) and freezer.reason


@pytest.mark.parametrize("kind", BY_DATA)
def test_resumes_in_the_middle_of_a_window_to_the_same_decisions(kind):
    torch.manual_seed(0)
    model = ResNet()
    freezer = made(kind, model, torch.randn(IMAGES), **BY_DATA[kind])
    train(freezer, model, torch.optim.SGD(model.parameters(), 0.05), range(1), steps=5)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "freezer": freezer.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    resumed = ResNet()
    resumed.load_state_dict(kept["model"])
    again = made(kind, resumed, torch.randn(IMAGES), **BY_DATA[kind])
    again.load_state_dict(kept["freezer"])
    told = [
        train(each, net, torch.optim.SGD(net.parameters(), 0.05), range(1, 4), steps=3)
        for each, net in ((freezer, model), (again, resumed))
    ]
    assert told[0] == told[1] and any(told[0])
    assert again.reason == freezer.reason and [d.reason for d in again.decisions] == [
        d.reason for d in freezer.decisions
    ]
    with pytest.raises(ValueError, match="expected a whole state, got a damaged one"):
        again.load_state_dict({**freezer.state_dict(), "own": {}})


@pytest.mark.parametrize("kind", BY_DATA)
@pytest.mark.parametrize("every", [3, 6])
def test_no_window_lasts_across_a_move_of_the_masks(kind, every):
    """Each takes 4 steps here: a reference and 3 values, 4 values, 2 windows of 2. With moves after 3 none ends."""
    options = {Egeria: {"window": 3}, SimFreeze: {"window": 3}, AutoFreeze: {}}[kind]
    model = sparsify(ResNet(), sparsity=0.5)
    freezer = made(kind, model, torch.randn(IMAGES), **{**BY_DATA[kind], **options})
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    topology = SET(model, optimizer, total_steps=1000, every=every, drop_fraction=0.3)
    told = train(freezer, model, optimizer, range(3), steps=6, topology=topology)
    assert any(told) == (every == 6)


@pytest.mark.parametrize("name", MODELS)
def test_looking_leaves_no_trace_and_goes_no_further_than_it_must(name):
    model, x = MODELS[name](), torch.randn(6, *IMAGES[1:])
    parts = blocks(model, torch.randn(IMAGES))
    model.train()
    ran, whole = [], {}
    for part in parts:
        part.modules[-1][1].register_forward_hook(lambda m, a, out, part=part: whole.update({part.name: out.clone()}))
    with torch.no_grad():
        model.eval()(x)
    model.train()
    for part in parts:
        part.modules[-1][1].register_forward_hook(lambda *_, part=part: ran.append(part.name))
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    probe = Probe(model, 6)
    probe.take(x)
    found = probe.outputs(parts[:2])
    assert list(found) == ran == [part.name for part in parts[:2]]
    assert all(torch.equal(found[name].flatten(1), whole[name].flatten(1)) for name in found)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert torch.equal(random, torch.get_rng_state()) and all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_probe_of_dictionaries_keeps_its_first_samples():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = chain()

        def forward(self, ids, scale):
            return self.layers(ids * scale)

    model = Named()
    batch = {"ids": torch.randn(9, 3), "scale": torch.tensor(2.0)}
    probe = Probe(model, 5)
    probe.take(batch)
    probe.take({"ids": torch.zeros(9, 3), "scale": torch.tensor(1.0)})
    (part, *_) = blocks(model, batch)
    torch.testing.assert_close(probe.outputs([part])[part.name], 2 * batch["ids"][:5] @ model.layers[0].weight.T)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Egeria, {"every": 0}, "every to be an integer >= 1, got 0"),
        (Egeria, {"window": 1}, "window to be an integer >= 2, got 1"),
        (Egeria, {"tolerance": 0}, "tolerance to be a number > 0, got 0"),
        (Egeria, {"tolerance": math.nan}, "tolerance to be a number > 0, got nan"),
        (Egeria, {"lr_drop": 1}, "lr_drop to be a number > 1, got 1"),
        (Egeria, {"bootstrap": -1}, "bootstrap to be an integer >= 0, got -1"),
        (Egeria, {"samples": 3}, "samples to be an integer >= 4, got 3"),
        (SimFreeze, {"window": 0}, "window to be an integer >= 1, got 0"),
        (SimFreeze, {"threshold": 1}, r"threshold in \(0, 1\), got 1"),
        (SimFreeze, {"samples": 2}, "samples to be an integer >= 4"),
        (SimFreeze, {"every": 1.5}, "every to be an integer >= 1, got 1.5"),
        (SimFreeze, {"bootstrap": True}, "bootstrap to be an integer >= 0"),
        (AutoFreeze, {"window": 0}, "window to be an integer >= 1, got 0"),
        (AutoFreeze, {"percentile": 1}, r"percentile in \(0, 1\), got 1"),
    ],
)
def test_refusals(kind, options, words):
    with pytest.raises(ValueError, match=f"expected {words}.*; try"):
        made(kind, chain(), **options)


@pytest.mark.parametrize("kind", [Egeria, SimFreeze])
@pytest.mark.parametrize("inputs", [None, torch.zeros(3, 3)], ids=["none", "three"])
def test_a_batch_too_small_to_compare_on_is_refused(kind, inputs):
    got = "none" if inputs is None else "3 samples"
    with pytest.raises(ValueError, match=rf"expected inputs of 4 samples or more, got {got}; try"):
        freezer = made(kind, chain(), **SHORT)
        freezer.begin_epoch(0)
        freezer.observe(inputs, lr=0.1)


def test_registered_by_name():
    assert [METHODS[name] for name in ("egeria", "simfreeze", "autofreeze")] == [Egeria, SimFreeze, AutoFreeze]
