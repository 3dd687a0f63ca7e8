"""A topology change writes into the tensors that kernels read: what holds them, as a CUDA graph does, follows it."""

from dataclasses import fields
from itertools import product

import pytest
import torch
from topology.test_methods import SHRINKING
from torch import Tensor, nn

import spfde
from spfde.kernels.scatter import scatter
from spfde.kernels.triton.config import has_kernel
from spfde.kernels.triton.index import tile_index
from spfde.nn import SparseLayer
from spfde.sparse.plan import Plan, build_plan
from spfde.topology import METHODS

LAYERS = {
    "linear": (lambda: nn.Linear(64, 96), (4, 64)),
    "odd linear": (lambda: nn.Linear(61, 90), (4, 61)),
    "conv": (lambda: nn.Conv2d(32, 48, 3, padding=1), (2, 32, 6, 5)),
}
PATTERNS = ["unstructured", "block:16x16", "block:4x1", "block:1x4", "2:4", "fan-in", "channel"]


def sparse(name: str, pattern: str) -> tuple[SparseLayer, Tensor]:
    """A layer half of whose blocks are stored, and an input."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    return spfde.sparsify(make(), 0.5, pattern=pattern), torch.randn(shape)


def moved(layer: SparseLayer) -> Tensor:
    """As many other positions, as the pattern allows: columns (or whole outputs) in opposite order."""
    there = torch.zeros(layer.grid.size, dtype=torch.bool)
    there[layer.positions()] = True
    return there.view(layer.grid.shape).flip(0 if layer.pattern == "channel" else 1).view(-1).nonzero().view(-1)


def tensors(value, name: str = "plan") -> dict[str, Tensor]:
    """Every tensor in a plan, by where it is."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Plan):
        inside = {part.name: getattr(value, part.name) for part in fields(value)}
    else:
        inside = dict(enumerate(value)) if isinstance(value, tuple) else {}
    return {path: t for key, one in inside.items() for path, t in tensors(one, f"{name}.{key}").items()}


def where(layer: SparseLayer) -> dict[str, tuple]:
    """The place in memory and the shape of everything that kernels read."""
    held = tensors(layer.plan) | dict(layer.named_buffers()) | {"values": layer.values.detach()}
    return {name: (tensor.data_ptr(), tensor.shape, tensor.dtype) for name, tensor in held.items()}


def ask(layer: SparseLayer) -> None:
    """Lets every kind of kernel ask the plan for what it reads."""
    layer.plan.dense_buffer()
    if len(layer.shape) == 2 or has_kernel(layer.plan.block):
        tile_index(layer.plan)


def check_fresh(layer: SparseLayer) -> None:
    """The plan says what one made anew says."""
    plan = layer.plan
    new = build_plan(plan.index, layer.shape, layer.window, layer.grid, layer.pattern.kind == "channel")
    new.dense_buffer()
    assert (new.nnz, new.weights, new.block) == (plan.nnz, plan.weights, plan.block)
    for name, build in plan._builders.items():
        new.derive(name, build)
    got, want = tensors(plan), tensors(new)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize(("name", "pattern"), list(product(LAYERS, PATTERNS)))
def test_a_move_changes_every_tensor_in_place(name, pattern):
    if (name, pattern) == ("odd linear", "2:4"):
        pytest.skip("the short group stands at one end")
    layer, x = sparse(name, pattern)
    ask(layer)
    layer.kernel = "dense"
    layer(x)
    before, old = where(layer), layer.positions()
    layer.move_to(moved(layer))
    assert not torch.equal(layer.positions(), old)
    assert where(layer) == before
    check_fresh(layer)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


@pytest.mark.parametrize("pattern", ["unstructured", "block:16x16", "block:1x4"])
def test_fewer_blocks_keep_every_tensor_too(pattern):
    layer, x = sparse("odd linear", pattern)
    ask(layer)
    before = where(layer)
    layer.move_to(layer.positions()[::2])
    assert where(layer) == before
    check_fresh(layer)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


@pytest.mark.parametrize("pattern", ["unstructured", "block:16x16"])
@pytest.mark.parametrize("name", ["linear", "conv"])
@pytest.mark.parametrize("method", METHODS)
def test_an_update_changes_every_tensor_in_place(method, name, pattern):
    if method == "deepr" and pattern != "unstructured":
        pytest.skip("single weights only")
    layer, x = sparse(name, pattern)
    model = nn.Sequential(layer)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    options = {"gmp": {"initial_sparsity": 0.25}, "dsr": {"threshold": 0.05}}.get(method, {})
    if method in SHRINKING and method != "gmp":  # to its end
        options = {"begin": 0.0, "end": 1.0}
    topology = METHODS[method](model, optimizer, total_steps=9, every=1, **options)
    ask(layer)
    before, updated, state = where(layer), False, {}
    for _ in range(8):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        state = state or {key: tensor.data_ptr() for key, tensor in optimizer.state[layer.values].items()}
        updated |= topology.step()
        assert where(layer) == before
        assert {key: tensor.data_ptr() for key, tensor in optimizer.state[layer.values].items()} == state
    assert updated
    check_fresh(layer)


