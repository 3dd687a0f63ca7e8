"""Progressive freezing on real models: the plan, what it freezes, resuming, and what it refuses."""

import copy
import io
import re
from pathlib import Path

import pytest
import torch
from freezing.models import IMAGES, MODELS, VGG, ResNet, ViT
from torch import nn

from spfde.convert.sparsify import sparsify
from spfde.freezing import Compiled, FreezeSchedule, Progressive, blocks, is_frozen
from spfde.freezing.schedule import Change
from spfde.freezing.schemes import SCHEMES
from spfde.levers import Lever
from spfde.models.resnet import ResNet as PaperResNet

OPTIONS = {"epochs": 12, "interval": 2, "flops_reduction": 0.1}


def freezer(model: nn.Module, **options) -> Progressive:
    return Progressive(model, blocks(model, torch.randn(IMAGES)), **{**OPTIONS, **options})


def frozen_parameters(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if not p.requires_grad]


def test_the_paper_s_network_is_planned_as_the_page_says():
    model = PaperResNet(32, num_classes=100, width=2)
    sparsify(model, sparsity=0.9)
    found = blocks(model, torch.randn(1, 3, 32, 32))
    page = (Path(__file__).parents[2] / "docs" / "freezing" / "progressive.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z-]+) \| (\d+) \| .* \| ([\d.]+%) \| ([\d.]+%) \|$", page, re.M)
    assert [name for name, *_ in rows] == [*SCHEMES]
    for name, first, credited, computed in rows:
        plan = Progressive(model, found, epochs=160, interval=5, flops_reduction=0.2, scheme=name)
        assert plan.first_epoch == int(first) and f"{plan.saving:.1%}" == computed
        assert f"saves {credited} of all training FLOPs" in plan.reason
    plan = Progressive(model, found, epochs=160, interval=5, flops_reduction=0.2)
    assert [epoch for epoch, _ in plan.plan] == list(range(60, 110, 5))
    assert [name for _, name in plan.plan] == [f"layer{s}.{i}" for s in (1, 2) for i in range(5)]
    assert "10 of 15 blocks" in plan.reason and str(plan).count("freeze layer") == 10


@pytest.mark.parametrize("name", MODELS)
def test_freezes_front_to_back_on_schedule(name):
    model = MODELS[name]()
    plan = freezer(model)
    assert isinstance(plan, Lever)
    schedule = dict(plan.plan)
    assert plan.first_epoch == min(schedule) and plan.first_epoch % 2 == 0
    done: list[str] = []
    for epoch in range(12):
        expected = [schedule[epoch]] if epoch in schedule else []
        assert [b.name for b in plan.due(epoch)] == expected == [b.name for b in plan.due(epoch)]
        assert plan.begin_epoch(epoch) == expected and plan.begin_epoch(epoch) == []
        done += expected
        model.train()
        plan.end_epoch()
        assert plan.frozen == tuple(done)
        for block in plan.blocks:
            now = block.name in done
            assert all(is_frozen(m) == now for _, m in block.modules if next(m.parameters(), None) is not None)
            assert all(p.requires_grad != now for _, p in block.parameters)
    assert done == [block.name for block in plan.blocks][: len(done)] and done


