"""spmm: a linear layer forward, sparse beside dense and the peers, and its input gradient beside the dense one."""

import forward
import pytest
from cases import LINEAR


@pytest.mark.parametrize("sparsity", forward.SPARSITIES)
@pytest.mark.parametrize("layer, name", forward.variants_of(LINEAR))
def test_forward(benchmark, layer, name, sparsity):
    forward.run(benchmark, "spmm", layer, name, sparsity)


@pytest.mark.parametrize("sparsity", [0.9])
@pytest.mark.parametrize("name", ["dense", "native", "masked"])
@pytest.mark.parametrize("layer", LINEAR, ids=str)
def test_input_gradient(benchmark, layer, name, sparsity):
    forward.gradient(benchmark, "spmm", layer, name, sparsity, "input")
