"""spmm: a linear layer forward, sparse beside dense and the peers."""

import forward
import pytest
from cases import LINEAR


@pytest.mark.parametrize("sparsity", forward.SPARSITIES)
@pytest.mark.parametrize("layer, name", forward.variants_of(LINEAR))
def test_forward(benchmark, layer, name, sparsity):
    forward.run(benchmark, "spmm", layer, name, sparsity)
