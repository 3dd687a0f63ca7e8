"""The kernel "semi_structured": 2:4 linear layers by torch's own sparse tensor core products, CUTLASS or cuSPARSELt.

Forward always runs sparse; the input gradient where the mask is 2:4 along the outputs too, else dense; the weight
gradient is a dense product, gathered. CUTLASS reads the stored values as they lie, and metadata that is made once for
each topology; cuSPARSELt, which hides its layout, compresses the dense weight at each call. Never timed by us, so only
taken by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spfde.kernels.dense import DenseLinear
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.gpu import gpu_here
from spfde.kernels.problem import STEPS, Problem
from spfde.kernels.registry import Kernel, Prediction, Product, register
from spfde.kernels.scatter import scatter
from spfde.sparse.kernel_index import KernelIndex
from spfde.sparse.plan import Plan

DTYPES = (torch.float16, torch.bfloat16)
MULTIPLES = (32, 64)  # outputs and inputs of a weight that both of torch's products take
TOKENS = 16  # of an input, which is filled up to a multiple


class SemiStructuredIndex(NamedTuple):
    """`KernelIndex`, then CUTLASS's metadata of W and of W transposed, empty where that is not 2:4 as well."""

    row_ptr: Tensor
    col: Tensor
    t_row_ptr: Tensor
    t_col: Tensor
    t_perm: Tensor
    places: Tensor
    meta: Tensor
    t_meta: Tensor


