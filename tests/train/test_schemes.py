"""Progressive's schemes under fit: what they save, what stays as it was, which rate a block has, and resuming."""

from pathlib import Path

import pytest
import torch
from freezing.models import ResNet
from torch.utils.data import TensorDataset
from train.runs import bits, figures, last_state, recipe, same, stop_within

from spfde.freezing import blocks
from spfde.freezing.costs import training_flops
from spfde.freezing.schemes import SCHEMES
from spfde.levers import EpochEnd, EpochStart
from spfde.nn import SparseLayer
from spfde.train import build, fit, pace
from spfde.train.checkpoint import CheckpointError, Kept
from spfde.train.optimizer import learning_rate
from spfde.train.session import Inputs

EPOCHS, SAMPLES = 12, 32
FIELDS = {"epochs": EPOCHS, "batch_size": 16, "interval": 1, "sieve": 0, "freeze": 0.15, "fuse": False, "lr": 0.01}
SOFT = {"topology": "mest", "soft": True, "drop_fraction": 0.3, "optimizer": "adamw", "accumulate": 2, "clip": 1.0}
WITHIN = {"single-shot": 9, "single-shot-resume": 11, "periodic": 6, "delayed-periodic": 9}  # 11: thawed


def given(**fields) -> dict:
    """What fit is given: a small network and images."""
    torch.manual_seed(0)
    images, labels = torch.randn(SAMPLES, 3, 8, 8), torch.arange(SAMPLES) % 5
    data = TensorDataset(images, labels)
    return {"model": ResNet(8), "train_set": data, "test_set": TensorDataset(images[:8], labels[:8]), **fields}


class Watch:
    """Notes what is frozen in each epoch, the rates of the blocks, and the counts of their layers."""

    needs = (EpochStart, EpochEnd)

    def __init__(self) -> None:
        self.frozen, self.rates, self.counts, self.targets, self.before = [], [], [], {}, {}

    def on(self, event, run):
        if isinstance(event, EpochStart):
            self.frozen.append(run.frozen)
            self.before = self._state(run)
            return None
        after = self._state(run)
        assert same(self.before, after)
        self.rates.append({group.get("block"): group["lr"] for group in run.optimizer.param_groups})
        topology = run.levers[0]
        self.targets = getattr(topology, "target", {})
        self.counts.append({name: layer.nnz for name, layer in getattr(topology, "layers", {}).items()})
        return None

    @staticmethod
    def _state(run):
        """Parameters, statistics and optimizer state of the frozen blocks, and their masks."""
        found = {}
        for block in run.blocks:
            if block.name in run.frozen:
                assert block.is_frozen and all(p.grad is None for p in block.trainable)
                for name, module in block.modules:
                    found[name] = {key: value.clone() for key, value in module.state_dict().items()}
                states = [dict(run.optimizer.state[p]) for p in block.trainable]
                found[f"{block.name} optimizer"] = [
                    {key: value.clone() for key, value in each.items() if isinstance(value, torch.Tensor)}
                    for each in states
                ]
        return found

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_run_saves_exactly_the_flops_of_its_plan(scheme):
    plans = []
    options = {"scheme": scheme}
    fields = {**FIELDS, "topology": "static", "freeze_options": options}
    run = fit(recipe(**fields), **given(), levers=[lambda run: plans.append(run.levers[0]) or Watch()])
    (plan,) = plans
    example = torch.randn(1, 3, 8, 8)
    for block in plan.blocks:
        block.unfreeze()
    whole = training_flops(blocks(run.model, example))[0] * SAMPLES * EPOCHS
    assert run.flops == pytest.approx((1 - plan.saving) * whole, rel=1e-12)
    assert plan.saving >= 0.15
    assert [len(record.frozen) for record in run.epochs] == [len(each) for each in plan._schedule.sets(EPOCHS)]


@pytest.fixture(scope="module", params=SCHEMES)
def watched(request):
    """A run of each scheme under EM&S, AdamW, accumulation and clipping, in which nothing frozen moved."""
    watch = Watch()
    fit(recipe(**FIELDS, **SOFT, freeze_options={"scheme": request.param}), **given(), levers=[watch])
    return request.param, watch


def test_blocks_freeze_at_their_target_and_their_masks_grow_again_once_they_are_back(watched):
    scheme, watch = watched
    above = set()
    for epoch, (frozen, counts) in enumerate(zip(watch.frozen, watch.counts, strict=True)):
        for name, count in counts.items():
            block = ".".join(name.split(".")[:2])
            if block in frozen:
                assert count == watch.targets[name]
            elif count > watch.targets[name]:
                above.add((epoch, block))
    again = {block for epoch, block in above if any(block in frozen for frozen in watch.frozen[:epoch])}
    assert above and bool(again) == (scheme in ("periodic", "delayed-periodic"))


