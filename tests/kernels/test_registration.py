"""The registered ops: opcheck, fullgraph compilation, fake tensors, FLOP counts, autocast."""

import pytest
import torch
from kernels.problems import build
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from spfde import sparsify
from spfde.sparse.kernel_index import Window

WINDOW = Window((3, 2), (2, 1), (1, 0, 1, 1), (1, 2), 2)
KERNELS = ["native", "dense", "reference", "auto"]


def generator():
    return torch.Generator().manual_seed(0)


PATTERNS = ["unstructured", "block:4x2"]


def linear_problem(pattern="unstructured"):
    plan, values = build((12, 20), None, 0.3, 2, 0, pattern)
    values = plan.arrange(values).detach().requires_grad_()
    return plan, values, torch.randn(5, 20, generator=generator(), requires_grad=True)


def conv_problem(pattern="unstructured"):
    plan, values = build((8, 2, 3, 2), WINDOW, 0.4, 2, 0, pattern)
    values = plan.arrange(values).detach().requires_grad_()
    return plan, values, torch.randn(3, 4, 7, 8, generator=generator(), requires_grad=True)


def window_args(plan):
    return list(plan.shape), list(WINDOW.stride), list(WINDOW.padding), list(WINDOW.dilation), WINDOW.groups


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck_linear(kernel, bias, pattern):
    plan, values, x = linear_problem(pattern)
    units, dy = list(plan.kernel_index), torch.randn(5, 12)
    b = torch.randn(12, requires_grad=True) if bias else None
    opcheck(torch.ops.spfde.spmm.default, (x, values, b, units, 12, kernel))
    opcheck(torch.ops.spfde.spmm_input_grad.default, (dy, values.detach(), units, 20, kernel))
    opcheck(torch.ops.spfde.sddmm.default, (dy, x.detach(), units, values.shape[1:], bias, kernel))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_opcheck_conv2d(kernel, pattern):
    plan, values, x = conv_problem(pattern)
    b, dy = torch.randn(8, requires_grad=True), torch.randn(3, 8, *WINDOW.output_size(7, 8))
    units, window, block = list(plan.kernel_index), window_args(plan), values.shape[1:]
    opcheck(torch.ops.spfde.conv2d.default, (x, values, b, units, *window, kernel))
    opcheck(torch.ops.spfde.conv2d_input_grad.default, (dy, values.detach(), units, [7, 8], *window, kernel))
    opcheck(torch.ops.spfde.conv2d_weight_grad.default, (dy, x.detach(), units, block, *window, True, kernel))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kernel", ["native", "dense"])
def test_the_weight_gradient_op_agrees_with_its_reference(pattern, kernel):
    from spfde.kernels.reference import sddmm_ref

    plan, values, x = linear_problem(pattern)
    dy, block = torch.randn(5, 12), values.shape[1:]
    for got, exact in zip(
        torch.ops.spfde.sddmm(dy, x.detach(), list(plan.kernel_index), block, True, kernel),
        sddmm_ref(dy, x.detach(), plan.kernel_index, block),
        strict=True,
    ):
        torch.testing.assert_close(got, exact)


def layers(pattern="unstructured"):
    """A linear layer and a convolution, ragged for blocks."""
    torch.manual_seed(0)
    linear, conv = nn.Linear(20, 14), nn.Conv2d(5, 6, 3, stride=2, padding=1)
    inputs = torch.randn(5, 20), torch.randn(2, 5, 9, 9)
    return [
        (sparsify(layer, None if pattern == "2:4" else 0.7, pattern=pattern), x)
        for layer, x in zip((linear, conv), inputs, strict=True)
    ]


