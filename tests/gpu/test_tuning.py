"""On a GPU: the tuner fills a table that decides, and spfde.tune fixes the choices of a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spfde
from spfde._machine import Machine
from spfde.bench import Group, conv
from spfde.bench.measuring import measure
from spfde.kernels.dispatch import in_use
from spfde.kernels.dispatch.measurement import OPS
from spfde.tuning.layer import LayerSpec
from spfde.tuning.sweep import tune_here

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def nothing_known(monkeypatch):
    """No table before the test, and none of the test's after it."""
    monkeypatch.setattr(in_use, "_known", {})
    spfde.use_table(None)
    yield
    spfde.use_table(None)


def test_a_tuned_layer_is_decided_by_its_measurement(tmp_path, nothing_known):
    path, layer = tmp_path / "mine.json", LayerSpec((512, 512), 2048, pattern="block:64x64", dtype="bfloat16")
    outcome, _ = tune_here("cuda", [layer], path, 300, 5, lambda line: None)
    table = spfde.Table.load(path)
    assert table == outcome.table and table.machine == Machine.of_gpu()
    assert {launch.op for entry in table.entries for launch in entry.launches} == {*OPS}
    spfde.use_table(path)
    for density in (0.05, 0.9):
        sparse, x = layer.sparse(density, "cuda"), layer.input("cuda").requires_grad_()
        y = sparse(x)
        decided = table.measured(sparse.choice.problem)
        if decided is not None:  # between the nearest loss and the nearest win the model decides
            assert sparse.kernel == decided.kernel and sparse.choice.reason.startswith("measured ")
        exact = nn.functional.linear(x.double(), sparse.dense_weight().double(), sparse.bias.double())
        assert float((y.double() - exact).norm()) <= 1e-2 * float(exact.norm())
        y.sum().backward()


def test_a_models_kernels_are_measured_and_fixed(tmp_path):
    model = nn.Sequential(
        spfde.sparsify(nn.Conv2d(64, 64, 3, padding=1), 0.9, pattern="block:32x32"),
        spfde.sparsify(nn.Conv2d(64, 64, 3, padding=1), 0.9),  # no kernel: nothing to choose
        nn.Flatten(),
        spfde.sparsify(nn.Linear(64 * 64, 128), 0.9, pattern="block:64x64"),
    ).cuda()
    x = torch.randn(16, 64, 8, 8, device="cuda").contiguous(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        found = spfde.tune(model, x, repeats=3)
        model(x)
    assert all(entry.launches for entry in found.entries)
    assert [entry.problem.dtype for entry in found.entries] == ["bfloat16", "bfloat16"]
    for entry in found.entries:
        assert dict(entry.seconds).keys() == {"triton", "dense"} and all(time > 0 for _, time in entry.seconds)
    for layer, entry in zip((model[0], model[3]), found.entries, strict=True):
        assert layer.kernel == entry.kernel
        assert layer.choice.reason.endswith(f"(table {found.name})")
    found.save(tmp_path / "table.json")
    assert spfde.Table.load(tmp_path / "table.json") == found


def test_a_layer_beside_its_dense_one():
    group = Group(conv("256x256x3x3@14", 8), (0.8,), "block:64x64", "tf32", 1, "cuda", every=True)
    rows = {row.variant: row for row in measure(group, 3)}
    assert list(rows) == ["dense contiguous", "dense channels_last", "auto", "native", "triton", "cuda", "masked dense"]
    assert rows["triton"].seconds and "all" in rows["native"].absent