def what_reaches(module: nn.Module, model: nn.Module) -> tuple[bool, int]:
    """In a training step: whether the module's input needs a gradient; tensors kept before it."""
    reached, saved = [], []
    hook = module.register_forward_pre_hook(lambda m, a: reached.append((a[0].requires_grad, len(saved))))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(torch.randn(IMAGES)).sum().backward()
    hook.remove()
    assert saved
    return reached[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_after_a_freeze_nothing_in_front_of_the_first_active_block_is_kept_for_backward(name, sparse):
    model = MODELS[name]()
    if sparse:
        sparsify(model, sparsity=0.5)
    plan = freezer(model)
    for epoch, _ in plan.plan:
        plan.begin_epoch(epoch)
        model.train()
        active = next(b for b in plan.blocks if b.name not in plan.frozen)
        body = dict(active.modules)[active.name]
        assert what_reaches(body, model) == (False, 0)
        assert all(p.grad is not None for p in body.parameters())


def test_an_epoch_that_was_skipped_is_made_up_for():
    model = ResNet()
    plan = freezer(model)
    assert plan.begin_epoch(11) == [name for _, name in plan.plan]


@pytest.mark.parametrize(
    ("scheme", "stop"),
    [*(("single-shot", stop) for stop in (0, 6, 8, 11)), *((name, stop) for name in SCHEMES for stop in (5, 10))],
)
def test_resumes_to_the_same_frozen_set(scheme, stop):
    torch.manual_seed(0)
    model = ViT()
    plan = freezer(model, flops_reduction=0.15, scheme=scheme)
    for epoch in range(stop + 1):
        plan.begin_epoch(epoch)
    file = io.BytesIO()
    torch.save(plan.state_dict(), file)
    file.seek(0)
    resumed = ViT()
    again = freezer(resumed, flops_reduction=0.15, scheme=scheme)
    again.load_state_dict(torch.load(file, weights_only=True))
    resumed.train()
    assert again.frozen == plan.frozen and frozen_parameters(resumed) == frozen_parameters(model)
    for epoch in range(stop + 1, 12):
        assert plan.begin_epoch(epoch) == again.begin_epoch(epoch)
    assert frozen_parameters(resumed) == frozen_parameters(model)


def test_the_plan_of_the_state_wins_over_one_made_at_another_density():
    dense, sparse = ResNet(), sparsify(ResNet(), distribution={"layer1.0.conv1": 0.9, "layer1.1.conv1": 0.9})
    mine, theirs = freezer(dense, flops_reduction=0.25), freezer(sparse, flops_reduction=0.05)
    assert mine.plan != theirs.plan
    mine.load_state_dict(theirs.state_dict())
    assert (mine.plan, mine.reason, str(mine)) == (theirs.plan, theirs.reason, str(theirs))


def test_an_earlier_state_thaws_what_was_active_then():
    model = ViT()
    plan = freezer(model)
    early = plan.state_dict()
    plan.begin_epoch(11)
    assert frozen_parameters(model)
    plan.load_state_dict(early)
    assert plan.frozen == () and frozen_parameters(model) == [] and all(m.training for m in model.modules())


def test_the_state_is_a_snapshot():
    plan = freezer(ResNet())
    state = plan.state_dict()
    plan.begin_epoch(11)
    assert state["frozen"] == [] and plan.state_dict()["frozen"] == list(plan.frozen)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("scheme", "periodic", "a state with scheme 'single-shot', got 'periodic'"),
        ("epochs", 13, "a state with epochs 12, got 13"),
        ("blocks", ["a"], r"a state with blocks \['layer1.0'.*got \['a'\]"),
        ("frozen", ["layer2.0"], r"frozen blocks .*got \['layer2.0'\]"),
        ("frozen", None, "frozen blocks .*got None"),
        ("changes", [[4, "layer2.0", True]], r"changes of the first of .*got some of \['layer2.0'\]"),
        ("changes", [], r"changes of the first of .*got some of \[\]"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(key, value, words):
    model = ResNet()
    plan = freezer(model)
    state = copy.deepcopy(plan.state_dict())
    state["frozen"] = ["layer1.0"]
    with pytest.raises(ValueError, match=f"expected {words}.*try"):
        plan.load_state_dict({**state, key: value})
    assert plan.frozen == () and frozen_parameters(model) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 1}, "epochs to be an integer >= 2, got 1"),
        ({"epochs": 12.0}, "epochs to be an integer"),
        ({"interval": 0}, r"interval to be an integer in \[1, 11\], got 0"),
        ({"interval": 12}, r"interval to be an integer in \[1, 11\], got 12"),
        ({"flops_reduction": 0.0}, r"flops_reduction in \(0, 1\), got 0.0"),
        ({"flops_reduction": 1.0}, r"flops_reduction in \(0, 1\), got 1.0"),
        ({"flops_reduction": 20}, r"flops_reduction in \(0, 1\), got 20"),
        ({"flops_reduction": float("nan")}, r"flops_reduction in \(0, 1\), got nan"),
        ({"fraction": 0}, r"fraction in \(0, 1\], got 0"),
        ({"fraction": 1.1}, r"fraction in \(0, 1\], got 1.1"),
        ({"fraction": "all"}, r"fraction in \(0, 1\], got 'all'"),
        ({"flops_reduction": 0.95}, r"flops_reduction <= 0\.\d+"),
        (
            {"scheme": "thrice"},
            "scheme to be one of delayed-periodic, periodic, single-shot, single-shot-resume, got 'thrice'",
        ),
        ({"thaw_epochs": 2}, "no thaw_epochs with scheme='single-shot', got 2"),
        ({"scheme": "periodic", "delay": 2}, "no delay with scheme='periodic', got 2"),
        ({"scheme": "delayed-periodic", "delay": 12}, r"delay to be an integer in \[1, 11\], got 12"),
        ({"scheme": "single-shot-resume", "thaw_epochs": 1.0}, r"thaw_epochs to be an integer in \[1, 11\], got 1.0"),
        ({"scheme": "single-shot-resume", "thaw_epochs": 3}, r"thaw_epochs to be a multiple of the interval .* got 3"),
        ({"target": "minutes"}, "target to be one of flops, seconds, got 'minutes'"),
        ({"target": "seconds"}, "seconds with target='seconds' and with no other, got .* and seconds=None"),
        ({"seconds": [3, 2, 1, 1]}, r"seconds with .* got target='flops' and seconds=\[3, 2, 1, 1\]"),
        (
            {"target": "seconds", "seconds": [3, 2, 1]},
            r"the positive seconds of a step with the first 0 to 3 .* got \[3, 2, 1\]",
        ),
        (
            {"target": "seconds", "seconds": [3, 2, -1, 1]},
            r"the positive seconds of a step with .* got \[3, 2, -1, 1\]",
        ),
    ],
)
def test_arguments_out_of_range(options, words):
    with pytest.raises(ValueError, match=f"expected {words}.*try"):
        freezer(ResNet(), **options)


