"""Every sieve by name: one update worked out by hand, the invariants, resuming."""

import copy
import inspect
import io
import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spfde import densify, sparsify
from spfde.levers import Loss
from spfde.nn import SparseLayer
from spfde.sieving import (
    EL2N,
    METHODS,
    UCB,
    Circular,
    EpsGreedy,
    Forgetting,
    GraNd,
    InfoBatch,
    Kakurenbo,
    Once,
    Oscillating,
    Sieve,
)
from spfde.sieving.methods.grand import gradient_norms
from spfde.sieving.methods.oscillating import group_ends
from spfde.sieving.shuffle import share

RIGHT = torch.tensor([3.0, 0.0])


def make(name: str, num_samples: int, **given: object) -> Sieve:
    takes = inspect.signature(METHODS[name]).parameters
    return METHODS[name](num_samples, **{key: value for key, value in given.items() if key in takes})


def show(sieve: Sieve, losses: list[float], correct: list[bool] | None = None) -> None:
    """One batch of samples 0.. with these losses."""
    right = None if correct is None else torch.tensor(correct)
    sieve.observe(torch.arange(len(losses)), losses=torch.tensor(losses), correct=right)


def train_epoch(sieve: Sieve, epoch: int, batches: Iterable[torch.Tensor] | None = None) -> None:
    """An epoch, or these batches of it; the logits are a pure function of sample and epoch."""
    if isinstance(sieve, GraNd) and sieve.epoch == sieve.at - 1:
        everyone, model = torch.arange(sieve.num_samples), torch.nn.utils.skip_init(torch.nn.Linear, 1, 3)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[0.1], [0.2], [0.3]]))
            model.bias.zero_()
        sieve.look(model, [(everyone, everyone[:, None] / 10, everyone % 3)])
    for indices in sieve.order().split(4) if batches is None else batches:
        angles = indices[:, None] * torch.tensor([1.0, 2.0, 3.0]) + epoch * torch.tensor([0.7, 0.3, 1.1])
        sieve.observe(indices, 3 * (angles + sieve.seed).sin(), indices % 3)


def same(one: Sieve, two: Sieve) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return all(a[k].equal(b[k]) or a[k].isnan().any() if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def test_forgetting_by_hand():
    sieve = Forgetting(5, fraction=0.4, at=3, epochs=8)
    for outcome in ([1, 1, 1, 0, 1], [1, 0, 1, 0, 0], [1, 1, 1, 0, 1]):  # 1 and 4 forgotten once, 3 never right
        show(sieve, [0.5, 0.1, 0.4, 0.1, 0.1], [bool(each) for each in outcome])
        event = sieve.end_epoch()
    assert sieve.removed.tolist() == [0, 2] and event.moved == 2 and "forgetting" in event.reason
    assert sieve.scores.tolist() == [0, 1, 0, math.inf, 1]
    assert all(sieve.end_epoch() is None for _ in range(4)) and sieve.removed.tolist() == [0, 2]  # none comes back


def test_forgetting_by_the_scores_of_earlier_trainings():
    first, second = torch.tensor([0.0, 2.0, 4.0, math.inf]), torch.tensor([4.0, 0.0, 1.0, 0.0])
    sieve = Forgetting(4, fraction=0.5, scores=[first, second], epochs=8)
    assert sieve.removed.tolist() == [0, 1]  # means 2, 1, 2.5, inf
    train_epoch(sieve, 0)
    assert sieve.end_epoch() is None and sieve.removed.tolist() == [0, 1]


def test_ties_of_a_one_shot_sieve_are_broken_by_the_mean_loss():
    sieve = Once(4, fraction=0.25, at=1, epochs=4)
    show(sieve, [0.3, 0.2, 0.2, 0.4], [True] * 4)
    sieve.end_epoch()
    assert sieve.removed.tolist() == [1]


def test_once_leaves_when_mest_does():
    sieve = Once(50_000)
    assert sieve.at == 70 and share(sieve.fraction, 50_000) == 12_000


def test_el2n_by_hand():
    sieve = EL2N(3, fraction=0.34, at=2, epochs=4, average=1)
    logits = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    targets = torch.tensor([0, 1, 1])
    sieve.observe(torch.arange(3), -logits, targets)  # before the epochs that are averaged
    sieve.end_epoch()
    sieve.observe(torch.arange(3), logits, targets)
    assert torch.allclose(sieve.scores, torch.tensor([math.sqrt(0.5), math.sqrt(2), 0.0]), atol=1e-6)
    sieve.end_epoch()
    assert sieve.removed.tolist() == [2]
    with pytest.raises(ValueError, match="expected logits and targets for EL2N"):
        sieve.observe(torch.tensor([0]), losses=torch.ones(1))


class Deciding(torch.nn.Module):
    """What no vectorisation can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) if x.sum() > 0 else self.head(2 * x)


class Tied(torch.nn.Module):
    """Attention, and a weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = torch.nn.Embedding(9, 8), torch.nn.Linear(8, 9)
        self.block = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.words(x)).mean(1))