@pytest.mark.parametrize("case", [0, 1], ids=["linear", "conv2d"])
@pytest.mark.parametrize("kernel", ["native", "dense", "auto"])
@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1", "block:4x2", "block:1x3", "2:4", "fan-in", "channel"])
def test_compiles_fullgraph_to_the_same_bits(case, kernel, pattern):
    torch._dynamo.reset()
    layer, x = layers(pattern)[case]
    layer.kernel = kernel
    x.requires_grad_()
    dy = torch.randn_like(layer(x))
    eager = torch.autograd.grad(layer(x), (x, layer.values, layer.bias), dy)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    assert torch.equal(y, layer(x))
    assert all(map(torch.equal, torch.autograd.grad(y, (x, layer.values, layer.bias), dy), eager))


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x3", "block:1x3", "channel"])
def test_a_topology_change_does_not_recompile(pattern):
    torch._dynamo.reset()
    layer, x = layers(pattern)[0]
    layer.kernel = "native" if pattern == "channel" else "dense"
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    compiled(x)
    for seed in range(3):
        positions = torch.randperm(layer.grid.size, generator=torch.Generator().manual_seed(seed))[: layer.nnz]
        layer.move_to(positions.sort().values)
        torch.nn.init.normal_(layer.values)
        torch.testing.assert_close(compiled(x), layer.to_dense()(x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("case", [0, 1], ids=["linear", "conv2d"])
@pytest.mark.parametrize("pattern", ["unstructured", "channel"])
def test_flops_count_stored_weights(case, pattern):
    layer, x = layers(pattern)[case]
    x.requires_grad_()
    y = layer(x)
    positions = y.numel() // layer.shape[0]
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * layer.stored * positions


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shapes_on_fake_tensors(device):
    with FakeTensorMode():
        values, x = torch.empty(72, 1, 1, device=device), torch.empty(5, 20, device=device)
        units = [torch.empty(n, dtype=torch.int32, device=device) for n in (13, 72, 21, 72, 72)]
        units.append(torch.empty(72, dtype=torch.int64, device=device))
        y = torch.ops.spfde.spmm(x, values, None, units, 12, "auto")
        assert y.shape == (5, 12)
        assert y.device.type == device


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x2", "channel"])
@pytest.mark.parametrize("case", [0, 1], ids=["linear", "conv2d"])
def test_autocast_and_half_inputs(case, pattern):
    layer, x = layers(pattern)[case]
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
    torch.testing.assert_close(y.float(), exact, rtol=1e-2, atol=1e-2)
    assert layer.values.grad.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        half = layer(x.to(dtype))
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), layer(x.to(dtype).float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("case", [0, 1], ids=["linear", "conv2d"])
def test_a_half_precision_layer_trains(case):
    layer, x = layers()[case]
    layer.bfloat16()
    y = layer(x.bfloat16())
    y.sum().backward()
    assert y.dtype == layer.values.grad.dtype == layer.bias.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x2", "block:1x3", "channel"])
@pytest.mark.parametrize("case", [0, 1], ids=["linear", "conv2d"])
def test_float64_takes_the_reference_path_to_any_order(case, pattern):
    layer, x = layers(pattern)[case]
    layer.double()
    x = x.double().requires_grad_()
    if case:
        x = x.detach()[:, :, :4, :4].requires_grad_()
    assert torch.autograd.gradcheck(lambda x, v: layer.forward(x), (x, layer.values))
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert layer.values.grad is not None
    assert layer.kernel == "reference"


class Calls(TorchDispatchMode):
    """Names of the ops of ours that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "spfde":
            self.names.append(func._schema.name.removeprefix("spfde::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_frozen_values_have_no_weight_gradient_and_keep_no_input(op):
    plan, values, x = linear_problem() if op == "linear" else conv_problem()
    values, units, kept = values.detach(), list(plan.kernel_index), []
    bias = torch.zeros(plan.rows, requires_grad=True)
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t)
    with Calls() as calls, keep:
        if op == "linear":
            y = torch.ops.spfde.spmm(x, values, bias, units, 12, "native")
        else:
            y = torch.ops.spfde.conv2d(x, values, bias, units, *window_args(plan), "native")
        dy = torch.randn(y.shape)
        dx, dbias = torch.autograd.grad(y, (x, bias), dy)
    forward = "spmm" if op == "linear" else "conv2d"
    assert calls.names == [forward, f"{forward}_input_grad"]
    assert x.shape not in kept
    torch.testing.assert_close(dbias, dy.sum(0) if op == "linear" else dy.sum((0, 2, 3)))
    assert dx.shape == x.shape
