"""An op and its derivatives in torch's own ops, on the dense weight: for what must see through them.

torch.func, batched gradients, forward-mode derivatives and tracers see through torch's ops only (see
`spfde.kernels.dtypes.in_torch_ops`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from spfde.kernels import dense
from spfde.kernels.dtypes import cast, compute_and_result_dtype, without_autocast
from spfde.kernels.memory_format import check_parameters
from spfde.kernels.reference import apply
from spfde.kernels.registry import Gradients, bias_grad
from spfde.kernels.scatter import constant_places, place
from spfde.sparse.kernel_index import KernelIndex, Window, places_of
from spfde.sparse.plan import Plan


class Weight(NamedTuple):
    """Where values [-1, *block] are in a dense weight of `shape`, and how it is applied.

    places: the flat place of each, the weight's size where there is none.
    """

    places: Tensor
    shape: tuple[int, ...]
    window: Window
    block: tuple[int, int]


def weight_of(plan: Plan) -> Weight:
    """That of a plan, for values as `Plan.arrange` gives them."""
    return Weight(constant_places(plan), plan.shape, plan.window, plan.arranged_block)


def weight_at(index: KernelIndex, shape: tuple[int, ...], window: Window, block: tuple[int, int]) -> Weight:
    """That of what a registered op is given."""
    return Weight(places_of(index, shape).long(), shape, window, block)


def run(x: Tensor, values: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """y of a layer, in the precision that its kernels would give it. x: [batch, features] or with four dimensions."""
    dtype, result = compute_and_result_dtype(x, values)
    check_parameters(values, plan.values_shape, bias, plan.rows)
    with without_autocast(x.device.type):
        x, values, bias = cast(x, dtype), cast(values, dtype), cast(bias, dtype)
        weight = place(plan.arrange(values), constant_places(plan), plan.shape)
        return cast(apply(x, weight, bias, plan.window), result)


def derivative(dy: Tensor | None, x: Tensor | None, values: Tensor | None, weight: Weight, size: tuple[int, ...]):
    """The derivative of <dy, op(x, values)> by the one of the three that is None: y, dX or dW at the stored places.

    size: the shape of x. Differentiable to any order.
    """
    linear, matrix = len(weight.shape) == 2, None
    if values is not None:
        matrix = place(values, weight.places, weight.shape)
    if dy is None:
        return apply(x, matrix, None, weight.window)
    if x is None:
        return dy @ matrix if linear else dense.gradients(dy, None, size, matrix, weight.window, (True, False))[0]
    if linear:
        found = dy.t() @ x
    else:
        shaped = dy.new_empty(1).expand(weight.shape)
        found = dense.gradients(dy, x, size, shaped, weight.window, (False, True))[1]
    return F.pad(found.reshape(-1), (0, 1)).index_select(0, weight.places).view(-1, *weight.block)


def gradients(
    dy: Tensor, x: Tensor | None, values: Tensor, weight: Weight, size: tuple[int, ...], needs: tuple[bool, bool, bool]
) -> Gradients:
    """Those of x, values and bias that are needed, as `Product.gradients`."""
    need_x, need_values, need_bias = needs
    return (
        derivative(dy, None, values, weight, size) if need_x else None,
        derivative(dy, x, None, weight, size) if need_values else None,
        bias_grad(dy) if need_bias else None,
    )
