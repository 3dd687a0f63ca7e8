"""scatter, gather: stored values into a dense weight, and a dense weight's gradient back to the stored places.

values are those of `Plan.arrange`: [units, 1, 1] or [capacity, R, C].
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde._native import native
from spfde.kernels.dtypes import in_torch_ops
from spfde.sparse.kernel_index import KernelIndex, places_of
from spfde.sparse.plan import Plan


def to_dense(values: Tensor, index: KernelIndex, shape: tuple[int, ...]) -> Tensor:
    """The dense weight, zeros exact, differentiable in `values` to any order. Returns a new tensor of `shape`."""
    return place(values, places_of(index, shape).long(), shape)


def place(values: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`to_dense` for values whose flat places (int64) are known, the weight's size for those that have none."""
    return values.new_zeros(prod(shape) + 1).scatter(0, places, values.reshape(-1))[:-1].view(shape)


def constant_places(plan: Plan) -> Tensor:
    """`Plan.places` (int64), a constant of whatever is being traced."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return plan.derive("places", _places)
    tracing = torch._C._get_tracing_state()
    if tracing is None:
        return _places(plan)
    torch._C._set_tracing_state(None)
    try:
        return _places(plan)
    finally:
        torch._C._set_tracing_state(tracing)


def _places(plan: Plan) -> Tensor:
    return plan.places.long()


def dense_weight(values: Tensor, plan: Plan) -> Tensor:
    """`to_dense` by a plan; a backward pass is refused once its topology has moved."""
    weight = place(values, constant_places(plan), plan.shape)
    if weight.requires_grad and not torch.compiler.is_compiling() and not in_torch_ops():
        version = plan.topology_version
        weight.register_hook(lambda _: plan.check(version))
    return weight


def write(values: Tensor, plan: Plan, since: int = 0) -> tuple[Tensor, int]:
    """The dense weight in the plan's buffer, and the count of its writings.

    A backward pass that passes its forward pass's count as `since` finds that weight again, if it is still there.
    """
    buffer = plan.dense_buffer()
    if since != plan.dense_version or since == 0 or buffer.dtype != values.dtype:
        plan.dense_version += 1
        return scatter(values, plan.kernel_index, plan.shape, buffer), plan.dense_version
    return buffer[:-1].view(plan.shape), since


def scatter(values: Tensor, index: KernelIndex, shape: tuple[int, ...], buffer: Tensor | None = None) -> Tensor:
    """The dense weight, outside autograd; written into `buffer` if it fits, whose other elements are zero already."""
    fits = buffer is not None and buffer.dtype == values.dtype
    dense = buffer if fits else values.new_zeros(prod(shape) + 1)
    if _runs_native(values, values.shape[1:]):
        native().scatter(
            shape[0], prod(shape[1:]), index.row_ptr.data_ptr(), index.col.data_ptr(), values.data_ptr(),
            dense.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
    else:
        dense.scatter_(0, places_of(index, shape).long(), values.reshape(-1))
    return dense[:-1].view(shape)


def gather(dense: Tensor, index: KernelIndex, block: tuple[int, ...]) -> Tensor:
    """The elements of `dense` at the stored places, as values [-1, *block] with 0 where there is none."""
    rows, cols = dense.shape[0], prod(dense.shape[1:])
    if not _runs_native(dense, block):
        return F.pad(dense.reshape(-1), (0, 1)).index_select(0, places_of(index, dense.shape)).view(-1, *block)
    dense = dense.contiguous()
    values = dense.new_empty(index.col.numel(), 1, 1)
    native().gather(
        rows, cols, index.col.numel(), index.row_ptr.data_ptr(), index.col.data_ptr(), dense.data_ptr(),
        values.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return values


def _runs_native(tensor: Tensor, block: tuple[int, ...]) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tuple(block) == (1, 1)
