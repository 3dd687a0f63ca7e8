"""sddmm: the weight gradient of a linear layer at its stored positions, beside the dense one and torch CSR's."""

import forward
import pytest
import torch
from cases import LINEAR

VARIANTS = ("dense", "native", "masked", "torch csr")  # SparseProp computes both gradients in one call


@pytest.mark.parametrize("sparsity", forward.SPARSITIES)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("layer", LINEAR, ids=str)
def test_weight_gradient(benchmark, layer, name, sparsity):
    benchmark.group = f"sddmm {layer} sparsity {sparsity}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), sparsity=sparsity, variant=name)
    made = forward.variant(layer, name, sparsity)
    y, parameters = made.module(made.x), list(made.module.parameters())
    benchmark.pedantic(
        torch.autograd.grad, (y, parameters, made.dy), {"retain_graph": True}, **forward.ROUNDS
    )  # fmt: skip
