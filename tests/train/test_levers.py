"""Levers that the trainer was not written for: a freezer by step, a sieve of varying size, one that unfreezes."""

import copy

import numpy as np
import pytest
import torch
from train.runs import bits, figures, last_state, recipe, same, stop_within

from spfde.freezing import METHODS as FREEZERS
from spfde.freezing import Progressive, blocks, is_frozen
from spfde.levers import (
    Backward,
    Decision,
    EpochEnd,
    EpochStart,
    Forward,
    Lever,
    Levers,
    Loss,
    Sampler,
    Step,
)
from spfde.nn import SparseLayer
from spfde.sieving import METHODS as SIEVES
from spfde.sieving import Circular, Sieve, SieveEvent
from spfde.topology import SET
from spfde.train import CheckpointError, Recipe
from spfde.train.build import build
from spfde.train.session import Inputs
from spfde.train.stats import Stopwatch
from spfde.train.step import forward_backward


class StillFreezer:
    """Freezes the front block once its mean output and its weights hardly change from one step to the next."""

    needs = (Forward, Step)

    def __init__(self, threshold: float) -> None:
        self.threshold, self.outputs, self.weights, self.now = threshold, {}, {}, {}

    def on(self, event, run):
        if isinstance(event, Forward):
            assert len(event.indices) == len(next(iter(event.outputs.values())))
            assert not any(output.requires_grad for output in event.outputs.values())
            self.now = {name: output.mean(0) for name, output in event.outputs.items()}
            return None
        active = [block for block in run.blocks[:-1] if block.name not in run.frozen]
        decisions = []
        for block in active[:1]:
            weight = next(p.detach().clone() for _, m in block.modules for p in m.parameters())
            before = self.outputs.get(block.name), self.weights.get(block.name)
            if all(each is not None for each in before):
                now = (self.now[block.name], weight)
                moved = max(float((a - b).norm() / b.norm()) for a, b in zip(now, before, strict=True))
                if moved < self.threshold:
                    run.freeze([block.name])
                    decisions.append(Decision("freeze", f"froze {block.name}", f"it moved by {moved:.3f} in a step"))
            self.weights[block.name] = weight
        self.outputs = self.now
        return decisions

    def state_dict(self):
        return {"outputs": self.outputs, "weights": self.weights}

    def load_state_dict(self, state):
        self.outputs, self.weights = dict(state["outputs"]), dict(state["weights"])


class Unbiased(Sieve):
    """Leaves out half of what is easier than the mean, drawn anew each epoch, and doubles the weight of the rest."""

    def __init__(self, num_samples: int, seed: int = 0) -> None:
        super().__init__(num_samples, seed)
        self.scores, self.factors = np.ones(num_samples, np.float32), np.ones(num_samples, np.float32)

    def _note(self, samples, losses, correct):
        self.scores[samples] = losses

    def _weights(self, samples):
        return torch.from_numpy(self.factors[samples])

    def _boundary(self):
        easy = self.scores < self.scores.mean()
        out = easy & (np.random.default_rng((self.seed, self.epoch)).random(self.num_samples) < 0.5)
        self.factors = np.where(easy, np.float32(2), np.float32(1))
        self._choose(torch.from_numpy(np.flatnonzero(~out)))
        return SieveEvent(self.epoch, int(out.sum()), "half of what is easier than the mean")

    def _own_state(self):
        return {"scores": torch.from_numpy(self.scores.copy()), "factors": torch.from_numpy(self.factors.copy())}

    def _load_own(self, state):
        self.scores, self.factors = state["scores"].numpy().copy(), state["factors"].numpy().copy()


class Periodic:
    """Freezes the first block in every odd epoch and gives it back in the next."""

    needs = (EpochStart,)

    def on(self, event, run):
        name = run.blocks[0].name
        if event.epoch % 2:
            run.freeze([name])
            return [Decision("freeze", f"froze {name}", "an odd epoch")]
        if name in run.frozen:
            run.unfreeze([name])
            return [Decision("unfreeze", f"gave {name} back", "an even epoch")]
        return None

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


