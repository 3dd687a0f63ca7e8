"""A kernel that is written outside of the package: everything asks the registry, and finds it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spfde
from spfde.kernels import registry
from spfde.kernels.registry import Kernel, Prediction, Product
from spfde.kernels.scatter import gather, to_dense


class Einsum(Product):
    """Counts its calls."""

    def __init__(self):
        self.calls = []

    def forward(self, x, values, bias, index, problem, weight=None, epilogue=None):
        self.calls.append("forward")
        y = torch.einsum("bi,oi->bo", x, to_dense(values, index, problem.shape))
        return y if bias is None else y + bias

    def input_grad(self, dy, values, index, problem, size, weight=None):
        self.calls.append("input_grad")
        return torch.einsum("bo,oi->bi", dy, to_dense(values, index, problem.shape))

    def weight_grad(self, dy, x, index, block, problem, bias):
        self.calls.append("weight_grad")
        return gather(torch.einsum("bo,bi->oi", dy, x), index, block), dy.sum(0) if bias else dy.new_empty(0)


class Mine(Kernel):
    """For linear layers on a CPU; says that it always pays."""

    name, devices = "mine", ("cpu",)

    def __init__(self):
        self.products = {"linear": Einsum()}

    def obstacle(self, device, dtype, problem):
        if problem.op != "linear":
            return "it takes linear layers"
        return None if (device, dtype) == ("cpu", torch.float32) else "it takes float32 on a CPU"

    def predict(self, dtype, problem):
        return Prediction(1e9, True, "it is mine")


@pytest.fixture
def mine():
    kernel = registry.register(Mine())
    spfde.kernels.dispatch.rule.forget()
    yield kernel
    registry.unregister("mine")
    spfde.kernels.dispatch.rule.forget()


def layer(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return spfde.sparsify(nn.Linear(24, 16), 0.7)


def test_the_rule_takes_it_and_its_gradients_are_right(mine):
    sparse, x = layer(), torch.randn(5, 24, requires_grad=True)
    y = sparse(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    assert mine.products["linear"].calls == ["forward", "input_grad", "weight_grad"]
    wide, weight = x.detach().double().requires_grad_(), sparse.dense_weight().double().requires_grad_()
    want = F.linear(wide, weight, sparse.bias.double())
    want.backward(dy.double())
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sparse.values.grad.view(-1).double(), weight.grad[sparse.mask()], rtol=1e-5, atol=1e-6)
    assert (sparse.kernel, sparse.choice.reason) == ("mine", "it is mine")


def test_every_part_of_the_library_knows_it(mine):
    model = nn.Sequential(layer())
    model(torch.randn(5, 24))
    summary = spfde.summary(model)
    assert (summary.rows[0].kernel, summary.rows[0].runs_sparse) == ("mine", True)
    assert spfde.kernels.dispatch.rule.candidates("cpu", torch.float32, model[0].choice.problem) == (
        "native",
        "mine",
        "dense",
    )
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(torch.ones(5, 24)), model(torch.ones(5, 24)))


def test_it_is_forced_like_any_other_and_refused_where_it_cannot_run(mine):
    sparse = layer()
    sparse.kernel = "mine"
    sparse(torch.randn(5, 24))
    assert sparse.choice.reason == "forced by layer.kernel"
    conv = spfde.sparsify(nn.Conv2d(4, 4, 3), 0.5)
    conv.kernel = "mine"
    with pytest.raises(ValueError, match="kernel 'mine'.*it takes linear layers"):
        conv(torch.randn(1, 4, 8, 8))


def test_gradients_of_weights_that_are_not_stored_obey_a_forced_kernel(mine):
    sparse = layer()
    sparse.kernel = "mine"
    optimizer = torch.optim.SGD(sparse.parameters(), 0.1)
    spfde.topology.TopKAST(sparse, optimizer, total_steps=10, every=2)
    mine.products["linear"].calls.clear()
    sparse(torch.randn(5, 24)).square().mean().backward()
    assert mine.products["linear"].calls.count("weight_grad") == 2  # of what is stored, and of what is explored


def test_a_name_is_taken_once(mine):
    with pytest.raises(ValueError, match="expected a kernel name that is free, got 'mine'"):
        registry.register(Mine())
    with pytest.raises(ValueError, match="expected kernel to be one of .*mine"):
        layer().kernel = "nobody's"


def test_a_kernel_that_comes_or_goes_is_seen_by_layers_that_ran_before():
    sparse, x = layer(), torch.randn(5, 24)
    sparse(x)
    before = sparse.kernel
    registry.register(Mine())
    try:
        sparse(x)
        assert sparse.kernel == "mine"
    finally:
        registry.unregister("mine")
    sparse(x)
    assert sparse.kernel == before


def test_a_kernel_that_predicts_nothing_is_refused():
    silent = type("Silent", (Mine,), {"name": "silent", "predict": Kernel.predict})
    with pytest.raises(TypeError, match="predict"):
        registry.register(silent())
