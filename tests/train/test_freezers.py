"""The freezers by name in a recipe: what freezes, and that a run goes on from mid-epoch to the same bits."""

import pytest
import torch
from train.runs import bits, figures, last_state, recipe, same, stop_within

from spfde.freezing import SimFreeze
from spfde.levers import EpochEnd

FIELDS = {"epochs": 3, "batch_size": 30, "lr": 0.05, "freeze": 0.1, "sieve": 0, "topology": "set", "seed": 2}
SHORT = {"every": 1, "bootstrap": 0, "samples": 8}
OPTIONS = {
    "static": {"start": 1},
    "linear": {"start": 0},
    "freezeout": {"first": 0.5},
    "egeria": {**SHORT, "window": 2, "tolerance": 5.0},
    "autofreeze": {"window": 1, "percentile": 0.9},
    "simfreeze": {**SHORT, "window": 1, "threshold": 0.9},
    "smartfrz": {"threshold": 0.001},
}
MORE = {"smartfrz": {"batch_size": 3}}  # a window has 30 steps
SAME_BASE = ("static", "freezeout")  # as linear has; the plans are tested by themselves


@pytest.mark.parametrize(
    "name, cache",
    [
        pytest.param(name, cache, marks=pytest.mark.full if name in SAME_BASE or cache == "auto" else ())
        for name in OPTIONS
        for cache in ("off", "auto")
    ],
)
def test_freezes_under_fit_and_resumes_within_an_epoch_to_the_same_bits(name, cache, task, tmp_path):
    fields = {**FIELDS, **MORE.get(name, {}), "freeze_by": name, "freeze_options": OPTIONS[name], "cache": cache}
    whole = task.fit(recipe(out=tmp_path / "whole", **fields))
    stop_within(1 if cache == "off" else 2, 2, tmp_path / "parts", fit=task.fit, fields=fields)
    parts = task.fit(recipe(out=tmp_path / "parts", **fields), resume=True)
    assert same(last_state(tmp_path / "parts"), last_state(tmp_path / "whole"))
    assert same(bits(parts.model), bits(whole.model))
    if cache == "off":  # what a cache did is told by process
        assert [figures(e) for e in parts.epochs] == [figures(e) for e in whole.epochs]
    frozen = [record.frozen for record in whole.epochs]
    assert frozen[-1] and frozen[0] == () and whole.epochs[-1].flops < whole.epochs[0].flops
    told = [event for record in whole.epochs for event in record.events if event.kind == "freeze"]
    assert [event.text for event in told] == [f"froze {block}" for block in frozen[-1]]
    assert all(event.reason for event in told)


def test_a_run_in_which_nothing_froze_says_why(task):
    records = task.fit(recipe(**FIELDS, freeze_by="smartfrz")).epochs
    told = [[(e.text, e.reason) for e in record.events if e.kind == "freeze"] for record in records]
    steps = -(-records[0].samples // FIELDS["batch_size"])
    why = f"layer1.0 stays active: {steps} of 30 snapshots since its window began"
    assert told == [[], [], [("froze nothing", why)]]


def test_freezeout_anneals_and_scales_the_rates_of_its_blocks(task):
    seen = {}

    class Watch:
        from spfde.levers import Step

        needs = (Step,)

        def on(self, event, run):
            for group in run.optimizer.param_groups:
                seen.setdefault(group.get("block"), []).append(group["lr"])

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    fields = {**FIELDS, "warmup": 0, "freeze_by": "freezeout", "freeze_options": {"first": 0.5, "curve": "linear"}}
    task.fit(recipe(**fields), levers=[Watch()])
    rates = seen["layer1.0"]
    assert len(rates) == 9 and all(rate > 0 for rate in rates[:4]) and not any(rates[5:])
    assert rates[0] == pytest.approx(2 * seen[None][0], rel=0.05)  # scaled by 1 / 0.5
    with pytest.raises(ValueError, match="expected a run that anneals .*block_cosine"):
        task.fit(recipe(**fields, block_cosine=False))


def test_simfreeze_thaws_under_fit_when_it_is_told_of_new_data(task):
    class Told(SimFreeze):
        """Is told after the third epoch, in which it has frozen."""

        needs = frozenset({*SimFreeze.needs, EpochEnd})

        def on(self, event, run):
            if isinstance(event, EpochEnd):
                taken.append(self.state_dict()["own"]["probe"]["inputs"])
                if event.epoch == 2:
                    self.data_changed()
                return None
            return super().on(event, run)

    taken: list[torch.Tensor] = []
    options = {**SHORT, "window": 1, "threshold": 0.9}
    fields = {**FIELDS, "epochs": 5, "freeze": 0, "topology": "static"}
    records = task.fit(recipe(**fields), levers=[lambda run: Told(run.model, run.blocks, **options)]).epochs
    assert [bool(record.frozen) for record in records] == [False, True, True, False, True]
    assert [(e.kind, e.reason) for e in records[3].events] == [("unfreeze", "the data changed")]
    assert all(len(inputs) == 8 for inputs in taken)
