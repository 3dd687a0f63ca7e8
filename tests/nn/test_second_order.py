"""Derivatives of derivatives: equal to the masked dense layer's, whoever asks and for whatever inputs."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from spfde import densify, fuse, sparsify
from spfde.nn import FusedNormAct2d, SparseLayer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding=.same.:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning"),  # torch's forward-mode derivatives do it
]

PATTERNS = ["unstructured", "block:4x2", "block:1x3", "2:4", "channel"]
LAYERS = {
    "linear": (lambda: nn.Linear(12, 16), (5, 12)),
    "tokens": (lambda: nn.Linear(12, 16, bias=False), (2, 3, 12)),
    "conv": (lambda: nn.Conv2d(4, 8, 3, padding=1), (2, 4, 5, 6)),
    "conv-odd": (lambda: nn.Conv2d(4, 8, (3, 2), (2, 1), "valid", (1, 2)), (2, 4, 6, 7)),
    "conv-groups": (lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2), (2, 8, 6, 6)),
    "conv-same": (lambda: nn.Conv2d(4, 8, (2, 3), padding="same", bias=False), (2, 4, 5, 5)),
    "conv-strided-1x1": (lambda: nn.Conv2d(4, 8, 1, stride=2), (2, 4, 6, 5)),
    "conv-reflect": (lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 5)),
}


def pair(kind="linear", pattern="unstructured"):
    """A sparse layer with room to spare, its dense form in float64, and an input."""
    torch.manual_seed(0)
    make, size = LAYERS[kind]
    layer = sparsify(make(), pattern=pattern, **({} if pattern == "2:4" else {"sparsity": 0.5}))
    if pattern != "2:4" and pattern != "channel":
        layer.move_to(layer.positions()[1:])  # the last slot is dead
    return layer, densify(copy.deepcopy(layer)).double(), torch.randn(size)


def stored(layer, dense_grad):
    """A dense gradient as one of `values`."""
    out = torch.zeros(layer.values.shape, dtype=dense_grad.dtype)
    out[: layer.nnz] = layer.grid.cut(dense_grad * layer.mask())[layer.positions()]
    return out


def dense_of(layer, values):
    """A direction for `values` as one for the dense weight, without what is not stored."""
    holder = copy.deepcopy(layer)
    with torch.no_grad():
        holder.values.copy_(values)
    return holder.dense_weight().double()


def second(call, x, parameters, directions):
    """d/d(x, parameters) of <gradients, directions>, and the same once more."""
    inputs, found = [x, *parameters], []
    value = call(x).pow(3).sum()
    for _ in range(2):
        grads = torch.autograd.grad(value, inputs, create_graph=True)
        value = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        found.append(torch.autograd.grad(value, inputs, retain_graph=True))
    return found


def compare(layer, dense, x, call=None):
    ours = [layer.values] if layer.bias is None else [layer.values, layer.bias]
    theirs = [dense.weight] if layer.bias is None else [dense.weight, dense.bias]
    x = x.clone().requires_grad_()
    directions = [torch.randn_like(t) for t in (x, *ours)]
    wide = [directions[0].double(), dense_of(layer, directions[1]), *(d.double() for d in directions[2:])]
    got = second(call or layer, x, ours, directions)
    want = second(dense, x.detach().double().requires_grad_(), theirs, wide)
    for mine, exact in zip(got, want, strict=True):
        exact = [exact[0], stored(layer, exact[1]), *exact[2:]]
        for m, e in zip(mine, exact, strict=True):
            torch.testing.assert_close(m.double(), e, rtol=1e-4, atol=1e-4 * float(e.abs().max()) + 1e-6)


@pytest.mark.parametrize("kernel", ["native", "dense", "reference"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_second_and_third_derivatives_are_the_dense_ones(kind, pattern, kernel):
    layer, dense, x = pair(kind, pattern)
    layer.kernel = kernel
    compare(layer, dense, x)


@pytest.mark.parametrize("kernel", ["native", "dense"])
@pytest.mark.parametrize("kind", sorted(set(LAYERS) - {"linear", "conv"}))
def test_kinds_of_input_and_window(kind, kernel):
    layer, dense, x = pair(kind)
    layer.kernel = kernel
    compare(layer, dense, x)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_other_ways_through_a_layer(kind):
    layer, dense, x = pair(kind)
    compare(layer, dense, x, lambda x: checkpoint(layer, x, use_reentrant=False))
    compare(layer, dense, x.contiguous(memory_format=torch.channels_last) if kind == "conv" else x.t().clone().t())

    def through_a_mode(x):
        with FlopCounterMode(display=False):  # takes the registered op
            return layer(x)

    compare(layer, dense, x, through_a_mode)
    compare(layer, dense, x, lambda x: torch.nn.functional.linear(x, layer.weight, layer.bias)
            if kind == "linear" else torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))  # fmt: skip


class Block(nn.Module):
    """Norms with and without a residual and an activation, as `spfde.fuse` finds them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.na, self.nb, self.act = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU6()
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        h = torch.relu(self.na(self.a(x)))
        return self.head(self.act(self.nb(self.b(h)) + h)).tanh().mean((1, 2, 3))


