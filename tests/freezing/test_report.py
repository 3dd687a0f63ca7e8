"""What a freezer says of itself: what froze when, as planned and as it went, and what that saved."""

import copy
import json
from dataclasses import dataclass, field

import pytest
import torch
from freezing.models import IMAGES, ResNet
from freezing.test_freezer import told
from freezing.test_progressive import freezer

from spfde.freezing import FreezeReport, Linear, blocks
from spfde.freezing.costs import training_flops

BLOCKS = ("a", "b", "c")
PLANNED = ((), ("a",), ("a", "b"), ("a", "b"))


@dataclass(frozen=True)
class Epoch:
    samples: int
    flops: float
    frozen: tuple[str, ...]
    training_seconds: float
    cache: dict = field(default_factory=dict)


def report(**fields):
    values = {"method": "Some", "blocks": BLOCKS, "planned": PLANNED, "done": (), "flops": (10.0, 8.0, 5.0, 4.0)}
    return FreezeReport(**{**values, **fields})


def test_shares_by_hand():
    planned = report(seconds=(1.0, 0.9, 0.7))
    assert planned.planned_flops == pytest.approx(1 - (10 + 8 + 5 + 5) / 40)
    assert planned.planned_seconds == pytest.approx(1 - (1 + 0.9 + 0.7 + 0.7) / 4)
    assert planned.saved_flops is planned.saved_seconds is None
    done = report(done=((), ("a",), ("b",)))  # what is frozen behind an active block counts as nothing
    assert done.saved_flops == pytest.approx(2 / 30)
    after = planned.after([Epoch(10, 100.0, (), 5.0), Epoch(10, 100.0, (), 2.0), Epoch(5, 40.0, ("a",), 0.8)])
    assert after.done == ((), (), ("a",))
    assert after.saved_flops == pytest.approx(10 / 250)  # 50 for five samples with nothing frozen
    assert after.saved_seconds == pytest.approx(0.2 / 8)  # the first epoch, in which things start, is no measure
    assert after.savings == "FLOPs: 30.0% planned, 4.0% saved; seconds: 17.5% planned, 2.5% saved"


def test_what_the_cache_spared_is_saved_too():
    found = {"hits": 30, "misses": 10, "flops": 12.0, "bytes": 2048}
    after = report(planned=()).after([Epoch(10, 100.0, (), 5.0), Epoch(10, 68.0, ("a",), 1.0, found)])
    assert after.saved_flops == pytest.approx(1 - 168 / 200)
    assert after.savings.endswith("cache: 75.0% of 40 found, 2 KiB at most")


def test_what_is_not_known_is_not_told():
    bare = report(planned=(), flops=())
    assert bare.savings == "" and str(bare) == "Some: 0 of 3 blocks frozen"
    assert report(seconds=(1.0, 0.9)).planned_seconds is None  # not measured as far as the plan goes
    assert report().after([Epoch(10, 100.0, ("a",), 1.0)]).saved_seconds is None  # never without a frozen block
    records = [Epoch(10, 100.0, ("b",), 1.0), Epoch(10, 100.0, ("b", "a"), 1.0)]
    assert FreezeReport.of_records(records).blocks == ("b", "a")


def test_the_timeline_in_text():
    assert str(report(done=((), ("a",)), reason="as told")).splitlines() == [
        "Some: 1 of 3 blocks frozen in epoch 1",
        "  a  ·█░░",
        "  b  ··░░",
        "  c  ····",
        "  █ frozen, ░ planned, · active; epochs 0 to 3",
        "FLOPs: 30.0% planned, 10.0% saved",
        "as told",
    ]
    often = tuple(("a",) if epoch % 2 or epoch > 100 else () for epoch in range(144))
    lines = str(report(planned=(), done=often)).splitlines()
    assert lines[1] == "  a  " + "▒" * 51 + "█" * 21
    assert "▒ some of the 2 epochs of a sign" in lines[4]


def test_plain_values_and_back():
    one = report(seconds=(1.0, 0.9, 0.7), reason="why")
    assert FreezeReport.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    for damage in ({"blocks": 3}, {"flops": ["x"]}, {"planned": [1]}):
        with pytest.raises(ValueError, match="expected the values of a freezing report, got .*, try a fresh run"):
            FreezeReport.from_dict({**one.to_dict(), **damage})
    with pytest.raises(ValueError, match="got KeyError"):
        FreezeReport.from_dict({"blocks": []})


@pytest.mark.parametrize("scheme", ["single-shot", "single-shot-resume", "periodic"])
def test_progressive_does_what_it_plans(scheme):
    plan = freezer(ResNet(), scheme=scheme)
    seen = []
    for epoch in range(12):
        assert plan.report().done == tuple(seen)
        plan.begin_epoch(epoch)
        seen.append(plan.frozen)
    done = plan.report()
    assert [set(names) for names in done.planned] == [set(names) for names in seen]
    assert done.planned_flops == pytest.approx(plan.saving) == pytest.approx(done.saved_flops)
    other = freezer(ResNet(), scheme=scheme)
    other.load_state_dict(copy.deepcopy(plan.state_dict()))
    assert other.report() == done
    for damaged in (None, 12, -2):
        with pytest.raises(ValueError, match=r"expected an epoch in \[-1, 12\), got .*; try another checkpoint"):
            other.load_state_dict({**plan.state_dict(), "epoch": damaged})


def test_freezers_that_decide_tell_what_they_did():
    freezing = told(ResNet(), ready=1, thaw=(3,))
    first = freezing.blocks[0].name
    for epoch in range(5):
        freezing.begin_epoch(epoch)
        freezing.ready = 1 if epoch < 2 else 2
    second = freezing.blocks[1].name
    done = freezing.report()
    assert done.done == ((first,), (first,), (first,), (), (first, second))
    assert done.planned == () and done.planned_flops is None
    assert done.flops == training_flops(freezing.blocks)
    other = told(ResNet(), ready=2)
    other.load_state_dict(copy.deepcopy(freezing.state_dict()))
    assert other.report() == done


def test_freezers_on_a_schedule_plan_it():
    model = ResNet()
    freezing = Linear(model, blocks(model, torch.randn(IMAGES)), epochs=8)
    planned = freezing.report().planned
    for epoch in range(8):
        freezing.begin_epoch(epoch)
        assert freezing.frozen == planned[epoch]


def test_the_figure_has_a_bar_for_every_time_a_block_was_frozen():
    drawing = report(done=(("b",), ("a", "b"), ("a",), ("b",))).figure()
    axes = drawing.axes[0]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert bars == [(0.5, 3), (0.5, 2), (1.5, 2), (-0.5, 2), (2.5, 1)]  # planned and done, block by block
    assert [label.get_text() for label in axes.get_yticklabels()] == list(BLOCKS)