@pytest.mark.parametrize("pattern", ["unstructured", "block:16x16", "block:4x1"])
@pytest.mark.parametrize("kernel", ["native", "dense"])
def test_a_reader_from_before_a_move_follows_it(kernel, pattern):
    layer, x = sparse("linear", pattern)
    units, x = list(layer.plan.kernel_index), x.requires_grad_()
    layer.move_to(moved(layer))
    y = torch.ops.spfde.spmm(x, layer.plan.arrange(layer.values), layer.bias, units, 96, kernel)
    twin = layer.to_dense()
    torch.testing.assert_close(y, twin(x))
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x), torch.autograd.grad(twin(x).square().sum(), x))
    conv, x = sparse("conv", pattern)
    units = list(conv.plan.kernel_index)
    conv.move_to(moved(conv))
    window, values = conv.window, conv.plan.arrange(conv.values)
    y = torch.ops.spfde.conv2d(
        x, values, conv.bias, units, conv.shape, window.stride, window.padding, window.dilation, 1, kernel
    )
    torch.testing.assert_close(y, conv.to_dense()(x))


def test_a_writer_of_the_dense_weight_from_before_a_move_leaves_nothing_of_it():
    layer, x = sparse("linear", "unstructured")
    layer.kernel = "dense"
    layer(x)
    buffer, units = layer.plan.dense_buffer(), layer.plan.kernel_index
    layer.move_to(moved(layer)[::2])
    assert not buffer.any()
    scatter(layer.values.detach(), units, layer.shape, buffer)
    assert torch.equal(buffer[:-1].view(layer.shape), layer.dense_weight())


@pytest.mark.parametrize("how", ["move_to", "load_state_dict"])
@pytest.mark.parametrize("kernel", ["native", "dense"])
@pytest.mark.parametrize(("name", "pattern"), list(product(["odd linear", "conv"], ["unstructured", "block:1x4"])))
def test_a_backward_pass_from_before_a_move_is_refused(name, pattern, kernel, how):
    layer, x = sparse(name, pattern)
    layer.kernel = kernel
    y = layer(x.requires_grad_())
    if how == "move_to":
        layer.move_to(moved(layer))
    else:
        layer.load_state_dict(layer.state_dict())
    with pytest.raises(ValueError, match="expected backward before the topology moved.*try loss.backward"):
        y.sum().backward()
    layer(x).sum().backward()


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_a_dense_weight_from_before_a_move_has_no_backward_pass(name):
    layer, x = sparse(name, "unstructured")
    layer.double()
    results = [layer.weight, layer(x.double())]
    layer.move_to(moved(layer))
    for y in results:
        with pytest.raises(ValueError, match="expected backward before the topology moved"):
            y.sum().backward()


def test_a_registered_op_refuses_it_too():
    layer, x = sparse("linear", "unstructured")
    y = torch.ops.spfde.spmm(x, layer.plan.arrange(layer.values), None, list(layer.plan.kernel_index), 96, "native")
    layer.move_to(moved(layer))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_refused_backward_pass_leaves_no_exploration_behind():
    layer, x = sparse("linear", "unstructured")
    model = nn.Sequential(layer)
    topology = METHODS["top-kast"](model, torch.optim.SGD(model.parameters()), total_steps=9)
    y = model(x)
    layer.move_to(moved(layer))
    with pytest.raises(ValueError, match="expected backward before the topology moved"):
        y.sum().backward()
    assert topology.explorations["0"].grad is None


def test_a_load_changes_every_tensor_in_place():
    layer, x = sparse("conv", "block:16x16")
    other = sparse("conv", "block:16x16")[0]
    other.move_to(moved(other))
    ask(layer)
    before = where(layer)
    layer.load_state_dict(other.state_dict())
    assert where(layer) == before
    check_fresh(layer)
    assert torch.equal(layer(x), other(x))


def test_what_is_first_asked_for_in_inference_mode_can_still_change():
    layer, _ = sparse("linear", "block:16x16")
    with torch.inference_mode():
        ask(layer)
        layer.move_to(moved(layer))
    layer.move_to(moved(layer))
    check_fresh(layer)


def test_another_precision_leaves_the_plan_alone():
    layer, _ = sparse("linear", "unstructured")
    plan, version = layer.plan, layer.plan.topology_version
    layer.double()
    assert layer.plan is plan and plan.topology_version == version
