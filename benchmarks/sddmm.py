"""sddmm: the weight gradient of a linear layer at its stored positions, beside the dense one and torch CSR's."""

import forward
import pytest
import torch
from cases import LINEAR

WAYS = ("dense", "native", "masked", "torch csr")  # SparseProp computes both gradients in one call


@pytest.mark.parametrize("sparsity", forward.SPARSITIES)
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("layer", LINEAR, ids=str)
def test_weight_gradient(benchmark, layer, name, sparsity):
    benchmark.group = f"sddmm {layer} sparsity {sparsity}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), sparsity=sparsity, way=name)
    case = forward.case(layer, name, sparsity)
    y, parameters = case.module(case.x), list(case.module.parameters())
    benchmark.pedantic(
        torch.autograd.grad, (y, parameters, case.dy), {"retain_graph": True}, **forward.ROUNDS
    )  # fmt: skip