FOREIGN = {
    "by step": ({"freeze": 0}, lambda run: StillFreezer(0.5)),
    "varying size": ({"sieve": 0}, lambda run: Unbiased(90)),
    "unfreezing": ({"freeze": 0.05}, lambda run: Periodic()),  # beside a freezer that means to keep that block frozen
}
FIELDS = {"epochs": 4, "batch_size": 16, "lr": 0.05}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_lever_trains_and_resumes_within_an_epoch_to_the_same_bits(name, task, tmp_path):
    fields, lever = FOREIGN[name]
    fields = {**FIELDS, **fields}
    whole = task.fit(recipe(out=tmp_path / "whole", **fields), levers=[lever])
    stop_within(2, 2, tmp_path / "parts", fit=task.fit, fields=fields, levers=[lever])
    parts = task.fit(recipe(out=tmp_path / "parts", **fields), levers=[lever], resume=True)
    assert same(last_state(tmp_path / "parts"), last_state(tmp_path / "whole"))
    assert same(bits(parts.model), bits(whole.model))
    assert [figures(e) for e in parts.epochs] == [figures(e) for e in whole.epochs]
    kinds = [{event.kind for event in record.events} for record in whole.epochs]
    if name == "varying size":
        assert len({record.samples for record in whole.epochs}) > 2
        assert all(record.samples + record.sieved == 90 for record in whole.epochs)
        assert "sieve" in kinds[1]
    elif name == "unfreezing":
        assert ["layer1.0" in record.frozen for record in whole.epochs] == [False, True, False, True]
        assert ["unfreeze" in each for each in kinds] == [False, False, True, False]
    else:
        assert whole.epochs[-1].frozen and any("freeze" in each for each in kinds)
        assert 0 < whole.epochs[-1].flops < whole.epochs[0].flops


def test_without_its_levers_or_with_others_a_run_is_not_resumed(task, tmp_path):
    run = recipe(out=tmp_path, **FIELDS, freeze=0)
    stop_within(1, 1, tmp_path, fit=task.fit, fields={**FIELDS, "freeze": 0}, levers=[Periodic()])
    with pytest.raises(CheckpointError, match="Periodic"):
        task.fit(run, resume=True)


