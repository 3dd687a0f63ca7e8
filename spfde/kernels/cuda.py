"""The kernel "cuda": products on a GPU in CUDA C++, where the native core was built with nvcc.

Here for single weights, by `cuda_blocks` for weights in blocks: linear layers and convolutions, in float32, float16 and
bfloat16 with sums in float32. Pointwise convolutions of stride 1 are linear layers of their pixels. The weight gradient
is a sampled product at low density and above it torch's dense one, gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from spfde._native import load, native
from spfde.kernels import cuda_blocks
from spfde.kernels.cuda_arguments import conv2d_shape
from spfde.kernels.dense import DenseConv2d, DenseLinear
from spfde.kernels.dtypes import cast, name_of
from spfde.kernels.epilogue import PLAIN, Epilogue
from spfde.kernels.gpu import Gpu, gpu_at, gpu_here, queue_of
from spfde.kernels.memory_format import address, memory_format_of
from spfde.kernels.problem import Problem
from spfde.kernels.registry import Kernel, Prediction, Product, register
from spfde.kernels.triton.config import has_kernel
from spfde.kernels.triton.index import tile_index
from spfde.kernels.triton.model import SIZES_ONLY
from spfde.sparse.kernel_index import KernelIndex, slots
from spfde.sparse.plan import Plan

# A product waits for shared memory, which delivers 32 words a clock to a multiprocessor of 128 multiply-adds: one word
# for a multiply-add of a forward product or input gradient (half a one in 16 bits), two for one of a weight gradient.
BOUND = {"product": 1 / 4, "sampled": 1 / 8}
EFFICIENCY = 0.6  # of those bounds, to be measured
SAMPLED = 0.06  # density up to which the sampled product is expected to beat the dense one
ROWS = 128  # that a block of threads computes
MARGIN = 1.2  # predicted gain that is asked for while nothing has been measured
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RECTIFIERS = ("none", "relu", "relu6")  # in the order of Activation in csrc/include/spfde/epilogue.h


class _Ended(Product):
    """A product whose kernel ends with scale, shift, a residual of y's precision and a ReLU or ReLU6."""

    fuses_epilogue = True

    def fuses(self, epilogue: Epilogue, problem: Problem, dtype: torch.dtype, graph: bool) -> bool:
        """All but a GELU, a sum after the activation or in another precision, and what is written beside y."""
        if epilogue.act not in RECTIFIERS or (graph and epilogue.needs_pre_act):
            return False
        return epilogue.residual is None or (epilogue.residual.dtype == dtype and not epilogue.residual_after_act)


