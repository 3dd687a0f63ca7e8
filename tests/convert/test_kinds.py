"""A kind of layer that is written outside of the package: converted, trained, moved, counted, frozen and given back."""

import copy

import pytest
import torch
from torch import nn

import spfde
from spfde.nn import SparseConv2d


class Waves(nn.Conv1d):
    """A kind of its own: subclasses are."""


class SparseWaves(SparseConv2d):
    """A one-dimensional convolution, as one of images with a single row."""

    @classmethod
    def at(cls, conv, positions, pattern):
        wide = nn.Conv2d(
            conv.in_channels, conv.out_channels, (1, conv.kernel_size[0]), (1, conv.stride[0]), (0, conv.padding[0]),
            (1, conv.dilation[0]), conv.groups, bias=False,
        )  # fmt: skip
        wide.weight, wide.bias = nn.Parameter(conv.weight.detach().unsqueeze(2)), conv.bias
        return super().at(wide, positions, pattern).train(conv.training)

    def forward(self, x):
        return super().forward(x.unsqueeze(2)).squeeze(2)

    def to_dense(self):
        wide = super().to_dense()
        (_, kernel), (_, stride), (_, padding), (_, dilation) = (
            wide.kernel_size, wide.stride, wide.padding, wide.dilation
        )  # fmt: skip
        sizes = (wide.in_channels, wide.out_channels, kernel, stride, padding, dilation, wide.groups)
        conv = Waves(*sizes, bias=False)
        conv.weight, conv.bias = nn.Parameter(wide.weight.detach().squeeze(2)), wide.bias
        return conv.train(self.training)


@pytest.fixture
def waves():
    spfde.convert.register(Waves, SparseWaves)
    yield
    spfde.convert.unregister(Waves)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        Waves(3, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), Waves(8, 16, 3, stride=2), nn.BatchNorm1d(16),
        nn.ReLU(), Waves(16, 16, 3, dilation=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1", "fan-in"])
def test_it_trains_like_the_masked_dense_one_and_comes_back(waves, pattern):
    model, x = spfde.sparsify(network(), 0.6, pattern=pattern, distribution="erk"), torch.randn(4, 3, 20)
    assert [type(m) for m in (model[0], model[3], model[6])] == [SparseWaves] * 3
    twin = spfde.densify(copy.deepcopy(model))
    assert [type(m) for m in (twin[0], twin[3], twin[6])] == [Waves] * 3
    torch.testing.assert_close(model(x), twin(x), rtol=1e-4, atol=1e-5)
    ours, theirs = torch.randn(4, 4), None
    model(x).backward(ours)
    twin(x).backward(ours)
    for name in (0, 3, 6):
        mask = model[name].mask().squeeze(2)
        theirs = twin[name].weight.grad[mask]
        dense = torch.zeros(model[name].shape)
        with torch.no_grad():
            held = copy.deepcopy(model[name])
            held.values.copy_(model[name].values.grad)
            dense = held.dense_weight().squeeze(2)[mask]
        torch.testing.assert_close(dense, theirs, rtol=1e-4, atol=1e-5)


def test_masks_move_and_everything_counts_it(waves):
    model = spfde.sparsify(network(), 0.6, distribution="erk")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    topology = spfde.topology.RigL(model, optimizer, total_steps=20, every=1)
    before = model[3].positions()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 20)).square().mean().backward()
        optimizer.step()
        topology.step()
    assert not torch.equal(before, model[3].positions())
    work = spfde.flops.layer_work(model, torch.randn(2, 3, 20))
    assert work["3"].positions == 9 and work["3"].weights == model[3].stored
    assert {row.name for row in spfde.summary(model).rows} == {"0", "3", "6", "10"}
    blocks = spfde.freezing.blocks(model, torch.randn(2, 3, 20))
    assert {name for block in blocks for name, _ in block.modules} >= {"0", "3"}


def test_a_kind_is_taken_once_and_must_be_one():
    with pytest.raises(TypeError, match="sparse"):
        spfde.convert.register(Waves, nn.Linear)
    with pytest.raises(TypeError, match="dense"):
        spfde.convert.register("Conv1d", SparseWaves)
    with pytest.raises(ValueError, match="Linear"):
        spfde.convert.register(nn.Linear, SparseWaves)


def test_a_convolution_with_weight_norm_leaves_the_rest_sparse():
    class Own(nn.Conv1d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3)), Own(8, 8, 3), nn.Conv1d(8, 8, 3)
    )
    x = torch.randn(2, 3, 20)
    spfde.sparsify(model, 0.5, distribution="erk")(x)
    reasons = {row.name: row.reason for row in spfde.summary(model).rows if not row.converted}
    assert reasons["1"] == "not converted: parametrized" and "of subclass Own" in reasons["2"]
    assert len(reasons) == 2
    with pytest.raises(ValueError, match="parametrized"):
        spfde.sparsify(
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3))), 0.5, distribution="erk"
        )
