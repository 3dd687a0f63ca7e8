"""Tracers and exporters: what comes out computes from its input, or they say what to try."""

import copy
import io
from warnings import catch_warnings, simplefilter

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from spfde import densify, fuse, sparsify

PATTERNS = ["unstructured", "block:4x2", "channel"]


def model(pattern="unstructured"):
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 8)
    return sparsify(nn.Sequential(*layers), 0.5, pattern=pattern, distribution="erk").eval()


def inputs():
    return torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)


class Attention(nn.Module):
    """Its parent reads `out_proj.weight` and multiplies by itself."""

    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


def quietly(make):
    with catch_warnings():
        simplefilter("ignore")  # torch deprecates its tracer
        return make()


def through_a_file(graph, save, load):
    file = io.BytesIO()
    save(graph, file)
    file.seek(0)
    return load(file)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_trace_computes_from_its_input_and_its_values(pattern):
    net, (x, other) = model(pattern), inputs()
    traced = quietly(lambda: torch.jit.trace(net, x))
    torch.testing.assert_close(traced(other), net(other))
    with torch.no_grad():
        net[0].values.mul_(2)
    torch.testing.assert_close(traced(other), net(other))
    loaded = quietly(lambda: through_a_file(traced, torch.jit.save, torch.jit.load))
    torch.testing.assert_close(loaded(other), net(other))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("make", [model, Attention], ids=["layers", "attention"])
def test_torch_export(make, strict):
    torch._dynamo.reset()
    if make is model:
        net, (x, other) = model(), inputs()
    else:
        net = sparsify(Attention(), 0.5, distribution="erk").eval()
        x, other = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    program = quietly(lambda: torch.export.export(net, (x,), strict=strict))
    torch.testing.assert_close(program.module()(other), net(other))
    loaded = quietly(lambda: through_a_file(program, torch.export.save, torch.export.load))
    torch.testing.assert_close(loaded.module()(other), net(other))


def test_a_symbolic_trace_keeps_sparse_layers_whole():
    net, (_, other) = model(), inputs()
    graph = torch.fx.symbolic_trace(net)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1", "2", "3", "4"]
    torch.testing.assert_close(graph(other), net(other))


def test_sizes_that_a_trace_leaves_open_are_no_input_to_remember():
    net, (x, other) = model(), inputs()
    graph = make_fx(net, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)
    assert "kernel=auto" in repr(net)
    torch.testing.assert_close(graph(other), net(other))


def test_a_script_says_to_densify():
    net, (_, other) = model(), inputs()
    with pytest.raises(TypeError, match="expected a dense model.*densify"):
        quietly(lambda: torch.jit.script(net))
    scripted = quietly(lambda: torch.jit.script(densify(copy.deepcopy(net))))
    torch.testing.assert_close(scripted(other), net(other))


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_onnx_computes_from_its_input(pattern, dynamo):
    onnx = pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    net, (x, other), file = model(pattern), inputs(), io.BytesIO()
    if dynamo:
        quietly(lambda: torch.onnx.export(net, (x,), dynamo=True, input_names=["x"], verbose=False)).save(file)
    else:
        quietly(lambda: torch.onnx.export(net, (x,), file, dynamo=False, input_names=["x"]))
    graph = onnx.load_from_string(file.getvalue())
    (y,) = reference.ReferenceEvaluator(graph).run(None, {"x": other.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), net(other), rtol=1e-4, atol=1e-5)


def test_what_is_saved_shares_no_memory_and_has_no_gaps():
    state = model().state_dict()
    assert all(tensor.is_contiguous() for tensor in state.values())
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)


@pytest.mark.parametrize("strict", [False, True])
def test_a_fused_model_is_exported(strict):
    net, (x, other) = fuse(model()), inputs()
    assert "norm" in str(fuse.report(net))
    exported = torch.export.export(net, (x,), strict=strict).module()
    torch.testing.assert_close(exported(other), net(other))