def convolutions() -> torch.nn.Module:
    nn = torch.nn
    layers = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3), nn.Flatten()
    return nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(16, 3))


@pytest.mark.parametrize("room", [2**26, 1])  # many at a time, one by one
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (convolutions, torch.linspace(-1, 1, 5 * 2 * 36).view(5, 2, 6, 6)),
        (lambda: sparsify(convolutions(), 0.5), torch.linspace(-1, 1, 5 * 2 * 36).view(5, 2, 6, 6)),
        (Deciding, torch.linspace(-1, 2, 20).view(5, 4)),
        (Tied, torch.arange(20).view(5, 4) % 9),
    ],
    ids=["convolutions", "sparse", "deciding", "tied"],
)
def test_grand_is_the_norm_of_each_sample_s_gradient(make, inputs, room, monkeypatch):
    monkeypatch.setattr("spfde.sieving.methods.grand.ROOM", room)
    model, targets = make(), torch.tensor([0, 1, 2, 0, 1])
    next(model.parameters()).requires_grad_(False)  # a weight that is not trained has no gradient
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    norms = gradient_norms(model, inputs, targets)
    assert all(module.training for module in model.modules()) and all(p.grad is None for p in model.parameters())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    exact = densify(copy.deepcopy(model)).double().eval()
    held = {name: m.mask() for name, m in model.named_modules() if isinstance(m, SparseLayer)}
    for row in range(5):
        exact.zero_grad()
        one = inputs[row : row + 1].double() if inputs.is_floating_point() else inputs[row : row + 1]
        torch.nn.functional.cross_entropy(exact(one), targets[row : row + 1]).backward()
        for name, mask in held.items():
            weight = exact.get_submodule(name).weight
            weight.grad = None if weight.grad is None else weight.grad * mask
        want = math.sqrt(sum(float(p.grad.square().sum()) for p in exact.parameters() if p.grad is not None))
        assert float(norms[row]) == pytest.approx(want, rel=1e-4)


def test_grand_by_hand():
    model = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.zeros_(model.weight)  # p = 1/2, so the error is (-1/2, 1/2) and its norm sqrt(1/2)
    x, y = torch.tensor([[3.0, 4.0], [0.6, 0.8], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1, 0, 1])
    sieve = GraNd(4, fraction=0.5, at=1, epochs=4)
    with pytest.raises(ValueError, match=r"samples to be scored by the end of epoch 0, got none; try sieve.look"):
        sieve.end_epoch()
    assert sieve.epoch == 0
    sieve.look(model, [(torch.arange(3), x[:3], y[:3]), (torch.tensor([3]), x[3:], y[3:])])
    assert torch.allclose(sieve.scores, torch.tensor([5.0, 1.0, 1.0, 2.0]) * math.sqrt(0.5))  # |x| |error|
    event = sieve.end_epoch()
    assert sieve.removed.tolist() == [1, 2] and event.moved == 2 and sieve.report().extra_seconds > 0


def test_infobatch_by_hand():
    sieve = InfoBatch(6, fraction=0.5, epochs=8)
    assert sieve.observe(torch.arange(6), losses=torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0, 10.0])) is None
    event = sieve.end_epoch()  # mean 5: 0 to 3 are below it, two of them are out, the others weigh double
    assert event.moved == 2 and len(sieve) == 4 and set(sieve.removed.tolist()) < {0, 1, 2, 3}
    weights = sieve.observe(sieve.active, losses=torch.ones(4))
    assert weights.tolist() == [2.0 if sample < 4 else 1.0 for sample in sieve.active.tolist()]
    for _ in range(6):
        event = sieve.end_epoch()
    assert (
        len(sieve) == 6 and sieve.observe(torch.arange(6), losses=torch.ones(6)) is None
    )  # 7/8 of the epochs are over