def penalty(model, x):
    """A gradient penalty's own gradient, by the parameters alone."""
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return ((grad.flatten(1).norm(dim=1) - 1) ** 2).sum()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_a_gradient_penalty_through_fused_norms(recompute, training):
    torch.manual_seed(0)
    model = sparsify(Block(), 0.5, distribution="erk").train(training)
    dense = densify(copy.deepcopy(model)).double()
    model, x = fuse(model, recompute=recompute), torch.randn(3, 4, 6, 6)
    assert any(isinstance(m, FusedNormAct2d) for m in model.modules())
    if training:
        penalty(model, x).backward(inputs=list(model.parameters()))
    else:
        penalty(model, x).backward()
    penalty(dense, x.double()).backward()
    grads = dict(dense.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            want = stored(module, grads[f"{name}.weight"].grad)
            torch.testing.assert_close(module.values.grad.double(), want, rtol=1e-3, atol=1e-5)
        elif isinstance(module, nn.BatchNorm2d):
            for key in ("weight", "bias"):
                mine, exact = getattr(module, key).grad, grads[f"{name}.{key}"].grad
                torch.testing.assert_close(mine.double(), exact, rtol=1e-3, atol=1e-5)


def mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    model = sparsify(model, 0.5, distribution="erk")
    return model, densify(copy.deepcopy(model)), torch.randn(4, 6)


def test_torch_autograd_functional():
    model, dense, x = mlp()
    of = {m: lambda a, m=m: m(a).pow(2).sum() for m in (model, dense)}
    functional, v = torch.autograd.functional, torch.randn(4, 6)
    ways = {
        "hvp": lambda m: functional.hvp(of[m], x, v)[1],
        "vhp": lambda m: functional.vhp(of[m], x, v)[1],
        "jvp": lambda m: functional.jvp(m, x, v)[1],
        "hessian": lambda m: functional.hessian(of[m], x),
        "hessian vectorized": lambda m: functional.hessian(of[m], x, vectorize=True),
        "hessian forward": lambda m: functional.hessian(of[m], x, False, False, True, "forward-mode"),
        "jacobian vectorized": lambda m: functional.jacobian(m, x, vectorize=True),
        "jacobian forward": lambda m: functional.jacobian(m, x, vectorize=True, strategy="forward-mode"),
    }  # fmt: skip
    for name, way in ways.items():
        torch.testing.assert_close(way(model), way(dense), rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_batched_gradients(kind):
    layer, dense, x = pair(kind)
    x = x.requires_grad_()
    y, exact = layer(x), dense(x.double())
    dy = torch.randn(3, *y.shape)
    for create_graph in (False, True):
        options = {"is_grads_batched": True, "retain_graph": True, "create_graph": create_graph}
        got = torch.autograd.grad(y, (x, layer.values), dy, **options)
        want = torch.autograd.grad(exact, (x, dense.weight), dy.double(), **options)
        torch.testing.assert_close(got[0].double(), want[0].double(), rtol=1e-4, atol=1e-4)
        for mine, theirs in zip(got[1], want[1], strict=True):
            torch.testing.assert_close(mine.double(), stored(layer, theirs), rtol=1e-4, atol=1e-4)


def test_second_derivatives_need_the_topology_of_the_first():
    layer, _, x = pair()
    x.requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
    layer.move_to(layer.positions()[2:])
    with pytest.raises(ValueError, match="expected backward before the topology moved"):
        grad.sum().backward()


def test_a_compiled_layer_refuses_second_derivatives_by_whatever_inputs():
    torch._dynamo.reset()
    layer, _, x = pair()
    x.requires_grad_()
    y = torch.compile(layer, backend="aot_eager")(x)
    (grad,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(grad.sum(), layer.values)


def test_half_precision_and_autocast():
    layer, dense, x = pair()
    for cast, context in (
        (torch.bfloat16, torch.autocast("cpu", enabled=False)),
        (torch.float32, torch.autocast("cpu")),
    ):
        a = x.to(cast).requires_grad_()
        with context:
            value = layer(a).float().pow(3).sum()
        (grad,) = torch.autograd.grad(value, a, create_graph=True)
        (got,) = torch.autograd.grad(grad.float().pow(2).sum(), layer.values)
        b = x.double().requires_grad_()
        (grad,) = torch.autograd.grad(dense(b).pow(3).sum(), b, create_graph=True)
        want = stored(layer, torch.autograd.grad(grad.pow(2).sum(), dense.weight)[0])
        torch.testing.assert_close(got.double(), want, rtol=0.1, atol=0.02 * float(want.abs().max()))
