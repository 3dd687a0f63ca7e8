"""torch.func and forward-mode derivatives: the same as with the masked dense layer."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import func, nn

from spfde import densify, fuse, sparsify

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.:DeprecationWarning"
)  # torch's forward-mode derivatives do it

LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (6, 12)),
    "conv": (lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1), (6, 4, 5, 5)),
    "conv-groups": (lambda: nn.Conv2d(8, 8, 3, groups=2, padding="same"), (6, 8, 5, 5)),
    "conv-strided-1x1": (lambda: nn.Conv2d(4, 8, 1, stride=2), (6, 4, 5, 5)),
}


def pair(kind, pattern="unstructured"):
    torch.manual_seed(0)
    make, size = LAYERS[kind]
    layer = sparsify(make(), 0.5, pattern=pattern)
    return layer, densify(copy.deepcopy(layer)), torch.randn(size)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("pattern", ["unstructured", "block:4x2", "channel"])
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_transforms_of_the_input(kind, pattern, autocast):
    layer, dense, x = pair(kind, pattern)
    images = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    t = torch.randn_like(x)
    ways = {
        "vmap": lambda m: func.vmap(m)(x.unflatten(0, (2, 3))),
        "vmap of one": lambda m: func.vmap(m)(x),
        "grad": lambda m: func.grad(lambda a: m(a).float().square().sum())(images),
        "grad of grad": lambda m: func.grad(lambda a: func.grad(lambda b: m(b).float().pow(3).sum())(a).sum())(x),
        "vjp": lambda m: func.vjp(m, x)[1](torch.ones_like(m(x)))[0],
        "jvp": lambda m: func.jvp(m, (x,), (t,))[1],
        "jacrev": lambda m: func.jacrev(m)(x[:2]),
        "jacfwd": lambda m: func.jacfwd(m)(x[:2]),
    }
    limit = 0.05 if autocast else 1e-4
    for name, way in ways.items():
        with torch.autocast("cpu") if autocast else nullcontext():
            got, want = way(layer).float(), way(dense).float()
        assert (got - want).norm() <= limit * want.norm() + 1e-5, name


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_per_sample_gradients_of_the_values(kind):
    layer, dense, x = pair(kind)

    def per_sample(module):
        def loss(parameters, sample):
            return func.functional_call(module, parameters, (sample[None],)).square().sum()

        return func.vmap(func.grad(loss), in_dims=(None, 0))(dict(module.named_parameters()), x)

    got, want = per_sample(layer), per_sample(dense)
    close(got["bias"], want["bias"])
    for mine, theirs in zip(got["values"], want["weight"], strict=True):
        close(mine[: layer.nnz], layer.grid.cut(theirs)[layer.positions()])


@pytest.mark.parametrize("recompute", [False, True])
def test_a_fused_model(recompute):
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.GELU()
    model = sparsify(nn.Sequential(*layers, nn.Linear(6, 2)), 0.5, distribution="erk").eval()
    dense = densify(copy.deepcopy(model))
    model, x = fuse(model, recompute=recompute), torch.randn(5, 4, 4, 4)
    ways = [
        lambda m: func.vmap(lambda a: m(a[None]))(x),
        lambda m: func.vmap(func.grad(lambda a: m(a[None]).sum()))(x),
        lambda m: func.jvp(m, (x,), (x,))[1],
        lambda m: func.jacrev(m)(x),
    ]
    for way in ways:
        close(way(model), way(dense))


def test_forward_mode_without_torch_func():
    layer, dense, x = pair("linear")
    tangents = []
    for module in (layer, dense):
        with fwAD.dual_level():
            tangents.append(fwAD.unpack_dual(module(fwAD.make_dual(x, x.flip(0)))).tangent)
    close(*tangents)


@pytest.mark.parametrize("transform", [func.vmap, lambda m: func.grad(lambda a: m(a).sum())], ids=["vmap", "grad"])
def test_compiled_transforms(transform):
    torch._dynamo.reset()
    layer, dense, x = pair("linear")
    x = x.unflatten(0, (2, 3))
    close(torch.compile(transform(layer), backend="aot_eager")(x), transform(dense)(x))


def test_models_of_different_topology_are_not_run_as_one():
    models = [sparsify(nn.Linear(12, 8), 0.5, seed=seed) for seed in range(2)]
    parameters, buffers = func.stack_module_state(models)
    x, mine = torch.randn(3, 12), dict(models[0].named_buffers())
    call = lambda p, b: func.functional_call(models[0], (p, b), (x,))  # noqa: E731
    with pytest.raises(ValueError, match="expected one index, got a SparseLinear.*try a loop over the models"):
        func.vmap(call)(parameters, buffers)
    y = func.vmap(call, in_dims=(0, None))(parameters, mine)
    close(y[0], models[0](x))


def test_a_functional_call_takes_the_index_that_it_is_given():
    one, other = (sparsify(nn.Linear(12, 8), 0.5, seed=seed) for seed in range(2))
    x, before = torch.randn(3, 12), one.mask()
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    close(func.functional_call(one, state, (x,)), other(x))
    close(func.vmap(lambda a: func.functional_call(one, state, (a,)))(x), other(x))
    assert torch.equal(one.mask(), before)
    close(one(x), densify(copy.deepcopy(one))(x))
    with pytest.raises(ValueError, match="expected columns.*load_state_dict"):
        func.functional_call(one, {**state, "col": state["col"] + 99}, (x,))
