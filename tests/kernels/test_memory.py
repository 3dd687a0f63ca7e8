"""What the native kernels are handed: addresses of tensors whose layout and size they never ask for."""

import pytest
import torch
from torch import nn

import spfde
from spfde.nn import SparseConv2d, SparseLinear

CONV = (torch.randn(8, 16, 12, 12), lambda: nn.Conv2d(16, 24, 3, padding=1))
LINEAR = (torch.randn(8, 48), lambda: nn.Linear(48, 40))


def sparse(make, pattern="unstructured", kernel="native"):
    torch.manual_seed(0)
    layer = spfde.sparsify(make(), 0.5, pattern=pattern)
    layer.kernel = kernel
    return layer


def gradients(layer, x):
    x = x.detach().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["native", "dense"])
@pytest.mark.parametrize(("x", "make"), [CONV, LINEAR], ids=["conv", "linear"])
def test_another_default_dtype_changes_nothing(x, make, kernel, default):
    layer = sparse(make, kernel=kernel)
    expected = gradients(layer, x)
    torch.set_default_dtype(default)
    try:
        got = gradients(sparse(lambda: make().float(), kernel=kernel).float().requires_grad_(), x)
        again = gradients(layer, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(g.dtype == torch.float32 for g in got)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


@pytest.mark.parametrize("kernel", ["native", "dense"])
@pytest.mark.parametrize(("x", "make"), [CONV, LINEAR], ids=["conv", "linear"])
def test_parameters_with_gaps_in_memory(x, make, kernel):
    layer = sparse(make, kernel=kernel)
    expected = gradients(layer, x)
    values, bias = layer.values.data, layer.bias.data
    layer.values.data = torch.stack([values, values + 1], 1)[:, 0]
    layer.bias = nn.Parameter(torch.stack([bias, bias + 1], 1)[:, 0])
    assert not layer.values.is_contiguous() and not layer.bias.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(expected, gradients(layer, x), strict=True))


@pytest.mark.parametrize("name", ["values", "bias"])
@pytest.mark.parametrize(("x", "make"), [CONV, LINEAR], ids=["conv", "linear"])
def test_parameters_of_another_size_are_refused(x, make, name):
    layer = sparse(make)
    other = {name: torch.zeros(10, 1, 1) if name == "values" else torch.zeros(3)}
    with pytest.raises(ValueError, match=f"expected {name} of shape"):
        torch.func.functional_call(layer, other, x)


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1"])
@pytest.mark.parametrize(("x", "make"), [CONV, LINEAR], ids=["conv", "linear"])
def test_training_after_a_first_call_in_inference_mode(x, make, pattern):
    layer, fresh = sparse(make, pattern, "dense"), sparse(make, pattern, "dense")
    with torch.inference_mode():
        layer(x)
    assert all(torch.equal(a, b) for a, b in zip(gradients(fresh, x), gradients(layer, x), strict=True))


@pytest.mark.parametrize("kernel", ["native", "dense"])
def test_a_compiled_convolution_keeps_the_memory_format(kernel):
    x, make = CONV
    layer = sparse(make, kernel=kernel)
    x = x.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for one, other in zip(gradients(layer, x), gradients_of(compiled, layer, x), strict=True):
        assert one.stride() == other.stride()
        assert torch.equal(one, other)


def gradients_of(run, layer, x):
    x = x.detach().requires_grad_()
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


def test_layers_are_what_the_cases_say():
    assert isinstance(sparse(CONV[1]), SparseConv2d) and isinstance(sparse(LINEAR[1]), SparseLinear)