class _Linear(_Ended):
    """x is [batch, features] or, of a pointwise convolution, [batch, channels, height, width]."""

    def forward(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: KernelIndex,
        problem: Problem,
        weight: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        return _spmm(x, values, bias, (index.row_ptr, index.col, None), problem.shape[0], epilogue)

    def input_grad(
        self,
        dy: Tensor,
        values: Tensor,
        index: KernelIndex,
        problem: Problem,
        size: Sequence[int],
        weight: Tensor | None = None,
    ) -> Tensor:
        return _spmm(dy, values, None, (index.t_row_ptr, index.t_col, index.t_perm), problem.shape[1])

    def weight_grad(
        self, dy: Tensor, x: Tensor, index: KernelIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        dy, x, batch, positions = *_alike(dy, x), *_tokens(x)
        rows, cols = problem.shape[:2]
        if problem.density > SAMPLED:
            dy, x = (t if t.dim() == 2 else t.movedim(1, -1).reshape(-1, t.shape[1]) for t in (dy, x))
            return DenseLinear().weight_grad(dy, x, index, block, problem, bias)
        dvalues, dbias = x.new_empty(slots(index, block), *block), x.new_empty(rows if bias else 0)
        sizes, units = (rows, cols, batch, positions, len(dvalues)), gpu_at(x.device).units
        scratch = x.new_empty(native().cuda_sddmm_scratch(*sizes, units), dtype=torch.uint8)
        native().cuda_sddmm(
            *sizes, index.row_ptr.data_ptr(), index.col.data_ptr(), dy.data_ptr(), x.data_ptr(), dvalues.data_ptr(),
            dbias.data_ptr() if bias else 0, name_of(x.dtype), units, scratch.data_ptr(), *queue_of(x),
        )  # fmt: skip
        return dvalues, dbias


class _Conv2d(_Ended):
    """Results have the memory format of what they are made of."""

    def forward(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: KernelIndex,
        problem: Problem,
        weight: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        if problem.window.linear:
            return _LINEAR.forward(x, values, bias, index, problem, weight, epilogue)
        x, last, memory = _images(x)
        y = torch.empty((len(x), problem.shape[0], *problem.size), dtype=x.dtype, device=x.device, memory_format=memory)
        end = _readable(epilogue, memory)
        native().cuda_conv2d(
            conv2d_shape(x.shape, problem), index.row_ptr.data_ptr(), index.col.data_ptr(), values.data_ptr(),
            0 if bias is None else bias.data_ptr(), x.data_ptr(), y.data_ptr(), last, last, name_of(x.dtype),
            _fields(end), *queue_of(x),
        )  # fmt: skip
        return y

    def input_grad(
        self,
        dy: Tensor,
        values: Tensor,
        index: KernelIndex,
        problem: Problem,
        size: Sequence[int],
        weight: Tensor | None = None,
    ) -> Tensor:
        if problem.window.linear:
            return _LINEAR.input_grad(dy, values, index, problem, size)
        dy, last, memory = _images(dy)
        dx = torch.empty(tuple(size), dtype=dy.dtype, device=dy.device, memory_format=memory)
        native().cuda_conv2d_input_grad(
            conv2d_shape(size, problem), index.t_row_ptr.data_ptr(), index.t_col.data_ptr(), values.data_ptr(),
            index.t_perm.data_ptr(), dy.data_ptr(), dx.data_ptr(), last, last, name_of(dy.dtype), *queue_of(dy),
        )  # fmt: skip
        return dx

    def weight_grad(
        self, dy: Tensor, x: Tensor, index: KernelIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        if problem.window.linear:
            return _LINEAR.weight_grad(dy, x, index, block, problem, bias)
        if problem.density > SAMPLED:
            return DenseConv2d().weight_grad(dy, x, index, block, problem, bias)
        (dy, dy_last, _), (x, x_last, _) = _images(dy), _images(x)
        dvalues, dbias = x.new_empty(slots(index, block), *block), x.new_empty(problem.shape[0] if bias else 0)
        shape, units = conv2d_shape(x.shape, problem), gpu_at(x.device).units
        scratch = x.new_empty(native().cuda_conv2d_weight_grad_scratch(shape, len(dvalues), units), dtype=torch.uint8)
        native().cuda_conv2d_weight_grad(
            shape, len(dvalues), index.row_ptr.data_ptr(), index.col.data_ptr(), dy.data_ptr(), x.data_ptr(), dy_last,
            x_last, dvalues.data_ptr(), dbias.data_ptr() if bias else 0, name_of(x.dtype), units, scratch.data_ptr(),
            *queue_of(x),
        )  # fmt: skip
        return dvalues, dbias


class _ByPattern(Product):
    """One product for single weights, another one for blocks."""

    def __init__(self, single: Product, blocks: Product) -> None:
        self.single, self.blocks = single, blocks

    fuses_epilogue = True

    def _of(self, problem: Problem) -> Product:
        return self.single if problem.block == (1, 1) else self.blocks

    def fuses(self, epilogue: Epilogue, problem: Problem, dtype: torch.dtype, graph: bool) -> bool:
        """As the product of the pattern does."""
        return self._of(problem).fuses(epilogue, problem, dtype, graph)

    def forward(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: KernelIndex,
        problem: Problem,
        weight: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        return self._of(problem).forward(x, values, bias, index, problem, weight, epilogue)

    def input_grad(
        self,
        dy: Tensor,
        values: Tensor,
        index: KernelIndex,
        problem: Problem,
        size: Sequence[int],
        weight: Tensor | None = None,
    ) -> Tensor:
        return self._of(problem).input_grad(dy, values, index, problem, size)

    def weight_grad(
        self, dy: Tensor, x: Tensor, index: KernelIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        return self._of(problem).weight_grad(dy, x, index, block, problem, bias)


_LINEAR = _Linear()


def _images(x: Tensor) -> tuple[Tensor, bool, torch.memory_format]:
    """Images without gaps in memory, whether they are channels_last, and their memory format."""
    memory = memory_format_of(x)
    return x.contiguous(memory_format=memory), memory is torch.channels_last, memory


def _readable(epilogue: Epilogue | None, memory: torch.memory_format) -> Epilogue:
    """As the kernels read it: vectors in float32, a residual in the memory format of y."""
    if epilogue is None:
        return PLAIN
    rest, vectors = epilogue.residual, (cast(v, torch.float32) for v in (epilogue.bias, epilogue.scale))
    rest = None if rest is None else rest.contiguous(memory_format=memory)
    return Epilogue(*vectors, rest, epilogue.act)


def _fields(end: Epilogue) -> list[int]:
    """An `Epilogue` of csrc/include/spfde/epilogue.h."""
    return [*map(address, (end.scale, end.bias, end.residual)), RECTIFIERS.index(end.act)]


def _spmm(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: tuple[Tensor, Tensor, Tensor | None],
    rows: int,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """Y of a weight [rows, columns] by (row_ptr, col, perm); in the memory format of x."""
    memory = memory_format_of(x) if x.dim() == 4 else torch.contiguous_format
    x = x.contiguous(memory_format=memory)
    y = torch.empty((len(x), rows, *x.shape[2:]), dtype=x.dtype, device=x.device, memory_format=memory)
    (batch, positions), (row_ptr, col, perm), end = _tokens(x), index, _readable(epilogue, memory)
    native().cuda_spmm(
        rows, x.shape[1], batch, positions, row_ptr.data_ptr(), col.data_ptr(), values.data_ptr(),
        0 if perm is None else perm.data_ptr(), 0 if bias is None else bias.data_ptr(), x.data_ptr(), y.data_ptr(),
        name_of(x.dtype), _fields(end), *queue_of(x),
    )  # fmt: skip
    return y


def _alike(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the memory format of x."""
    memory = memory_format_of(x) if x.dim() == 4 else torch.contiguous_format
    return dy.contiguous(memory_format=memory), x.contiguous(memory_format=memory)


def _tokens(x: Tensor) -> tuple[int, int]:
    """How many tokens there are, and how many of them lie side by side for each feature."""
    if x.dim() == 2:
        return len(x), 1
    pixels = x.shape[2] * x.shape[3]
    return len(x) * pixels, pixels if memory_format_of(x) is torch.contiguous_format else 1


def built_for(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code of these CMake architectures ("80-real", "121-virtual", "90") runs on a GPU of this capability."""
    for each in architectures:
        number, _, kind = each.partition("-")
        major, minor = int(number[:-1]), int(number[-1])
        if kind != "virtual" and major == capability[0] and minor <= capability[1]:
            return True
        if kind != "real" and (major, minor) <= capability:
            return True
    return False


def absence() -> str | None:
    """Why there are no CUDA C++ kernels for this GPU, or None."""
    core = load()
    if isinstance(core, ImportError) or not core.cuda_archs():
        return "spfde was built without nvcc, so without CUDA C++ kernels"
    gpu = gpu_here()
    if gpu is not None and not built_for(core.cuda_archs(), gpu.capability):
        built, wanted = ", ".join(core.cuda_archs()), "{}{}".format(*gpu.capability)
        return f"CUDA C++ kernels were built for {built}, not for sm_{wanted}: build with CUDAARCHS={wanted}"
    return None


class Cuda(Kernel):
    """CUDA C++ kernels for single weights (patterns "unstructured" and "fan-in") and for blocks."""

    name, devices = "cuda", ("cuda",)
    products: ClassVar = {
        "linear": _ByPattern(_LINEAR, cuda_blocks.BlockLinear()),
        "conv2d": _ByPattern(_Conv2d(), cuda_blocks.BlockConv2d()),
    }

    def obstacle(self, device: str, dtype: torch.dtype, problem: Problem) -> str | None:
        """Why it cannot run for this problem on a type of device, or None."""
        if device != "cuda":
            return f"CUDA C++ kernels do not run on {device}"
        if dtype not in DTYPES:
            return f"CUDA C++ kernels compute float32, float16 and bfloat16, not {name_of(dtype)}"
        if reason := self.hindrance(problem) or (problem.block != (1, 1) and cuda_blocks.too_old(gpu_here())):
            return f"CUDA C++ kernels: {reason}"
        return absence()

    def hindrance(self, problem: Problem) -> str | None:
        """Why it runs on no machine for this problem, None where it runs on some."""
        return None if problem.block == (1, 1) or has_kernel(problem.block) else SIZES_ONLY

    def predict(self, dtype: torch.dtype, problem: Problem) -> Prediction:
        """By the bounds of shared memory, for blocks by what is predicted for the Triton kernels.

        float32 is compared with TF32: a choice must not hang on a flag.
        """
        gpu = gpu_here()
        if gpu is None:
            return Prediction(0.0, False, "no CUDA device")
        if problem.block != (1, 1):
            return cuda_blocks.predict(problem, dtype, gpu)
        rows = problem.shape[0] // problem.window.groups  # a launch for each group, ROWS at a time
        gain = predicted_gain(dtype, problem.density, gpu) * min(1, rows / ROWS)
        reason = f"predicted {gain:.1f}x the masked dense product at density {problem.density:.2f}, not measured"
        return Prediction(gain, gain >= MARGIN, reason)

    def index(self, plan: Plan) -> KernelIndex:
        """The plan's index, for blocks that have kernels with the tiles of the weight in each direction."""
        return tile_index(plan) if has_kernel(plan.block) else plan.kernel_index

    def extends_index(self, plan: Plan) -> bool:
        """Where blocks of this size have kernels and these were built."""
        return has_kernel(plan.block) and absence() is None


def predicted_gain(dtype: torch.dtype, density: float, gpu: Gpu) -> float:
    """Time of the dense forward + backward over that of the kernels, both without what memory and launches cost."""
    dense = 1 / gpu.rate(dtype)
    words = 1 if dtype == torch.float32 else 2
    product = density / (gpu.simt * words * BOUND["product"] * EFFICIENCY)
    sampled = density / (gpu.simt * words * BOUND["sampled"] * EFFICIENCY)
    return 3 * dense / (2 * product + (sampled if density <= SAMPLED else dense))


register(Cuda())
