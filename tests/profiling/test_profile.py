"""`spfde.profile`: what it leaves alone, what it finds, and what it refuses."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from profiling.models import Block, images, loss_fn, sparse_block
from torch import nn

import spfde
from spfde.profiling.dense_baseline import CHANNELS_LAST, dense_step, step_of
from spfde.profiling.profile import _faster
from spfde.profiling.result import StepProfile
from spfde.profiling.variant import Part, Variant


def profiled(model, **options):
    return spfde.profile(model, images(), loss_fn, rounds=2, **options)


def test_model_optimizer_and_random_state_stay():
    model = spfde.fuse(sparse_block()).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    loss_fn(model(images())).backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), [p.grad for p in model.parameters()], optimizer.state_dict()))
    drawn, threads = torch.get_rng_state(), torch.get_num_threads()
    profiled(model, optimizer=optimizer)
    spfde.memory(model, images(), loss_fn, optimizer)
    after = (model.state_dict(), [p.grad for p in model.parameters()], optimizer.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), drawn) and torch.get_num_threads() == threads
    assert not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_parts_are_those_of_both_variants():
    found = profiled(sparse_block())
    assert found.batch == 4 and found.threads == torch.get_num_threads() and found.rounds == 2
    assert found.dense.name in ("dense contiguous", "dense channels_last")
    assert {layer.name for layer in found.model.layers()} == {layer.name for layer in found.dense.layers()}
    for each in found.variants:
        assert 0 < each.accounted <= 1 + 1e-9
        whole = sum(layer.seconds for layer in each.layers()) + sum(each.around().values())
        assert whole == pytest.approx(sum(each.kinds().values()))
    assert "dense products" in found.dense.kinds() and "sparse kernels" not in found.dense.kinds()
    assert found.model.memory.weights < found.dense.memory.weights
    assert found.speedup == found.dense.seconds / found.model.seconds


def test_a_dense_model_has_no_baseline_but_a_fused_one_has():
    assert profiled(Block()).dense is None
    assert profiled(Block()).speedup is None
    assert profiled(spfde.fuse(Block())).dense is not None
    assert profiled(sparse_block(), dense=False).dense is None


def test_the_baseline_is_the_same_network_dense():
    model = spfde.fuse(sparse_block())
    optimizer = torch.optim.SGD(
        [{"params": [model.conv.values], "lr": 0.5}, {"params": [model.fc.values, model.fc.bias], "lr": 0.25}],
        lr=0.1, momentum=0.9,
    )  # fmt: skip
    loss_fn(model(images())).backward()
    optimizer.step()  # state that does not fit the baseline
    step = step_of(model, optimizer, images, loss_fn)
    for layout in ("contiguous", CHANNELS_LAST):
        baseline = dense_step(step, layout)
        assert type(baseline.model.conv) is nn.Conv2d and type(baseline.model.bn) is nn.BatchNorm2d
        torch.testing.assert_close(baseline.model(baseline.data()), step.model(step.data()), rtol=1e-4, atol=1e-5)
        groups = baseline.optimizer.param_groups
        assert [[id(p) for p in group["params"]] for group in groups] == [
            [id(baseline.model.conv.weight)], [id(baseline.model.fc.weight), id(baseline.model.fc.bias)]
        ]  # fmt: skip
        assert [group["lr"] for group in groups] == [0.5, 0.25] and not baseline.optimizer.state
        assert baseline.data().is_contiguous(memory_format=getattr(torch, layout + "_format", torch.channels_last))
        before = baseline.model.conv.weight.detach().clone()
        baseline()
        assert not torch.equal(baseline.model.conv.weight, before)
    assert step.optimizer.param_groups[0]["params"][0] is step.model.conv.values


def test_channels_last_is_tried_for_images_only():
    tokens = step_of(spfde.sparsify(nn.Linear(5, 5)), None, lambda: torch.ones(3, 5), loss_fn)
    assert _faster(tokens, torch.ones(3, 5)).name == "dense contiguous"


def test_frozen_parts_have_no_backward():
    model = sparse_block()
    spfde.freezing.freeze(model.stem)
    phases = {name: {p.phase for p in profiled(model).model.parts if p.layer == name} for name in ("stem", "conv")}
    assert phases == {"stem": {"forward"}, "conv": {"forward", "backward"}}


def test_data_is_profiled_with_the_step():
    calls = []

    def data():
        calls.append(1)
        return images()

    found = profiled(sparse_block(), data=data)
    assert "data" in found.model.kinds() and len(calls) > 2 * 2


def test_several_inputs_and_the_default_loss():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 2)

        def forward(self, x, y):
            return self.fc(x + y)

    found = spfde.profile(Sum(), (torch.ones(3, 5), torch.ones(3, 5)), rounds=1)
    assert found.batch == 3
    assert [(layer.name, layer.op) for layer in found.model.layers()] == [("", "add"), ("fc", "Linear")]


def test_files(tmp_path):
    found = profiled(sparse_block())
    kept = json.loads(found.save(tmp_path / "profile.json").read_text())
    assert kept["model"]["seconds"] == found.model.seconds and kept["kinds"]["model"] == found.model.kinds()
    assert [Part(**part) for part in kept["model"]["parts"]] == list(found.model.parts)
    for name in ("profile.png", "profile.svg"):
        assert found.save_plot(tmp_path / name).stat().st_size > 1000
    assert "conv" in (tmp_path / "profile.svg").read_text()


def test_tables():
    memory = spfde.memory(nn.Linear(5, 5), torch.ones(3, 5))
    parts = (
        Part("forward", "conv", "SparseConv2d", "sparse kernels", 0.004),
        Part("forward", "conv", "SparseConv2d", "Python", 0.001),
        Part("backward", "conv", "SparseConv2d", "sparse kernels", 0.002),
        Part("optimizer", "", "", "optimizer", 0.001),
        Part("forward", "", "Block", "Python", 0.002),
    )
    dense = (
        Part("forward", "conv", "Conv2d", "dense products", 0.014),
        Part("forward", "relu", "ReLU", "activation", 0.002),
        Part("backward", "", "", "autograd engine", 0.004),
    )
    found = StepProfile(
        Variant("model", 0.01, parts, memory), Variant("dense contiguous", 0.025, dense, memory), 64, 2, 5
    )
    lines = str(found).splitlines()
    for words in ("10.00 ms", "25.00 ms", "2.50x", "batch 64", "threads 2", "100% and 80%", "busy"):
        assert words in lines[0]
    rows = [line.split() for line in lines]
    assert ["sparse", "kernels", "6.00", "60%"] in rows
    assert ["Python", "3.00", "30%"] in rows
    assert ["conv", "SparseConv2d", "5.00", "2.00", "0.00", "14.00", "0.00", "0.00", "2.00x"] in rows
    assert ["relu", "(ReLU)", "2.00", "0.00", "0.00"] in rows
    assert ["(optimizer)", "1.00"] in rows and ["(Python)", "2.00"] in rows
    assert any(row[:1] == ["peak"] and row[-1] == "1.00x" for row in rows)
    alone = StepProfile(found.model, None, 64, 2, 5)
    assert "dense" not in str(alone)


def test_what_it_refuses():
    model, x = nn.Linear(5, 5), torch.ones(3, 5)
    with pytest.raises(TypeError, match="nn.Module"):
        spfde.profile(F.relu, x)
    with pytest.raises(ValueError, match="torch.compile"):
        spfde.profile(torch.compile(model, backend="eager"), x)
    with pytest.raises(ValueError, match="meta"):
        spfde.profile(nn.Linear(5, 5, device="meta"), x)
    with pytest.raises(ValueError, match="optimizer"):
        spfde.memory(model, x, optimizer=torch.optim.SGD(nn.Linear(5, 5).parameters()))
    for rounds in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="rounds"):
            spfde.profile(model, x, rounds=rounds)
    with pytest.raises(ValueError, match="loss_fn"):
        spfde.profile(model, x, lambda output: output)
    with pytest.raises(ValueError, match="no gradient"):
        spfde.profile(model, x, lambda output: output.sum().detach())
    with pytest.raises(ValueError, match="float"):
        spfde.profile(model, x, lambda output: 1.0)
    with pytest.raises(ValueError, match="loss_fn"):
        spfde.profile(nn.LSTM(5, 5), x)