def test_the_rate_of_a_block_ends_where_it_freezes_and_is_that_of_the_others_once_it_is_back(watched):
    scheme, watch = watched
    steps = SAMPLES // FIELDS["batch_size"]
    for epoch, rates in enumerate(watch.rates):
        progress = (epoch + 1 - 0.5 / steps) / EPOCHS
        shared = learning_rate(progress, FIELDS["lr"], 0.2)
        assert rates.pop(None) == pytest.approx(shared, rel=1e-9)
        for name, rate in rates.items():
            first = next(e for e, frozen in enumerate(watch.frozen) if name in frozen)
            back = epoch > first and name not in watch.frozen[epoch]
            own = learning_rate(progress, FIELDS["lr"], 0.2, first / EPOCHS)
            assert rate == pytest.approx(shared if back else own, rel=1e-9) and (epoch < first) == (own > 0)
    assert bool(watch.rates[-1]) == scheme.startswith("single")


QUICK = (("periodic", "off"), ("single-shot", "auto"))


@pytest.mark.parametrize(
    "scheme, cache",
    [
        pytest.param(scheme, cache, marks=() if (scheme, cache) in QUICK else pytest.mark.full)
        for scheme in SCHEMES
        for cache in ("off", "auto")
    ],
)
def test_a_run_resumed_in_the_middle_of_a_scheme_gives_the_same_bits(scheme, cache, tmp_path):
    fields = {**FIELDS, **SOFT, "freeze_options": {"scheme": scheme}, "cache": cache}
    whole = fit(recipe(**fields, out=tmp_path / "whole"), **given())
    stop_within(WITHIN[scheme], 2, tmp_path / "parts", fields=fields, **given())
    parts = fit(recipe(**fields, out=tmp_path / "parts"), **given(), resume=True)
    assert same(bits(parts.model), bits(whole.model))
    assert same(last_state(tmp_path / "parts"), last_state(tmp_path / "whole"))
    if cache == "off":  # what a cache did is told by process
        assert [figures(e) for e in parts.epochs] == [figures(e) for e in whole.epochs]
    else:
        assert sum(e.cache.get("hits", 0) + e.cache.get("carried", 0) for e in parts.epochs) > 0


def test_a_plan_by_seconds_is_measured_once_and_kept(tmp_path, monkeypatch):
    fields = {**FIELDS, **SOFT, "freeze_options": {"target": "seconds"}}
    calls = []

    def seconds(*args, **options):
        calls.append(args)
        return tuple(1 / (3 + 2 * len(calls) + stage) for stage in range(4))

    monkeypatch.setattr(build, "front_seconds", seconds)
    stop_within(9, 2, tmp_path, fields=fields, **given())
    kept = last_state(tmp_path)["levers"][1]["state"]
    assert kept["seconds"] == [1 / (5 + stage) for stage in range(4)] and "of all training seconds" in kept["reason"]
    fit(recipe(**fields, out=tmp_path), **given(), resume=True)
    assert len(calls) == 1 and last_state(tmp_path)["levers"][1]["state"]["changes"] == kept["changes"]


@pytest.mark.parametrize("levers", [5, [5], [{}], [{"state": 5}]])
def test_a_checkpoint_whose_levers_are_none_is_refused(levers):
    kept = Kept(Path("x"), {}, 1, None, {}, (), None, {"levers": levers})
    with pytest.raises(CheckpointError, match="expected the checkpoint of this run's levers, got another one"):
        assert kept.seconds


def test_the_seconds_of_a_run_are_those_of_its_step_on_a_copy(monkeypatch):
    seen = []

    def stage_seconds(step, freeze, count, where):
        for stage in (*range(count + 1), *reversed(range(count + 1))):
            freeze(stage)
            step()
            seen.append(stage)
        return tuple(float(count + 2 - stage) for stage in range(count + 1))

    monkeypatch.setattr(pace, "stage_seconds", stage_seconds)
    inputs = given()
    model, state = inputs["model"], bits(inputs["model"])
    session = build.build(
        Inputs(recipe(**FIELDS, topology="static", sparsity=0, freeze_options={"target": "seconds"}), **inputs)
    )
    assert seen == [0, 1, 2, 3, 3, 2, 1, 0]
    assert session.model is model and same(bits(model), state) and all(p.grad is None for p in model.parameters())
    assert not session.frozen and all(p.requires_grad for p in model.parameters())
    assert "of all training seconds" in session.levers[0].reason
    assert not any(isinstance(module, SparseLayer) for module in model.modules())