def test_infobatch_s_gradient_is_that_of_all_samples_in_expectation():
    weight = torch.tensor([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]], requires_grad=True)
    x, y, draws = torch.linspace(-2, 3, 18).view(9, 2), torch.arange(9) % 3, 1500
    losses = torch.nn.functional.cross_entropy(x @ weight.T, y, reduction="none")
    each = torch.stack([torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses])
    (whole,) = torch.autograd.grad(losses.sum(), weight)
    sums, plain = [], []
    for seed in range(draws):
        sieve = InfoBatch(9, fraction=0.4, epochs=100, seed=seed)
        sieve.observe(torch.arange(9), losses=losses)
        sieve.end_epoch()
        assert 0 < len(sieve.removed) < 4
        weights = sieve.observe(sieve.active, losses=losses[sieve.active])
        sums.append((each[sieve.active] * weights[:, None, None]).sum(0))
        plain.append(each[sieve.active].sum(0))
    error = torch.stack(sums).std(0) / math.sqrt(draws)
    assert ((torch.stack(sums).mean(0) - whole).abs() < 5 * error + 1e-6).all()
    assert ((torch.stack(plain).mean(0) - whole).abs() > 5 * error).any()  # unweighted it would be another


def test_epsgreedy_by_hand():
    sieve = EpsGreedy(10, fraction=0.4, interval=2, epsilon=0.5, keep=0.5)
    show(sieve, [float(i) for i in range(10)])
    assert sieve.end_epoch() is None and len(sieve) == 10
    show(sieve, [0.0, 9.0] + [float(i) for i in range(2, 10)])  # means: 1 has 5, the others what they had
    sieve.end_epoch()
    active = sieve.active.tolist()
    assert len(active) == 6 and {7, 8, 9} <= set(active)  # three greedy, three drawn
    drawn = set(active) - {7, 8, 9}
    assert drawn == set(active) & set(range(7))


@pytest.mark.parametrize(("confidence", "stay"), [(0.0, [2, 3]), (3.0, [2, 3]), (4.0, [1, 3]), (20.0, [0, 1])])
def test_ucb_by_hand(confidence, stay):
    sieve = UCB(4, fraction=0.5, interval=1, confidence=confidence, keep=0.0)
    show(sieve, [1.0, 2.0, 3.0, 4.0])
    sieve.end_epoch()
    assert sieve.active.tolist() == [2, 3]  # ln 1 = 0: no bonus yet
    sieve.observe(torch.tensor([2, 3]), losses=torch.tensor([3.0, 4.0]))
    sieve.end_epoch()
    # Shown 1, 1, 2, 2 times, deviation sqrt(1.25), ln 2 = 0.693: bonuses 0.931, 0.931, 0.658, 0.658 times confidence,
    # so 1 passes 2 from 3.67 on, and 0 passes 3 from 11 on.
    assert sieve.active.tolist() == stay


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_is_never_learnt_is_what_was_judged_and_never_right(name):
    sieve = make(name, 5, fraction=0.0, at=1, epochs=8)
    logits = torch.tensor([[0.1, 0.0], [0.0, 5.0], [5.0, 0.0], [0.0, 5.0]])  # 0 is right, but not sure
    sieve.observe(torch.tensor([0, 1, 2]), logits[:3], torch.zeros(3, dtype=torch.int64))
    if not sieve.by_logits:
        sieve.observe(torch.tensor([3]), losses=torch.ones(1))  # neither right nor wrong, as a mixed sample
    assert sieve.report().never_learned == (1,)
    sieve.observe(torch.tensor([3, 1, 1]), logits[[3, 2, 3]], torch.zeros(3, dtype=torch.int64))
    assert sieve.report().never_learned == (3,)


def test_what_looks_at_samples_itself_refuses_what_does_not_fit():
    sieve, model = GraNd(4, at=1, epochs=4), torch.nn.Linear(2, 2)
    for indices, inputs, words in (
        (torch.tensor([0, -1]), torch.ones(2, 2), r"indices in \[0, 4\), got -1"),
        (torch.tensor([0, 4]), torch.ones(2, 2), r"indices in \[0, 4\), got 4"),
        (torch.tensor([0, 1, 2]), torch.ones(2, 2), r"\[3\], one for each index, got \[2\]"),
        (torch.tensor([0, 1]), torch.full((2, 2), torch.inf), "finite gradient norms"),
    ):
        with pytest.raises(ValueError, match=rf"expected .*{words}.*try"):
            sieve.look(model, [(indices, inputs, torch.zeros(2, dtype=torch.int64))])
    assert sieve.scores.isnan().all()
    hiding = Kakurenbo(4)
    for indices, targets, words in (
        (torch.tensor([0, -1]), torch.zeros(2), r"indices in \[0, 4\), got -1"),
        (torch.tensor([0, 1, 2]), torch.zeros(2), r"got \[3\], \[2, 2\] and \[2\]"),
        (torch.tensor([0, 1]), torch.ones(2) * 2, r"targets in \[0, 2\), got 2"),
    ):
        with pytest.raises(ValueError, match=rf"expected .*{words}.*try"):
            hiding.look(indices, torch.ones(2, 2), targets.long())
    assert hiding.end_epoch().moved == 0


