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


class Reader(nn.Module):
    """Multiplies by its child's weight itself, as a fused attention does."""

    def __init__(self, layer, how):
        super().__init__()
        self.layer, self.how = layer, how

    def forward(self, x):
        return self.how(x, self.layer)


SPARSE_PRODUCTS = {
    "linear": lambda x, layer: F.linear(x, layer.weight, layer.bias),
    "keywords": lambda x, layer: F.linear(input=x, weight=layer.weight, bias=layer.bias),
    "matmul": lambda x, layer: x @ layer.weight.t() + layer.bias,
    "mT": lambda x, layer: torch.matmul(x, layer.weight.mT) + layer.bias,
    "transpose": lambda x, layer: x @ layer.weight.transpose(0, 1) + layer.bias,
    "addmm": lambda x, layer: torch.addmm(layer.bias, x, layer.weight.T),
    "from the left": lambda x, layer: (layer.weight @ x.t()).t() + layer.bias,
}
DENSE_PRODUCTS = {
    "scaled": lambda x, layer: F.linear(x, layer.weight * 2, layer.bias) - F.linear(x, layer.weight * 1.0),
    "slice": lambda x, layer: torch.cat([F.linear(x, layer.weight[:2]), F.linear(x, layer.weight[2:])], 1) + layer.bias,
    "einsum": lambda x, layer: torch.einsum("bi,oi->bo", x, layer.weight) + layer.bias,
}


@pytest.mark.parametrize("how", [*SPARSE_PRODUCTS.values(), *DENSE_PRODUCTS.values()])
def test_parents_may_multiply_by_it(layer, how):
    x, cotangent = torch.randn(3, 8, requires_grad=True), torch.randn(3, 6)
    parent, names = Reader(layer, how), {**SPARSE_PRODUCTS, **DENSE_PRODUCTS}
    wanted = torch.autograd.grad(layer(x), [x, layer.values, layer.bias], cotangent)
    layer.plan.last_seen = layer._last_input = None
    y = parent(x)
    torch.testing.assert_close(y, layer.to_dense()(x))
    grads = torch.autograd.grad(y, [x, layer.values, layer.bias], cotangent)
    torch.testing.assert_close(grads, wanted)
    row = spfde.summary(parent).rows[0]
    assert layer.weight_taken == (how in DENSE_PRODUCTS.values()), [n for n, h in names.items() if h is how]
    assert ("its parent reads .weight" in row.reason) == layer.weight_taken


def test_what_a_parent_asks_of_it_makes_nothing(layer):
    seen = []

    def how(x, layer):
        weight = layer.weight
        seen.extend([weight.shape, weight.dtype, weight.device.type, weight.dim(), len(weight), weight.requires_grad])
        return layer(x.to(weight.dtype))

    Reader(layer, how)(torch.randn(3, 8))
    assert seen == [(6, 8), torch.float32, "cpu", 2, 6, True]
    assert not layer.weight_taken
    with torch.no_grad():
        Reader(layer, lambda x, layer: seen.append(layer.weight.requires_grad))(torch.randn(3, 8))
    assert seen[-1] is False


def test_growth_sees_what_a_parent_multiplies():
    torch.manual_seed(0)
    parent = Reader(spfde.sparsify(nn.Linear(16, 12), 0.8), SPARSE_PRODUCTS["linear"])
    optimizer = torch.optim.SGD(parent.parameters(), 0.1)
    topology = spfde.topology.RigL(parent, optimizer, total_steps=10, every=1)
    x, before = torch.randn(4, 16), parent.layer.mask()
    twin = parent.layer.to_dense()
    parent(x).square().sum().backward()
    twin(x).square().sum().backward()
    optimizer.step()
    assert topology.step()
    born, out = parent.layer.mask() & ~before, ~parent.layer.mask() & ~before
    assert twin.weight.grad.abs()[born].min() >= twin.weight.grad.abs()[out].max()


def test_a_compiled_forward_reads_a_dense_one(layer):
    compiled = torch.compile(lambda x: F.linear(x, layer.weight), backend="eager", fullgraph=True)
    x = torch.randn(3, 8)
    torch.testing.assert_close(compiled(x), F.linear(x, layer.dense_weight()))
