"""spfde.export: what is written computes what the model computes, and what does not is told."""

import json

import pytest
import torch
from torch import nn

import spfde
from spfde import export
from spfde.export.parity import compare


class Net(nn.Module):
    """All kinds of layers, a keyword, two outputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up, self.wave = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv1d(4, 8, 3, padding=1)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x, scale=None):
        y = self.up(torch.relu(self.norm(self.conv(x)))).flatten(2)
        y = self.wave(y).transpose(1, 2)
        y = self.attention(y, y, y, need_weights=False)[0].mean(1)
        y = y if scale is None else y * scale
        return self.head(y), y


def made(fused=False):
    torch.manual_seed(0)
    model = spfde.sparsify(Net(), 0.5, distribution="erk").eval()
    return spfde.fuse(model) if fused else model, torch.randn(2, 3, 4, 4)


def test_a_dense_copy_needs_no_spfde():
    model, x = made(fused=True)
    dense = export.to_dense(model, x)
    assert not any(type(m).__module__.startswith("spfde") for m in dense.modules())
    assert any(isinstance(m, spfde.nn.SparseLayer) for m in model.modules())
    assert type(dense.attention) is nn.MultiheadAttention
    with pytest.raises(TypeError, match="expected a torch.nn.Module"):
        export.to_dense(3)


def test_what_differs_is_told():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) + torch.rand(1)

    model = spfde.sparsify(nn.Sequential(Noisy()), 0.5, distribution="erk")
    export.to_dense(model, torch.randn(2, 4))  # the same draws
    for other, words in ((torch.ones(2, 3), "differ by 1.0e.00 of the largest"), (torch.ones(3, 3), "of shapes")):
        with pytest.raises(ValueError, match=f"expected it to .* what the model .*{words}"):
            compare([torch.zeros(2, 3)], [other], "it")


@pytest.mark.parametrize("dense", [False, True])
def test_a_program_takes_any_batch_size(dense):
    model, x = made()
    program = export.program(model, x, dense=dense)
    targets = {str(node.target) for node in program.graph.nodes}
    assert any("spfde" in target for target in targets) != dense
    other = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(program.module()(other), model(other), rtol=1e-4, atol=1e-5)
    assert model.training is False
    program = export.program(model, {"x": x, "scale": torch.tensor(2.0)}, dynamic_batch=False)
    torch.testing.assert_close(program.module()(x=x, scale=torch.tensor(2.0)), model(x, torch.tensor(2.0)))


def test_a_program_that_holds_for_one_batch_size_is_told():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x).view(2, 4)

    model = spfde.sparsify(nn.Sequential(Fixed()), 0.5, distribution="erk").eval()
    with pytest.raises(ValueError, match="expected a model that torch.export traces for any batch size.*dynamic_batch"):
        export.program(model, torch.randn(2, 4))
    export.program(model, torch.randn(2, 4), dynamic_batch=False)


@pytest.mark.parametrize("dense", [False, True])
def test_safetensors_round_trip(tmp_path, dense):
    pytest.importorskip("safetensors")
    from safetensors import safe_open
    from safetensors.torch import load_file

    model, x = made()
    found = export.safetensors(model, tmp_path / "model.safetensors", dense=dense)
    assert found.path.exists() and found.error == 0
    state = load_file(found.path)
    with safe_open(found.path, "pt") as file:
        told = json.loads(file.metadata()["spfde"])
    assert (set(told) == set()) == dense
    if not dense:
        assert told["wave"] == {"shape": [8, 4, 3], "pattern": "unstructured"}
        other = spfde.sparsify(Net(), 0.5, distribution="erk", seed=3).eval()
        other.load_state_dict(state)
        torch.testing.assert_close(other(x), model(x))
    else:
        net = Net().eval()
        net.load_state_dict(state)
        torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-5)


def test_onnx_is_checked(tmp_path):
    pytest.importorskip("onnxscript")
    model, x = made(fused=True)
    found = export.onnx(model, tmp_path / "model.onnx", x)
    assert found.error <= 1e-4 and found.checked_by.startswith("onnx")


def test_what_is_not_installed_is_said(monkeypatch, tmp_path):
    model, x = made()
    monkeypatch.setattr("spfde.export.graphs.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="expected onnx, got no such module, try pip install spfde.export."):
        export.onnx(model, tmp_path / "model.onnx", x)