def test_kakurenbo_compares_plain_losses_whatever_training_minimises():
    sieve, logits = Kakurenbo(2, epochs=10), torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    smoothed = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0]), reduction="none", label_smoothing=0.5)
    assert sieve.on(Loss(torch.arange(2), logits, torch.tensor([0, 0]), smoothed), None) is None
    assert sieve.state_dict()["scores"].tolist() == pytest.approx([math.log1p(math.exp(-x)) for x in (2, 1)])


def test_kakurenbo_by_hand():
    sieve = Kakurenbo(5, fraction=0.6, confidence=0.7, epochs=10)
    logits = torch.tensor([[3.0, 0.0], [0.5, 0.0], [0.0, 4.0], [2.0, 0.0], [0.0, 2.0]])
    targets = torch.tensor([0, 0, 0, 0, 1])
    sieve.observe(torch.arange(5), logits, targets)  # losses .05 .47 4.0 .13 .13; 1 is right, but not sure
    event = sieve.end_epoch()
    assert sieve.removed.tolist() == [0, 3, 4] and event.moved == 3  # the three of the lowest loss are all sure
    weights = sieve.observe(sieve.active, logits[sieve.active], targets[sieve.active])
    assert weights.tolist() == [2.5, 2.5]
    sieve.look(torch.tensor([0, 3]), logits[[0, 3]], torch.tensor([0, 1]))  # 3 is wrong now; 4 was not looked at
    sieve.end_epoch()
    assert sieve.removed.tolist() == [0]
    assert sieve.presentations.tolist() == [1, 2, 2, 1, 1]  # looking is not training
    with pytest.raises(ValueError, match="InfoBatch"):
        sieve.look(torch.tensor([0]), torch.zeros(1, 2), torch.full((1, 2), 0.5))


@pytest.mark.parametrize(
    ("fraction", "counts"),
    [
        (0.3, [300, 300, 240, 240, 240, 180, 180, 120, 120, 120]),
        (0.29, [290, 290, 232, 232, 232, 174, 174, 116, 116, 116]),  # as floats, 0.29 * 0.8 is less than 0.232
    ],
)
def test_kakurenbo_hides_less_as_the_training_goes_on(fraction, counts):
    sieve = Kakurenbo(1000, fraction=fraction, epochs=10)
    hidden = []
    for _ in range(10):
        samples = torch.arange(1000)
        sieve.observe(sieve.active, RIGHT.expand(len(sieve.active), 2), torch.zeros_like(sieve.active))
        if len(sieve.removed):
            sieve.look(sieve.removed, RIGHT.expand(len(sieve.removed), 2), torch.zeros_like(sieve.removed))
        sieve.end_epoch()
        hidden.append(len(samples) - len(sieve))
    assert hidden == counts


def test_oscillating_by_hand():
    sieve = Oscillating(8, fraction=0.0, groups=4, window=0.5, epochs=16)
    losses = [0.0, 0.1, 0.1, 3.0, 3.1, 6.0, 9.0, 9.1]
    volumes, first = [], []
    for _ in range(4):
        sieve.observe(sieve.active, losses=torch.tensor(losses)[sieve.active])
        sieve.end_epoch()
        volumes.append(len(sieve))
        first.append(sieve.active.tolist())
    assert first == [[0, 1, 2, 3, 4], [3, 4, 5], [5, 6, 7], [0, 1, 2, 3, 4]] and volumes == [5, 3, 3, 5]


def test_oscillating_keeps_what_was_not_observed_yet():
    sieve = Oscillating(9, fraction=0.0, groups=4, window=0.5, epochs=16)
    sieve.observe(torch.arange(8), losses=torch.tensor([0.0, 0.1, 0.1, 3.0, 3.1, 6.0, 9.0, 9.1]))  # drop_last
    sieve.end_epoch()
    assert sieve.active.tolist() == [0, 1, 2, 3, 4, 8]


