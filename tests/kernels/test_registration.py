"""The registered ops: opcheck, fullgraph compilation, fake tensors, FLOP counts, autocast, double backward."""

import pytest
import torch
from kernels.problems import build
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from spfde.kernels import conv2d, conv2d_ops, spmm  # noqa: F401
from spfde.nn import SparseConv2d, SparseLinear
from spfde.pattern import Window

WINDOW = Window((3, 2), (2, 1), (1, 0, 1, 1), (1, 2), 2)
KERNELS = ["native", "dense", "reference", "auto"]


def generator():
    return torch.Generator().manual_seed(0)


def linear_problem(dead=2):
    plan, values = build((12, 20), None, 0.3, dead, 0)
    return plan, values, torch.randn(5, 20, generator=generator(), requires_grad=True)


def conv_problem(dead=2):
    plan, values = build((6, 2, 3, 2), WINDOW, 0.4, dead, 0)
    return plan, values, torch.randn(3, 4, 7, 8, generator=generator(), requires_grad=True)


def index(plan):
    return plan.row_ptr, plan.col, plan.t_row_ptr, plan.t_col, plan.t_perm


def window_args(plan):
    return list(plan.shape), list(WINDOW.stride), list(WINDOW.padding), list(WINDOW.dilation), WINDOW.groups


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck_spmm(kernel, bias):
    plan, values, x = linear_problem()
    b = torch.randn(12, requires_grad=True) if bias else None
    opcheck(torch.ops.spfde.spmm.default, (x, values, b, *index(plan), kernel))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck_sddmm(kernel, bias):
    plan, _, x = linear_problem()
    opcheck(torch.ops.spfde.sddmm.default, (torch.randn(5, 12), x.detach(), plan.row_ptr, plan.col, bias, kernel))


@pytest.mark.parametrize("kernel", KERNELS)
def test_opcheck_conv2d(kernel):
    plan, values, x = conv_problem()
    b = torch.randn(6, requires_grad=True)
    args = (*index(plan), *window_args(plan))
    opcheck(torch.ops.spfde.conv2d.default, (x, values, b, *args, kernel))
    dy = torch.randn(3, 6, *WINDOW.output_size(7, 8))
    opcheck(
        torch.ops.spfde.conv2d_input_grad.default,
        (dy, values.detach(), *index(plan), [7, 8], *window_args(plan), kernel),
    )
    opcheck(
        torch.ops.spfde.conv2d_weight_grad.default,
        (dy, x.detach(), plan.row_ptr, plan.col, *window_args(plan), True, kernel),
    )


def test_the_weight_gradient_ops_agree_with_their_references():
    from spfde.kernels.sddmm import sddmm_ref

    plan, _, x = linear_problem()
    dy = torch.randn(5, 12)
    for got, exact in zip(
        torch.ops.spfde.sddmm(dy, x.detach(), plan.row_ptr, plan.col, True, "native"),
        sddmm_ref(dy, x.detach(), plan.row_ptr, plan.col),
        strict=True,
    ):
        torch.testing.assert_close(got, exact)


def layers():
    return [
        (SparseLinear.from_dense(nn.Linear(20, 12), torch.rand(12, 20) < 0.3), torch.randn(5, 20)),
        (
            SparseConv2d.from_dense(nn.Conv2d(4, 6, 3, stride=2, padding=1), torch.rand(6, 4, 3, 3) < 0.3),
            torch.randn(2, 4, 9, 9),
        ),
    ]


@pytest.mark.parametrize("case", [0, 1], ids=["linear", "conv2d"])
@pytest.mark.parametrize("kernel", ["native", "dense", "auto"])
def test_compiles_fullgraph_to_the_same_bits(case, kernel):
    torch._dynamo.reset()
    layer, x = layers()[case]
    layer.kernel = kernel
    x.requires_grad_()
    dy = torch.randn_like(layer(x))
    eager = torch.autograd.grad(layer(x), (x, layer.values, layer.bias), dy)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    assert torch.equal(y, layer(x))
    assert all(map(torch.equal, torch.autograd.grad(y, (x, layer.values, layer.bias), dy), eager))


def test_a_topology_change_does_not_recompile():
    torch._dynamo.reset()
    layer, x = layers()[0]
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    compiled(x)
    for seed in range(3):
        positions = torch.randperm(240, generator=torch.Generator().manual_seed(seed))[: layer.nnz]
        layer.move_to(positions.sort().values)
        torch.nn.init.normal_(layer.values)
        torch.testing.assert_close(compiled(x), layer.to_dense()(x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("case", [0, 1], ids=["linear", "conv2d"])
def test_flops_count_stored_weights(case):
    layer, x = layers()[case]
    x.requires_grad_()
    y = layer(x)
    positions = y.numel() // layer.shape[0]
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * layer.nnz * positions


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shapes_on_fake_tensors(device):
    with FakeTensorMode():
        values, x = torch.empty(72, 1, 1, device=device), torch.empty(5, 20, device=device)
        index = [torch.empty(n, dtype=torch.int32, device=device) for n in (13, 72, 21, 72, 72)]
        y = torch.ops.spfde.spmm(x, values, None, *index, "auto")
        assert y.shape == (5, 12)
        assert y.device.type == device


@pytest.mark.parametrize("case", [0, 1], ids=["linear", "conv2d"])
def test_autocast_and_half_inputs(case):
    layer, x = layers()[case]
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


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("case", [0, 1], ids=["linear", "conv2d"])
def test_a_double_backward_is_refused(case, compiled):
    torch._dynamo.reset()
    layer, x = layers()[case]
    x.requires_grad_()
    with torch.inference_mode(False):
        if compiled:
            with FlopCounterMode(display=False):  # a dispatch mode takes the registered op
                y = layer(x)
        else:
            y = layer(x)
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="expected first derivatives only.*densify"):
            grad.sum().backward()


@pytest.mark.parametrize("case", [0, 1], ids=["linear", "conv2d"])
def test_float64_takes_the_reference_path_to_any_order(case):
    layer, x = layers()[case]
    layer.double()
    x = x.double().requires_grad_()
    if case:
        x = x.detach()[:, :, :4, :4].requires_grad_()
    assert torch.autograd.gradcheck(lambda x, v: layer.forward(x), (x, layer.values))
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert layer.values.grad is not None
    assert layer.kernel == "reference"
