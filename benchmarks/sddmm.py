"""sddmm: the weight gradient of a linear layer at its stored positions, beside the dense weight gradient."""

import pytest
import torch
from cases import LINEAR

from spfde.kernels import sddmm


@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("variant", ["dense", "native", "masked"])
@pytest.mark.parametrize("layer", LINEAR, ids=str)
def test_weight_gradient(benchmark, layer, variant, sparsity):
    benchmark.group = f"sddmm {layer} sparsity {sparsity}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), sparsity=sparsity)
    sparse, x = layer.variant("native", sparsity)
    dy = torch.randn(layer.batch, layer.channels[1])
    plan = sparse.plan
    if variant == "dense":
        benchmark.pedantic(lambda: (dy.t() @ x, dy.sum(0)), rounds=15, warmup_rounds=3)
    else:
        kernel = "native" if variant == "native" else "dense"
        args = (dy, x, plan.units, plan.block, True, kernel)
        benchmark.pedantic(sddmm.compute, args, rounds=15, warmup_rounds=3)
