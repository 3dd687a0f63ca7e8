"""conv2d: a convolution forward and its gradients, sparse beside dense; forward beside SparseProp, too."""

import forward
import pytest
from cases import CONV


@pytest.mark.parametrize("sparsity", forward.SPARSITIES)
@pytest.mark.parametrize("layer, name", forward.variants_of(CONV))
def test_forward(benchmark, layer, name, sparsity):
    forward.run(benchmark, "conv2d", layer, name, sparsity)


@pytest.mark.parametrize("sparsity", [0.9])
@pytest.mark.parametrize("of", ["input", "weight"])
@pytest.mark.parametrize("name", ["dense", "dense channels_last", "native", "masked"])
@pytest.mark.parametrize("layer", CONV, ids=str)
def test_gradient(benchmark, layer, name, of, sparsity):
    forward.gradient(benchmark, "conv2d", layer, name, sparsity, of)
