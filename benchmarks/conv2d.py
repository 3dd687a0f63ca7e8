"""conv2d: a convolution forward, sparse beside dense and SparseProp."""

import forward
import pytest
from cases import CONV


@pytest.mark.parametrize("sparsity", forward.SPARSITIES)
@pytest.mark.parametrize("layer, name", forward.variants_of(CONV))
def test_forward(benchmark, layer, name, sparsity):
    forward.run(benchmark, "conv2d", layer, name, sparsity)
