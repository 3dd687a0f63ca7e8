"""Chains of convolutions in the native core, against dense ones in float64."""

import pytest
import torch
import torch.nn.functional as F

import spfde
from spfde.kernels.conv_chain import LARGEST, ChainStep, ConvChain, pays
from spfde.kernels.norm_act import ACTIVATIONS
from spfde.nn import SparseConv2d


def layer(inputs, outputs, density, kernel=3, **options):
    conv = torch.nn.Conv2d(inputs, outputs, kernel, **options)
    return SparseConv2d.from_dense(conv, torch.rand_like(conv.weight) < density)


def step(layer, source, target, residual, act):
    values, bias = layer.values.detach(), layer.bias.detach()
    index = layer.plan.kernel_index
    return ChainStep(source, target, residual, layer.window, index.row_ptr, index.col, values, bias, act)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", [1, 16, 37])
def test_a_chain_is_what_its_parts_are(batch, channels_last):
    layers = [
        layer(5, 12, 0.4, padding=1),
        layer(12, 12, 0.1, stride=2, padding=(2, 1)),
        layer(12, 12, 0.3, groups=4, padding=1),
        layer(12, 7, 0.5, kernel=(1, 3)),
    ]
    x = torch.randn(batch, 5, 9, 12)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    acts, residuals = ["relu", "relu6", "relu", "none"], [None, None, 2, None]
    expected = [x.double()]
    for each, act, residual in zip(layers, acts, residuals, strict=True):
        y = F.conv2d(
            expected[-1], each.dense_weight().double(), each.bias.double(), each.stride, each.padding, 1, each.groups
        )
        expected.append(ACTIVATIONS[act](y if residual is None else y + expected[residual]).detach())
    chain = ConvChain(
        [tuple(y.shape[1:]) for y in expected],
        [
            step(each, i, i + 1, residual, act)
            for i, (each, residual, act) in enumerate(zip(layers, residuals, acts, strict=True))
        ],
    )
    for y, want in zip(chain({0: x}, [1, 3, 4]), [expected[i] for i in (1, 3, 4)], strict=True):
        assert (y - want).abs().max() <= 1e-5 * want.abs().max()
        assert y.is_contiguous(memory_format=torch.channels_last) == channels_last or y.shape[1] == 1


def test_what_is_not_finite_comes_through():
    one = layer(2, 2, 1.0, kernel=1)
    x = torch.randn(16, 2, 3, 3)
    x[3, 0, 1, 1], x[5, 0, 1, 1] = float("nan"), float("inf")
    (y,) = ConvChain([(2, 3, 3)] * 2, [step(one, 0, 1, None, "relu")])({0: x}, [1])
    assert torch.equal(y.isnan(), F.relu(one(x)).isnan())
    assert torch.equal(y.isinf(), F.relu(one(x)).isinf())


def test_an_image_s_result_does_not_depend_on_its_batch():
    one = layer(4, 8, 0.5, padding=1)
    chain = ConvChain([(4, 6, 6), (8, 6, 6)], [step(one, 0, 1, None, "relu")])
    x = torch.randn(40, 4, 6, 6)
    (whole,), (part,) = chain({0: x}, [1]), chain({0: x[11:30].contiguous()}, [1])
    assert torch.equal(whole[11:30], part)


def test_pays_where_lanes_and_threads_are_filled_and_values_are_near():
    lanes = spfde._native.native().lanes()
    small = [(8, 4, 4)]
    assert pays(lanes, small, 1) and pays(2 * lanes, small, 2) and pays(9 * lanes, small, 2)
    assert not pays(1, small, 1) and not pays(lanes, small, 2)
    assert not pays(lanes, [(LARGEST // 4, 1, 1)], 1) or lanes == 1
