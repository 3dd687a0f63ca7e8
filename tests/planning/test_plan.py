"""Plans by a profile made by hand: what is summed, what levers save, advice, the file, and the check of a plan."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from planning.test_estimate import OPS, PROFILE, row
from torch import nn

import spfde
from spfde.bench import Workload
from spfde.planning import load
from spfde.planning.check import Miss, check
from spfde.planning.estimate import Estimator
from spfde.planning.work import step_work
from spfde.train import Recipe
from spfde.tuning.device_profile import OpSeconds
from spfde.tuning.ops import NORM, NORM_GRAD

RECIPE = Recipe(sparsity=0.9, freeze=0.1, sieve=0.2, epochs=20, interval=1, fuse=False)
KERNELS = (("torch", 1.0, 1e-2), ("native", 0.1, 2e-3), ("native", 0.5, 2e-2))
CONV = [row((16, 16, 3, 3), 8, (8, 8), kernel, density, seconds) for kernel, density, seconds in KERNELS]
SLOW = replace(PROFILE, layers=tuple(CONV), ops=OPS)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return spfde.models.create("resnet20")


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 3, 8, 8)


@pytest.fixture(scope="module")
def made(model, images):
    return spfde.plan(model, images, RECIPE, device=SLOW)


def test_a_plan_sums_layers_and_the_rest(made):
    rows = {each.name: each for each in made.layers}
    assert rows["conv1"].kernel == "dense" and rows["conv1"].sparsity == 0
    inner = rows["layer1.0.conv1"]
    assert inner.kernel and inner.sparsity == pytest.approx(0.9, abs=0.01)
    assert inner.dense == pytest.approx(6e-2, rel=0.01), "forward and two gradients"
    assert inner.planned == pytest.approx(1.2e-2, rel=0.01) and inner.source == "measured"
    assert 0.5 < inner.break_even <= 0.9
    assert made.sparse == pytest.approx(sum(made.parts.values()))
    assert made.sparse > sum(each.planned for each in made.layers)


def test_levers(made):
    levers = {each.name: each for each in made.levers}
    assert list(levers) == ["weight sparsity", "layer freezing", "data sieving"]
    assert 0.7 < levers["weight sparsity"].flops < 0.9 and levers["weight sparsity"].memory > 0
    assert levers["weight sparsity"].seconds == pytest.approx(1 - made.sparse / made.dense)
    assert levers["layer freezing"].flops >= 0.1 and levers["layer freezing"].seconds > 0
    assert levers["data sieving"].seconds == pytest.approx(0.2)
    assert list(made.stages) == sorted(made.stages, reverse=True)
    assert made.frozen < made.mean < made.sparse < made.dense
    assert made.speedup == pytest.approx(made.dense / made.mean / 0.8)


def test_the_model_stays_as_it_was(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    spfde.plan(model, images, RECIPE, device=SLOW)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and not any(isinstance(m, spfde.nn.SparseConv2d) for m in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_advice_names_what_gains_nothing(model, images):
    half = spfde.plan(model, images, replace(RECIPE, sparsity=0.5, freeze=0.0), device=SLOW)
    told = " ".join(half.advice)
    assert "layer1.0.conv1 gains nothing below" in told and "leave it dense" in told
    assert "not faster than the dense one" in told
    assert half.frozen is not None and half.mean == half.sparse, "half of the blocks, though none is to freeze"


def test_a_guess_is_called_one(model, images):
    guessed = spfde.plan(model, images, RECIPE, device=replace(SLOW, layers=(), ops=()))
    assert guessed.guessed == pytest.approx(1, abs=0.01)
    assert "a guess by the roofline" in guessed.advice[-1]
    row = next(row for row in guessed.layers if row.name == "layer1.0.conv1")
    assert f"predicted {row.dense / row.planned:.1f}x the dense product" in row.reason, "as dispatch says"
    board = replace(SLOW, layers=(), ops=(), device=replace(SLOW.device, kind="cuda"))
    on_gpu = next(r for r in spfde.plan(model, images, RECIPE, device=board).layers if r.name == "layer1.0.conv1")
    assert on_gpu.planned != pytest.approx(row.planned), "a CPU's cost model says nothing about a GPU"


def test_a_page_and_a_file(made, tmp_path):
    text = str(made)
    assert "a dense step" in text and "layer1.0.conv1" in text and made.advice[0] in text
    path = made.save(tmp_path / "deep" / "plan.json")
    assert load(path) == made


@pytest.mark.parametrize(
    ("change", "named"), [({"format": "x"}, "another file"), ({"version": 9}, "version"), ({"dense": "?"}, "dense")]
)
def test_a_damaged_file_is_named(made, tmp_path, change, named):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**made.to_dict(), **change}))
    with pytest.raises(ValueError, match=named):
        load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        load(path)


def test_work_is_scaled_to_the_batch():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    few, many = (step_work(model, torch.randn(n, 3, 8, 8)) for n in (4, 40))
    assert [use.shape.batch for use in many.layers] == [40, 40] and many.layers[0].shape.size == (3, 3)
    assert (many.layers[0].first, many.layers[1].first) == (True, False)
    assert many.kept == 10 * few.kept and many.parameters == sum(4 * p.numel() for p in model.parameters())
    assert [work.ops["forward"][0].amount for work in (few, many)] == [2 * 4 * n * 36 for n in (4, 40)]


def test_what_does_not_grow_with_the_samples_is_not_scaled():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(50, 6))

        def forward(self, x):
            return x.exp() * self.table.exp().mean()

    ops = step_work(Mean(), torch.randn(40, 7)).ops["forward"]
    amounts = [op.amount for op in ops if op.name == "aten::exp"]
    assert amounts == [2 * 4 * 40 * 7, 2 * 4 * 50 * 6]


def test_a_step_with_other_ops_for_fewer_samples_is_scaled_as_it_is():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x).exp() if len(x) > 2 else self.layer(x)

    ops = step_work(Odd(), torch.randn(40, 3)).ops["forward"]
    assert [op.amount for op in ops if op.name == "aten::exp"] == [2 * 4 * 40 * 3]


def test_dense_in_channels_last_goes_by_ops_in_channels_last(model, images):
    rows = [
        OpSeconds("aten::native_batch_norm", 1000, 10.0),
        OpSeconds("aten::native_batch_norm channels_last", 1000, 1e-6),
    ]
    slow, fast = (spfde.plan(model, images, RECIPE, device=replace(SLOW, ops=tuple(rows[:n]))).dense for n in (1, 2))
    assert slow > 190 and fast < 1, "19 norms"


def test_a_sparse_layer_on_channels_last_images_turns_them_round(model, images):
    copy = OpSeconds("aten::clone", 1, 1e-3)
    used = {use.name: use for use in step_work(spfde.sparsify(deepcopy(model), 0.9), images).layers}["layer1.0.conv1"]
    assert not used.last and used.shape.ends == (8 * 16 * 64, 8 * 16 * 64)
    last = spfde.sparsify(deepcopy(model), 0.9).to(memory_format=torch.channels_last)
    found = step_work(last, images.contiguous(memory_format=torch.channels_last)).layers
    assert all(use.last for use in found if use.name == "layer1.0.conv1")
    made = Estimator(replace(SLOW, ops=(copy,)))
    once = 2 * 2 * 4 * 8 * 16 * 64 * 1e-3  # there and back, in proportion above what was measured
    assert made.copies(used.shape, first=False) == pytest.approx(3 * once)
    assert made.copies(used.shape, first=True) == pytest.approx(2 * once)


def test_a_layer_that_stays_dense_is_contiguous_in_a_sparse_step(model, images):
    rows = [
        row((16, 3, 3, 3), 8, (8, 8), kernel, 1.0, seconds)
        for kernel, seconds in (("torch", 2e-2), ("torch channels_last", 1e-4))
    ]
    quick = [row((16, 16, 3, 3), 8, (8, 8), "torch channels_last", 1.0, 1e-4)]
    first = spfde.plan(model, images, RECIPE, device=replace(SLOW, layers=(*CONV, *rows, *quick))).layers[0]
    assert first.name == "conv1" and first.dense == pytest.approx(4e-4, rel=0.01)
    assert first.planned == pytest.approx(8e-2, rel=0.01)


def test_a_check_is_of_the_plan(model, images, monkeypatch):
    load = Workload("net", model, images, lambda y: y.square().mean())
    seen = []
    monkeypatch.setattr("spfde.bench.subject.fuse", lambda model: seen.append(model) or model)
    for fused in (False, True):
        check(spfde.plan(model, images, replace(RECIPE, fuse=fused), device=SLOW), load, repeats=1)
        assert len(seen) == fused


def test_a_check_measures_the_same_steps(model, images):
    load = Workload("net", model, images, lambda y: y.square().mean())
    made = spfde.plan(model, images, replace(RECIPE, fuse=True), device=SLOW)
    names = [miss.name for miss in check(made, load, repeats=1)]
    assert names == ["dense step", "sparse step", "half frozen step"]
    assert Miss("a step", 1.2, 1.0).off == pytest.approx(0.2)


def test_a_step_gives_gradients_and_adds_none():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    ops = step_work(model, torch.randn(8, 3)).ops["backward"]
    assert not [op for op in ops if op.name == "aten::add_"]


def test_a_norm_that_is_one_op_with_its_convolution_is_planned_as_one(model, images):
    work = step_work(spfde.fuse(spfde.sparsify(deepcopy(model), 0.9)), images)
    normed = [use.name for use in work.layers if use.normed]
    left = [[op.name for op in ops].count(name) for ops, name in zip(work.ops.values(), (NORM, NORM_GRAD), strict=True)]
    assert len(normed) == 18 and "conv1" not in normed and left == [1, 1]
    norms = (OpSeconds(NORM, 1, 1e-6), OpSeconds(NORM_GRAD, 1, 1e-6))
    recipe = replace(RECIPE, fuse=True, freeze=0.0)
    layers = [(CONV[0], replace(CONV[1], training=3e-3, normed=seconds), CONV[2]) for seconds in (None, 3.1e-3)]
    apart, one = (spfde.plan(model, images, recipe, device=replace(SLOW, layers=x, ops=norms)) for x in layers)
    inner = [{row.name: row for row in each.layers}["layer1.0.conv1"].planned for each in (apart, one)]
    assert inner == pytest.approx([3e-3, 3e-3], rel=0.01), "the norm is not the layer's"
    assert apart.parts["norms"] > 19 * 4 * 5 * 8 * 16 * 16 * 1e-6 > one.parts["norms"] > 6e-4
    assert one.sparse == pytest.approx(sum(one.parts.values())) and one.stages[-1] < one.sparse


def test_frozen_norms_fold_into_convolutions_alone(model, images):
    def saved(model, inputs, op):
        slow = replace(SLOW, ops=(OpSeconds(op, 1, 1e-9), OpSeconds(op, 10**9, 1.0)))
        return spfde.plan(model, inputs, replace(RECIPE, freeze=0.0), device=slow).stages

    whole, *_, last = saved(model, images, "aten::native_batch_norm")
    assert whole - last > 0.9 * 19 * 8 * 16 * 64 * 8 * 1e-9
    parts = [nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)) for _ in range(4)]
    x = torch.randn(8, 64)
    norms, none = (saved(nn.Sequential(*parts), x, f"aten::native_{op}") for op in ("layer_norm", "nothing"))
    added = [a - b for a, b in zip(norms, none, strict=True)]
    assert len(added) > 1 and added[0] > 0 and added == pytest.approx(added[:1] * len(added)), (
        "those of LayerNorms stay"
    )


def test_freezing_that_cannot_be_reached_is_planned_as_far_as_it_can(model, images):
    made = spfde.plan(model, images, replace(RECIPE, freeze=0.5), device=SLOW)
    assert 0.1 < made.recipe["freeze"] < 0.5
    assert f"freeze 0.5 is out of reach, planned with freeze {made.recipe['freeze']:g}: expected" in made.advice[0]
    assert "larger fraction or more epochs" in str(made)
    assert {lever.name: lever for lever in made.levers}["layer freezing"].flops >= made.recipe["freeze"]
    none = spfde.plan(model, images, replace(RECIPE, epochs=2000, interval=1999), device=SLOW)
    assert "planned without freezing" in none.advice[0] and none.mean == none.sparse
    with pytest.raises(ValueError, match="freeze_fraction"):
        spfde.plan(model, images, replace(RECIPE, freeze_fraction=0.95, interval=1, epochs=40), device=SLOW)