def test_groups_of_like_loss():
    assert group_ends(np.float32([5, 1, 1.2, 9, 5.1, 0.9]), 3).tolist() == [np.float32(1.2), np.float32(5.1), 9]
    assert group_ends(np.float32([2, 2, 2]), 3).tolist() == [2]
    values = np.random.default_rng(0).exponential(size=500).astype(np.float32)
    ends = group_ends(values, 7)
    assert len(ends) == 7 and ends[-1] == values.max() and (np.diff(ends) > 0).all()


def test_shares_are_exact():
    assert share(0.29, 100) == 29 and share(0.1, 30) == 3 and share(0.7, 10) == 7 and share(0.0, 9) == 0
    assert len(Circular(100, fraction=0.29).removed) == 29


@given(
    name=st.sampled_from(sorted(METHODS)),
    num_samples=st.integers(1, 40),
    fraction=st.one_of(st.just(0.0), st.floats(0, 0.95)),
    interval=st.integers(1, 3),
    seed=st.integers(0, 5),
    stop=st.integers(0, 7),
    steps=st.integers(0, 10),
)
@settings(deadline=None, max_examples=120)
def test_every_sieve_parts_the_samples_and_resumes_at_any_step_to_the_same_bits(
    name, num_samples, fraction, interval, seed, stop, steps
):
    given_all = {"fraction": fraction, "interval": interval, "epochs": 8, "seed": seed}
    straight, resumed = make(name, num_samples, **given_all), make(name, num_samples, **given_all)
    for epoch in range(8):
        assert sorted(straight.active.tolist() + straight.removed.tolist()) == list(range(num_samples))
        assert sorted(straight) == straight.active.tolist() and len(straight) == len(straight.active) > 0
        batches = straight.order().split(4)
        train_epoch(straight, epoch, batches[:steps] if epoch == stop else batches)
        if epoch == stop:
            file = io.BytesIO()
            torch.save(straight.state_dict(), file)
            file.seek(0)
            resumed.load_state_dict(torch.load(file, weights_only=True))
            assert list(resumed) == [sample for batch in batches[steps:] for sample in batch.tolist()]
            train_epoch(straight, epoch, batches[steps:])
            train_epoch(resumed, epoch, torch.tensor(list(resumed), dtype=torch.int64).split(4))
        elif epoch > stop:
            train_epoch(resumed, epoch, resumed.order().split(4))
        a = straight.end_epoch()
        if epoch >= stop:
            assert resumed.end_epoch() == a and same(straight, resumed)
            assert straight.order().equal(resumed.order())
    assert straight.presentations.sum() == sum(straight.report().volumes[:-1]) and str(straight.report())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_random_state_is_left_alone_and_one_seed_gives_one_result(name):
    def run(seed: int) -> list[list[int]]:
        sieve = make(name, 60, fraction=0.3, interval=1, epochs=6, seed=seed)
        orders = []
        for epoch in range(5):
            train_epoch(sieve, epoch)
            sieve.end_epoch()
            orders.append(sieve.order().tolist())
        return orders

    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = run(3)
    assert first == run(3) != run(4)
    assert torch.equal(before[0], torch.random.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("once", {"at": 0}, "at to be an integer"),
        ("once", {"at": 9, "epochs": 8}, "at before the last of 8 epochs"),
        ("once", {"epochs": 1}, "at before the last of 1 epochs"),
        ("forgetting", {"scores": [torch.ones(3)]}, r"scores as float tensors \[10\]"),
        ("forgetting", {"scores": []}, "scores of at least one training"),
        ("el2n", {"average": 0}, "average"),
        ("infobatch", {"anneal": 1.1}, r"anneal in \[0, 1\]"),
        ("infobatch", {"fraction": 1.0}, r"fraction in \[0, 1\)"),
        ("epsgreedy", {"epsilon": -0.1}, "epsilon"),
        ("ucb", {"confidence": -1}, "confidence >= 0"),
        ("ucb", {"keep": 1.0}, "keep"),
        ("kakurenbo", {"confidence": 2}, "confidence"),
        ("oscillating", {"groups": 0}, "groups"),
        ("oscillating", {"window": 2.0}, "window"),
        ("random", {"rank": 1}, "rank and world together"),
        ("random", {"rank": 2, "world": 2}, "rank below world"),
        ("random", {"rank": 0, "world": 0}, "world to be an integer"),
    ],
)
def test_arguments_out_of_range(name, arguments, words):
    with pytest.raises(ValueError, match=rf"expected {words}.*got.*try"):
        METHODS[name](10, **arguments)
