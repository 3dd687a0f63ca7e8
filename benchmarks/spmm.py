"""spmm: a linear layer forward, sparse beside dense."""

import pytest
import torch
from cases import LINEAR


@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("variant", ["dense", "native", "masked"])
@pytest.mark.parametrize("layer", LINEAR, ids=str)
def test_forward(benchmark, layer, variant, sparsity):
    benchmark.group = f"spmm forward {layer} sparsity {sparsity}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), sparsity=sparsity)
    module, x = layer.variant(variant, sparsity)
    with torch.no_grad():
        benchmark.pedantic(module, (x,), rounds=15, warmup_rounds=3)