@pytest.mark.parametrize("epoch", [-1, 12, 1.0, True])
def test_an_epoch_out_of_range_is_refused(epoch):
    with pytest.raises(ValueError, match=r"expected epoch to be an integer in \[0, 11\]"):
        freezer(ResNet()).begin_epoch(epoch)


def test_blocks_of_another_model_or_of_an_earlier_self_are_refused():
    model = ResNet()
    found = blocks(model, torch.randn(IMAGES))
    with pytest.raises(
        ValueError, match=r"expected blocks of this model as it is now, got 'conv1' of block 'layer1.0'"
    ):
        Progressive(ResNet(), found, **OPTIONS)
    sparsify(model, sparsity=0.5)
    with pytest.raises(ValueError, match=r"got 'conv1'.*try calling blocks.*after sparsify"):
        Progressive(model, found, **OPTIONS)
    with pytest.raises(ValueError, match="expected blocks with different names"):
        Progressive(model, blocks(model, torch.randn(IMAGES)) * 2, **OPTIONS)
    with pytest.raises(ValueError, match="expected blocks with different names"):
        Progressive(model, [], **OPTIONS)
    with pytest.raises(TypeError, match=r"expected a list of FreezeBlock, got ReLU, str"):
        Progressive(model, ["layer1", nn.ReLU()], **OPTIONS)
    with pytest.raises(TypeError, match=r"expected an nn.Module as model, got list"):
        Progressive(found, model, **OPTIONS)


def test_a_plan_of_blocks_that_share_with_an_active_part_is_refused_by_name():
    model = VGG()
    found = blocks(model, torch.randn(IMAGES))
    model.features[3].bias = model.features[0].bias  # after the blocks were made
    with pytest.raises(ValueError, match=r"got 'features.0.bias' shared with 'features.3.bias'; try"):
        Progressive(model, found, **OPTIONS)
    assert all(p.requires_grad for p in model.parameters())


