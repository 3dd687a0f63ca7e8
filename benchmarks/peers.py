"""Other sparse layers with the same weights.

On a CPU torch's CSR matrices and SparseProp 0.1.14; on a GPU torch's block-sparse and 2:4 products, forward alone.
"""

from __future__ import annotations

import time
import warnings
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from cases import Case
from torch import Tensor, nn
from variants import Absent, Variant


def variant(name: str, case: Case, dense: nn.Module, x: Tensor, dy: Tensor) -> Variant:
    """The peer called `name` with the nonzeros of the layer `dense`.

    Raises:
        Absent: it is not installed, has no such layer, or torch has no kernel for it here.
    """
    if name == "torch csr":
        return _csr(dense, x, dy)
    if name == "sparseprop":
        return _sparseprop(dense, x, dy)
    if name not in ("torch bsr", "torch 2:4"):
        raise ValueError(f"expected torch csr, sparseprop, torch bsr or torch 2:4, got {name}")
    try:
        if name == "torch bsr":
            block = tuple(map(int, case.pattern.removeprefix("block:").split("x")))
            return Variant(Product(dense.weight.detach().to_sparse_bsr(block)), x, dy, trains=False)
        weight = torch.sparse.to_sparse_semi_structured(_two_of_four(dense.weight.detach()))
        return Variant(Product(weight), x, dy, trains=False, checked=False)
    except (RuntimeError, ValueError) as error:  # what torch raises for what it has no kernel for
        raise Absent(str(error).strip().splitlines()[0]) from error


class Product(nn.Module):
    """y = x W^T for one of torch's sparse matrices."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        try:
            return F.linear(x, self.weight)
        except RuntimeError as error:
            raise Absent(str(error).strip().splitlines()[0]) from error


def _two_of_four(weight: Tensor) -> Tensor:
    """A weight of that shape that keeps two of every four inputs."""
    kept = torch.tensor([1, 0, 1, 0], dtype=torch.bool, device=weight.device).repeat(weight.shape[1] // 4)
    return torch.randn_like(weight) * kept


def _sparseprop(dense: nn.Module, x: Tensor, dy: Tensor) -> Variant:
    try:
        from sparseprop.modules import SparseConv2d, SparseLinear
        from sparseprop.modules.utils import from_csr_2d, from_sparse_format_conv2d
    except ImportError as error:
        raise Absent("not installed") from error
    shape = tuple(dense.weight.shape)
    if isinstance(dense, nn.Linear):
        layer = SparseLinear.from_dense(dense)
        return Variant(layer, x, dy, lambda values: from_csr_2d(values, layer.W_idx, shape))
    if dense.groups > 1 or dense.stride[0] > 2:
        raise Absent("SparseProp has no groups and no stride above 2")

    def convolution(over_images: bool, x: Tensor, dy: Tensor) -> Variant:
        layer = SparseConv2d.from_dense(dense, vectorizing_over_on=over_images)
        return Variant(layer, x, dy, lambda values: from_sparse_format_conv2d(values, layer.W_idx, shape))

    # Its two ways of vectorising, chosen as it does itself: by one warm step of each.
    return min(convolution(False, _batch_last(x), _batch_last(dy)), convolution(True, x, dy), key=_seconds)


def _seconds(case: Variant) -> float:
    case.step()  # the first is cold
    start = time.perf_counter()
    case.step()
    return time.perf_counter() - start


def _batch_last(x: Tensor) -> Tensor:
    """The same images with the batch innermost in memory, as SparseProp's kernels over the batch want them."""
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def _csr(dense: nn.Linear, x: Tensor, dy: Tensor) -> Variant:
    layer = CsrLinear(dense)
    return Variant(layer, x, dy, lambda values: layer.matrix(values).to_dense())


class CsrLinear(nn.Module):
    """y = x W^T + b for a torch CSR matrix W, every product in the form that torch does fastest.

    Autograd's own route through a CSR matrix took two to four times as long (1024x1024, 90% sparse).
    """

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        with _quiet():
            csr = dense.weight.detach().to_sparse_csr()
        rows = torch.repeat_interleave(torch.arange(len(dense.weight)), csr.crow_indices().diff())
        order = torch.argsort(csr.col_indices() * len(dense.weight) + rows)
        counts = torch.bincount(csr.col_indices(), minlength=dense.in_features)
        self.values = nn.Parameter(csr.values())
        self.bias = dense.bias
        self.shape = tuple(dense.weight.shape)
        self.index = csr.crow_indices(), csr.col_indices()
        self.order = order
        self.t_index = nn.functional.pad(counts.cumsum(0), (1, 0)), rows[order]

    def matrix(self, values: Tensor) -> Tensor:
        """W with other values."""
        with _quiet():
            return torch.sparse_csr_tensor(*self.index, values, self.shape, check_invariants=False)

    def transposed(self, values: Tensor) -> Tensor:
        """W^T with other values."""
        return torch.sparse_csr_tensor(*self.t_index, values[self.order], self.shape[::-1], check_invariants=False)

    def forward(self, x: Tensor) -> Tensor:
        return _CsrProduct.apply(x, self.values, self.bias, self)


class _CsrProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, values, bias, layer):
        ctx.save_for_backward(x, values)
        ctx.layer = layer
        matrix = layer.matrix(values)
        return (matrix @ x.t() if bias is None else torch.addmm(bias[:, None], matrix, x.t())).t()

    @staticmethod
    def backward(ctx, dy):
        x, values = ctx.saved_tensors
        dx = (ctx.layer.transposed(values) @ dy.t()).t() if ctx.needs_input_grad[0] else None
        dvalues = torch.sparse.sampled_addmm(ctx.layer.matrix(values), dy.t(), x, beta=0.0).values()
        return dx, dvalues, dy.sum(0) if ctx.needs_input_grad[2] else None, None


@contextmanager
def _quiet():
    """Mutes torch, which calls its CSR tensors beta once per process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        yield
