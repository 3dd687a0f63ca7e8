"""What only a GPU can tell of fused layers: real bfloat16, CUDA graphs. `pytest -m gpu`; skipped without CUDA."""

import copy

import pytest
import torch
from kernels.triton.fused_models import MLP, Block, close, exact, images, sparse
from torch import nn

import spfde
from spfde.kernels import norm_act
from spfde.kernels.norm_act import norm_act_ref

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # of a result's norm
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("memory", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("options", [{}, {"kernel": 1}, {"stride": 2, "added": False}, {"bias": True}], ids=str)
def test_a_frozen_chain(options, dtype, memory):
    model = sparse(Block(**options)).to("cuda", dtype)
    x = images(3, 16, 13, 10, dtype=dtype).cuda().contiguous(memory_format=memory)
    residual = images(*model.conv(x).shape, dtype=dtype, seed=1).cuda()
    y = model(x, residual)
    assert y.is_contiguous(memory_format=memory)
    close(y, exact(model, x, residual), ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_frozen_linear_layer_with_gelu(dtype):
    model = sparse(MLP(nn.GELU())).to("cuda", dtype)
    x = images(5, 7, 32, dtype=dtype).cuda()
    close(model(x), exact(model, x), ROUNDING[dtype])


@pytest.mark.parametrize("tokens", [7, 900])  # 1800 rows and more fill a GPU's largest tiles
@pytest.mark.parametrize("dtype", [*ROUNDING, "autocast"], ids=str)
def test_a_trained_transformer_block(dtype, tokens):
    """Residual sums and GELU in the kernels, also where autocast's products are summed in float32."""
    mixed = dtype == "autocast"
    rounding = ROUNDING[torch.bfloat16 if mixed else dtype]
    model = spfde.freezing.unfreeze(sparse(spfde.models.transformer.Block(128, 4), pattern="block:64x64"))
    model = model.to("cuda", torch.float32 if mixed else dtype)
    plain = spfde.unfuse(copy.deepcopy(model))
    x = images(5, tokens, 128, dtype=torch.float32 if mixed else dtype).cuda()
    results = []
    for m in (model, plain):
        given = x.clone().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
            y = m(given)
        loss = y.float().square().mean()
        results.append([y.detach(), *torch.autograd.grad(loss, [given, *m.parameters()])])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        close(got, expected.double(), 4 * rounding)


@pytest.mark.parametrize("memory", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(3, 70, 9, 11), (2, 256, 14, 14), (1, 3, 1, 1), (4, 5, 200, 300)], ids=str)
def test_a_frozen_norm(shape, dtype, memory):
    x, residual = (images(*shape, dtype=dtype, seed=seed).cuda().contiguous(memory_format=memory) for seed in (0, 1))
    mean, var, weight, bias = images(4, shape[1]).cuda()
    parts = (mean, var.abs(), weight, bias)
    expected = norm_act_ref(*(t.double() for t in (x, *parts)), residual=residual.double(), act="relu")
    y = norm_act(x, *parts, residual=residual, act="relu")
    assert y.is_contiguous(memory_format=memory)
    close(y, expected, ROUNDING[dtype])


def test_a_captured_network_gives_the_same_bits():
    torch.manual_seed(0)
    model = sparse(spfde.models.ResNet(8)).cuda()
    x = images(2, 3, 16, 16).cuda()
    expected = [model(x), copy.deepcopy(model)(2 * x)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
    graph.replay()
    assert torch.equal(y, expected[0])
    x.mul_(2)
    graph.replay()
    assert torch.equal(y, expected[1])