def test_tied_blocks_that_never_freeze_are_no_obstacle():
    model = ResNet()
    model.layer2[1].bn2.weight = model.layer2[0].bn2.weight
    plan = freezer(model, fraction=0.5)
    assert [name for _, name in plan.plan] == ["layer1.0", "layer1.1"]


def test_a_plan_that_leaves_nothing_to_train_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match=r"some parameter to stay trainable.*try a smaller fraction"):
        freezer(model, fraction=1.0)
    assert freezer(model, fraction=0.5).plan[0][1] == "0"


def test_the_plan_states_what_stays_trainable():
    model = ResNet()
    plan = freezer(model)
    total = sum(p.numel() for p in model.parameters())
    plan.begin_epoch(11)
    left = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{left / total:.1%} of the parameters stay trainable" in plan.reason and plan.reason in str(plan)


def test_a_plan_that_leaves_next_to_nothing_to_train_is_refused_unless_all_is_asked_for():
    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))

    with pytest.raises(ValueError, match=r"leaves 5% of the parameters to train, got 3.5% after freezing 0; try"):
        freezer(net())
    assert "3.5% of the parameters stay trainable" in freezer(net(), fraction=1.0).reason


def test_a_scheme_that_gives_blocks_back(monkeypatch):
    def there_and_back(names, backward, total, **options):
        changes = (Change(2, names[0]), Change(4, names[0], frozen=False), Change(6, names[0]), Change(6, names[1]))
        return FreezeSchedule(changes, 0.1, "there and back")

    monkeypatch.setitem(SCHEMES, "back", there_and_back)
    model = ResNet()
    plan = freezer(model, scheme="back")
    first, second = (block.name for block in plan.blocks[:2])
    seen = {epoch: (plan.begin_epoch(epoch), plan.frozen) for epoch in range(12)}
    assert [epoch for epoch, (frozen, _) in seen.items() if frozen] == [2, 6]
    assert [seen[epoch][1] for epoch in (1, 3, 5, 11)] == [(), (first,), (), (first, second)]
    assert plan.horizons == {second: 6 / 12} and is_frozen(model.get_submodule(first))
    again = freezer(ResNet(), scheme="back")
    again.load_state_dict(plan.state_dict())
    assert again.frozen == plan.frozen and str(again) == str(plan) and "unfreeze" in str(plan)


def test_compiled_code_is_dropped_at_a_freeze_and_only_that_models():
    depth = 9  # more freezes than torch.compile takes recompilations
    layers = [m for _ in range(depth) for m in (nn.Linear(4, 4), nn.BatchNorm1d(4))]
    model, other = nn.Sequential(*layers, nn.Linear(4, 2)), nn.Sequential(*layers[:2]).eval()
    plan = Progressive(
        model, blocks(model, torch.randn(2, 4)), epochs=20, interval=1, flops_reduction=0.3, fraction=1.0
    )
    traced = []

    def backend(graph, example_inputs):
        traced.append(len(graph.graph.nodes))
        return graph.forward

    compiled, elsewhere = Compiled(model, backend=backend), torch.compile(other, backend=backend)
    freezes = 0
    for epoch in range(20):
        frozen = plan.begin_epoch(epoch)
        freezes += len(frozen)
        if frozen:
            compiled.drop()
        model.train()
        before = len(traced)
        model.zero_grad()
        compiled(torch.randn(8, 4)).sum().backward()
        assert (len(traced) > before) == (epoch == 0 or bool(frozen))
        assert [n for n, p in model.named_parameters() if p.grad is None] == frozen_parameters(model)
    assert freezes == depth
    elsewhere(torch.randn(8, 4))
    before = len(traced)
    compiled.drop()
    elsewhere(torch.randn(8, 4))
    assert len(traced) == before