def test_masks_and_rate_come_back_with_an_unfrozen_block(task):
    seen = []

    class Watch(Periodic):
        needs = (EpochStart, Step)

        def on(self, event, run):
            if isinstance(event, EpochStart):
                return super().on(event, run)
            layer = run.model.layer1[0].conv1
            group = next(g for g in run.optimizer.param_groups if any(p is layer.values for p in g["params"]))
            seen.append((run.epoch, layer.mask(), group["lr"], is_frozen(run.model.layer1[0])))

    task.fit(recipe(**FIELDS, freeze=0.05, sieve=0, topology="set"), levers=[Watch()])
    masks = [[mask for at, mask, *_ in seen if at == epoch] for epoch in range(4)]
    assert {frozen for at, *_, frozen in seen if at in (1, 3)} == {True}
    assert all(torch.equal(masks[1][0], mask) for mask in masks[1])
    assert not torch.equal(masks[2][0], masks[3][-1])  # moved after the last step of the third epoch
    assert all(rate > 0 for at, _, rate, _ in seen if at == 2)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_weights_of_all_levers_multiply_the_losses_of_every_part(task, accumulate):
    class Weigher(Periodic):
        needs = (Loss,)

        def __init__(self, weights):
            self.weights = weights

        def on(self, event, run):
            assert torch.equal(event.targets, task.train.targets[event.indices])
            return None if self.weights is None else self.weights[event.indices]

    weights = [torch.rand(90, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    levers = [Weigher(weights[0]), Weigher(None), Weigher(weights[1])]
    chosen = task.recipe(method="dense", accumulate=accumulate, label_smoothing=0.1)
    run = build(Inputs(chosen, task.model().eval(), task.train, task.test, levers=levers))
    indices = torch.arange(5, 18)
    images, targets = task.train.images[indices], task.train.targets[indices]
    reference = copy.deepcopy(run.model)
    each = torch.nn.functional.cross_entropy(reference(images), targets, label_smoothing=0.1, reduction="none")
    (each * weights[0][indices] * weights[1][indices]).mean().backward()
    _, value = forward_backward(run, images, targets, indices, Stopwatch())
    assert value == pytest.approx(each.mean().item(), rel=1e-5)  # what is reported has no weights
    for ours, theirs in zip(run.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_events_come_in_their_order_and_only_to_those_who_need_them(task):
    log = []

    class Log(Periodic):
        def __init__(self, *needs):
            self.needs = needs

        def on(self, event, run):
            log.append((id(self), type(event), run.step, run.samples))

    everything, little = Log(EpochStart, Forward, Loss, Backward, Step, EpochEnd), Log(EpochEnd)
    task.fit(task.recipe(method="dense", epochs=2, batch_size=45), levers=[everything, little])
    step = [Forward, Loss, Backward, Step]
    assert [kind for who, kind, *_ in log if who == id(everything)] == [EpochStart, *step * 2, EpochEnd] * 2
    assert [kind for who, kind, *_ in log if who == id(little)] == [EpochEnd] * 2
    assert [(steps, samples) for _, kind, steps, samples in log if kind is EpochEnd] == [(2, 90)] * 2 + [(4, 180)] * 2


def test_a_topology_follows_epochs_of_varying_length(task):
    def masks(run):
        return SET(run.model, run.optimizer, total_steps=run.total_steps, every_epochs=1)

    fields = {**FIELDS, "topology": "static", "freeze": 0, "sieve": 0}
    records = task.fit(recipe(**fields), levers=[lambda run: Unbiased(90), masks]).epochs
    assert len({record.samples for record in records}) > 2
    told = [[event.kind for event in record.events if event.kind == "topology"] for record in records]
    assert told == [["topology"]] * 3 + [[]]


class Least:
    """Nothing but the protocol."""

    needs = ()

    def on(self, event, run):
        raise AssertionError("told of what it does not need")

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_whatever_satisfies_the_protocol_can_be_wired(task, tmp_path):
    assert isinstance(Least(), Lever) and not isinstance(Least(), Sampler) and isinstance(Circular(9), Sampler)
    plain = task.fit(recipe(**FIELDS))
    wired = task.fit(recipe(out=tmp_path, **FIELDS), levers=[Least(), lambda run: Least()])
    assert same(bits(plain.model), bits(wired.model))
    assert [figures(e) for e in plain.epochs] == [figures(e) for e in wired.epochs]


def test_the_librarys_own_levers_are_the_same_given_as_from_the_recipe(task):
    fields = {**FIELDS, "sparsity": 0, "freeze": 0, "sieve": 0}
    model = task.model()
    options = {"epochs": 4, "interval": 1, "flops_reduction": 0.1}
    given = [
        Progressive(model, blocks(model, task.train.images[:1]), **options),
        Circular(90, fraction=0.25, interval=1),
    ]
    ours = task.fit(recipe(**fields), model=model, levers=given)
    theirs = task.fit(recipe(**{**fields, "freeze": 0.1, "sieve": 0.25}))
    assert same(bits(ours.model), bits(theirs.model))
    assert [figures(e) for e in ours.epochs] == [figures(e) for e in theirs.epochs]


def test_a_registered_freezer_and_sieve_have_names_and_options_in_a_recipe(task, monkeypatch):
    def still(model, blocks, threshold):
        assert blocks[0].name == "layer1.0" and model.get_submodule("layer1.0")
        return StillFreezer(threshold)

    for registry, name, method in ((FREEZERS, "still", still), (SIEVES, "unbiased", Unbiased)):
        monkeypatch.setitem(registry, name, method)
    fields = {**FIELDS, "freeze_by": "still", "freeze_options": {"threshold": 0.5}, "sieve_by": "unbiased"}
    records = task.fit(recipe(**fields)).epochs
    assert records[-1].frozen and len({record.samples for record in records}) > 2
    with pytest.raises(ValueError, match="threshold"):
        Recipe(freeze_options={"threshold": 0.5})
    with pytest.raises(ValueError, match="keep"):
        Recipe(sieve_by="unbiased", sieve_options={"keep": 0.5})


def test_rounds_of_imp_take_no_levers(task):
    with pytest.raises(ValueError, match="levers"):
        task.fit(Recipe(method="imp", epochs=1, rounds=1), levers=[Least()])


@pytest.mark.parametrize(
    ("levers", "error", "said"),
    [
        ([object()], TypeError, "levers"),
        ([lambda run: object()], TypeError, "needs, on"),
        ([type("Odd", (Least,), {"needs": ("step",)})()], TypeError, "needs"),
        ([Circular(90)], ValueError, "Circular"),
        ([type("Wordy", (Least,), {"needs": (Step,), "on": lambda *_: ["done"]})()], TypeError, "Wordy"),
        ([type("Short", (Least,), {"needs": (Loss,), "on": lambda *_: torch.ones(1)})()], ValueError, "Short"),
        ([type("Lost", (Least,), {"horizons": {"layer9": 0.5}})()], ValueError, "layer9"),
        ([lambda run: type("Late", (Least,), {"horizons": {run.blocks[0].name: 0.5}})()], ValueError, "horizons"),
    ],
)
def test_what_is_no_lever_is_refused(levers, error, said, task):
    with pytest.raises(error, match=said):
        task.fit(recipe(**FIELDS, freeze=0), levers=levers)


def test_a_run_refuses_to_freeze_what_it_has_not_or_everything(task):
    run = build(Inputs(task.recipe(), task.model(), task.train, task.test))
    with pytest.raises(ValueError, match="layer9"):
        run.freeze(["layer1.0", "layer9"])
    assert run.frozen == () and not any(map(is_frozen, run.model.children()))
    for parameter in run.model.fc.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="stay trainable"):
        run.freeze([block.name for block in run.blocks])


def test_what_froze_in_eval_mode_trains_again_in_the_models_own(task):
    run = build(Inputs(task.recipe(), task.model(), task.train, task.test))
    block = run.model.layer1[0]
    run.model.eval()
    run.freeze(name for name in ("layer1.0", "layer1.0"))
    run.model.train()
    assert not block.training and run.frozen == ("layer1.0",)
    run.unfreeze(["layer1.0", "layer2.0"])
    assert all(module.training for module in run.model.modules()) and run.frozen == ()
    assert all(p.requires_grad for p in run.model.parameters())
    assert {group["horizon"] for group in run.optimizer.param_groups if group.get("block") == "layer1.0"} == {1.0}


def test_a_freeze_brings_masks_to_their_target_first(task):
    run = build(Inputs(recipe(topology="mest", soft=True, **FIELDS), task.model(), task.train, task.test))
    layer = run.model.layer1[0].conv1
    target = run.levers[0].target["layer1.0.conv1"]
    run.levers[0].begin_epoch(0, steps=3, epochs=4)
    run.step = 0
    while layer.nnz <= target and run.step < 20:
        run.optimizer.zero_grad()
        run.model(task.train.images[:16]).square().mean().backward()
        run.optimizer.step()
        run.levers[0].step()
        run.step += 1
    assert layer.nnz > target  # within the soft bound
    run.freeze(["layer1.0"])
    assert isinstance(layer, SparseLayer) and layer.nnz == target and is_frozen(run.model.layer1[0])


def test_an_empty_list_of_levers_asks_for_nothing():
    levers = Levers()
    assert not levers.needing(Loss) and levers.sampler is None and not levers.armed and levers.horizons == {}


class FreezeAt(Least):
    """Freezes the first block when it is first told of one kind of event."""

    def __init__(self, kind):
        self.needs, self.done = (kind,), False

    def on(self, event, run):
        if not self.done:
            self.done = True
            run.freeze([run.blocks[0].name])


@pytest.mark.parametrize("kind", [EpochStart, Forward, Loss, Backward, Step, EpochEnd])
def test_a_block_freezes_at_any_event_though_its_masks_come_to_their_target(kind, task):
    result = task.fit(
        recipe(epochs=2, batch_size=30, topology="mest", soft=True, freeze=0, sieve=0), levers=[FreezeAt(kind)]
    )
    assert len(result.epochs[-1].frozen) == 1
