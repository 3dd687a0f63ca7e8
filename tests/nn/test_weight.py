"""`.weight` of a sparse layer: read like a tensor, never written in place without a word."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import spfde

WRITES = {
    "init": lambda layer: nn.init.xavier_uniform_(layer.weight),
    "constant": lambda layer: nn.init.ones_(layer.weight),
    "data": lambda layer: layer.weight.data.normal_(),
    "of a view": lambda layer: layer.weight.detach().view(-1)[2:].zero_(),
    "item": lambda layer: layer.weight.data.__setitem__(0, 1.0),
    "operator": lambda layer: layer.weight.__imul__(2),
    "copy": lambda layer: layer.weight.data.copy_(torch.ones(layer.shape)),
    "add": lambda layer: torch.add(layer.weight.detach(), 1, out=layer.weight.data),
    "foreach": lambda layer: torch._foreach_mul_([layer.weight.data], 2),
    "set data": lambda layer: setattr(layer.weight, "data", torch.ones(layer.shape)),
    "unbound": lambda layer: layer.weight.data.unbind()[0].fill_(1),
}


REPLACEMENTS = {
    "another Parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(6, 8))),
    "another tensor": lambda layer: setattr(layer, "weight", torch.ones(6, 8)),
    "its gradient": lambda layer: setattr(layer.weight, "grad", torch.ones(6, 8)),
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "global prune": lambda layer: prune.global_unstructured([(layer, "weight")], prune.L1Unstructured, amount=2),
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "batch norm": lambda layer: nn.utils.fusion.fuse_linear_bn_eval(layer.eval(), nn.BatchNorm1d(6).eval()),
}


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return spfde.sparsify(nn.Linear(8, 6), 0.5)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_it_in_place_is_refused(layer, write):
    before = layer.values.detach().clone()
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"expected .weight of a sparse layer, .* to be read, got .*layer.values"),
    ):
        write(layer)
    assert torch.equal(layer.values, before)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_replacing_it_is_refused_before_anything_changes(layer, replace):
    x, state = torch.randn(3, 8), {key: value.clone() for key, value in layer.state_dict().items()}
    y = layer(x)
    with pytest.raises(ValueError, match=r"expected .weight of a sparse layer, .* to be read, got .*exclude="):
        replace(layer)
    assert torch.equal(layer(x), y) and not layer._forward_pre_hooks
    assert layer.state_dict().keys() == state.keys()


def test_numpy_cannot_write_it(layer):
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.detach().numpy()[0] = 1


def test_it_reads_like_any_tensor(layer):
    weight, x = layer.weight, torch.randn(3, 8)
    dense = layer.dense_weight()
    assert isinstance(weight, torch.Tensor)
    assert type(weight + 1) is type(weight.clone()) is type(F.linear(x, weight)) is torch.Tensor
    assert torch.equal(weight, dense)
    assert repr(weight.detach()[0, 0].item()) == repr(dense[0, 0].item())
    assert weight.requires_grad
    assert weight.shape == (6, 8)
    torch.testing.assert_close(F.linear(x, weight, layer.bias), layer(x))
    own = weight.clone()
    own.mul_(2)  # a copy is its owner's
    assert (weight.detach().numpy() == dense.numpy()).all()


def test_it_is_differentiable(layer):
    weight, seen = layer.weight, []
    weight.retain_grad()
    weight.register_hook(seen.append)
    (weight.square().sum() / 2).backward()
    torch.testing.assert_close(weight.grad, layer.dense_weight())
    assert len(seen) == 1
    torch.testing.assert_close(layer.values.grad, layer.values.detach())
    grad = torch.autograd.grad((loss := layer.weight).sum(), loss)[0]
    assert torch.equal(grad, torch.ones(6, 8))


def test_copies_and_files_of_it_are_plain(layer):
    weight = layer.weight.detach()
    assert type(copy.deepcopy(weight)) is torch.Tensor
    buffer = io.BytesIO()
    torch.save(weight, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert type(loaded) is torch.Tensor
    assert torch.equal(loaded, layer.dense_weight())


def test_forwards_that_multiply_by_it_get_a_plain_tensor():
    torch.manual_seed(0)
    attention = spfde.sparsify(nn.MultiheadAttention(8, 2, batch_first=True), 0.5, distribution="erk")
    seen, x = [], torch.randn(2, 3, 8)

    class Reader(nn.Module):
        def forward(self, x):
            seen.append(type(attention.out_proj.weight))
            return attention(x, x, x)[0]

    Reader()(x).sum().backward()
    assert seen == [torch.Tensor]
    compiled = torch.compile(lambda x: F.linear(x, attention.out_proj.weight), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), F.linear(x, attention.out_proj.dense_weight()))