def metadata(row_ptr: Tensor, col: Tensor, cols: int) -> Tensor | None:
    """CUTLASS's metadata [rows, cols / 16] (int16) of a weight that stores two of every four columns, None of another.

    col: ascending within a row, those past the stored ones are not read. Waits for a GPU.
    """
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

    rows = row_ptr.numel() - 1
    if col.numel() < rows * cols // 2:
        return None
    column = col[: rows * cols // 2].view(rows, -1).long()
    group = torch.arange(cols // 4, device=col.device).repeat_interleave(2, output_size=cols // 2)
    full = torch.arange(rows + 1, device=col.device) * (cols // 2)
    if not bool((column // 4 == group).all() & (row_ptr == full).all()):
        return None
    mask = torch.zeros(rows, cols, dtype=torch.float16, device=col.device).scatter_(1, column, 1.0)
    return sparse_semi_structured_from_dense_cutlass(mask)[1]


def index_of(plan: Plan) -> SemiStructuredIndex:
    """The index of a plan as this kernel reads it, its metadata made when first asked for.

    Raises:
        ValueError: the weight does not store two of every four inputs of each output.
    """
    meta, t_meta = plan.derive("semi_structured", _metadata_of)
    if not meta.numel():
        raise ValueError(
            "expected two of every four inputs stored for every output for kernel 'semi_structured', got another "
            "mask, try pattern='2:4', or kernel = 'auto'"
        )
    return SemiStructuredIndex(*plan.kernel_index, meta, t_meta)


def _metadata_of(plan: Plan) -> tuple[Tensor, Tensor]:
    index, (rows, cols) = plan.kernel_index, plan.shape
    fits = rows % MULTIPLES[1] == 0 and cols % MULTIPLES[0] == 0
    meta = metadata(index.row_ptr, index.col, cols)
    t_meta = metadata(index.t_row_ptr, index.t_col, rows) if fits and meta is not None else None
    none = torch.empty(0, dtype=torch.int16, device=index.col.device)
    return none if meta is None else meta, none if t_meta is None else t_meta


# ---- torch's products -----------------------------------------------------------------------------------------------


def backend() -> str:
    """Which of torch's products this GPU has: "cusparselt", "cutlass", or "" for none."""
    gpu = gpu_here()
    if gpu is None or gpu.capability < (8, 0):
        return ""
    if gpu.capability[0] == 8:  # torch builds CUTLASS's for these alone; its operands need no compression
        return "cutlass"
    return "cusparselt" if torch.backends.cusparselt.is_available() else ""


def multiply(x: Tensor, packed: Tensor, meta: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias [tokens, rows] by CUTLASS, of W's values [rows, cols / 2] and metadata."""
    filled = _filled(x)
    if bias is None:
        y = torch._sparse_semi_structured_mm(packed, meta, filled.t())
    else:
        y = torch._sparse_semi_structured_addmm(bias, packed, meta, filled.t())
    return y.t()[: len(x)].contiguous()


def multiply_compressed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias [tokens, rows] by cuSPARSELt, of a dense W that is 2:4."""
    compressed = torch._cslt_compress(weight.contiguous())
    y = torch._cslt_sparse_mm(compressed, _filled(x).t(), bias=bias, transpose_result=True)
    return y[: len(x)].contiguous()


def _filled(x: Tensor) -> Tensor:
    """With zeros up to a multiple of `TOKENS` rows."""
    return F.pad(x, (0, 0, 0, -len(x) % TOKENS)).contiguous()


class _Linear(Product):
    """x is [batch, features]."""

    def forward(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: SemiStructuredIndex,
        problem: Problem,
        weight: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        rows, cols = problem.shape
        if not len(x):
            return x.new_empty(0, rows)
        if backend() == "cutlass":
            return multiply(x, values.reshape(-1)[: rows * cols // 2].view(rows, -1), index.meta, bias)
        return multiply_compressed(x, scatter(values, index, problem.shape), bias)

    def input_grad(
        self,
        dy: Tensor,
        values: Tensor,
        index: SemiStructuredIndex,
        problem: Problem,
        size: Sequence[int],
        weight: Tensor | None = None,
    ) -> Tensor:
        rows, cols = problem.shape
        if not len(dy) or not index.t_meta.numel():
            return dy @ scatter(values, index, problem.shape)
        if backend() == "cutlass":
            packed = values.reshape(-1).index_select(0, index.t_perm[: rows * cols // 2]).view(cols, -1)
            return multiply(dy, packed, index.t_meta)
        return multiply_compressed(dy, scatter(values, index, problem.shape).t())

    def weight_grad(
        self, dy: Tensor, x: Tensor, index: KernelIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        return DenseLinear().weight_grad(dy, x, index, block, problem, bias)


class SemiStructured(Kernel):
    """torch's 2:4 products; no device is offered them, since none was ever timed: `layer.kernel` names them."""

    name = "semi_structured"
    index_type = SemiStructuredIndex
    products: ClassVar = {"linear": _Linear()}

    def obstacle(self, device: str, dtype: torch.dtype, problem: Problem) -> str | None:
        """Why it cannot run for this problem on a type of device, or None."""
        if device != "cuda":
            return f"torch's 2:4 products run on CUDA, not on {device}"
        if dtype not in DTYPES:
            return f"2:4 products here compute float16 and bfloat16 (try torch.autocast), not {str(dtype)[6:]}"
        if problem.op != "linear":
            return "torch offers 2:4 products for linear layers, not for convolutions"
        if problem.block != (1, 1) or problem.bucket != STEPS:
            return "the weight does not store two of every four inputs (pattern '2:4')"
        (rows, cols), (height, width) = problem.shape, MULTIPLES
        if rows % height or cols % width:
            return f"2:4 products want multiples of {height} outputs and {width} inputs, not {rows} and {cols}"
        return None if backend() else "torch offers no 2:4 product on this GPU (CUTLASS's on sm_8x, else cuSPARSELt)"

    def predict(self, dtype: torch.dtype, problem: Problem) -> Prediction:
        """Nothing: what others measured reaches from 0.6 to 2 times the dense product."""
        return Prediction(0.0, False, "2:4 products were not measured here")

    def index(self, plan: Plan) -> SemiStructuredIndex:
        """The plan's index and the metadata."""
        return index_of(plan)


register(SemiStructured())
