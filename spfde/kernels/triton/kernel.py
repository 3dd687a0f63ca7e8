"""The kernel "triton": blocks on a GPU, or in Triton's interpreter. Its modules are imported when one of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from spfde.kernels import dense
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.gpu import Gpu, gpu_here
from spfde.kernels.memory_format import memory_format_of
from spfde.kernels.problem import Problem
from spfde.kernels.registry import Kernel, Prediction, Product, Programs, register
from spfde.kernels.scatter import scatter
from spfde.kernels.triton import model, why_not
from spfde.kernels.triton.candidates import launches_to_time
from spfde.kernels.triton.config import has_kernel
from spfde.kernels.triton.index import TileIndex, tile_index
from spfde.sparse.kernel_index import KernelIndex
from spfde.sparse.plan import Plan


class _Linear(Product):
    """Blocks that have kernels are multiplied as they are stored; any other weight dense, without its empty tiles."""

    fuses_epilogue = True

    def forward(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: TileIndex,
        problem: Problem,
        weight: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        from spfde.kernels.triton import spmm

        weights = _weights(values, index, problem, weight)
        return spmm.forward(x, weights, epilogue or Epilogue(bias), index, problem.shape[0])

    def input_grad(
        self,
        dy: Tensor,
        values: Tensor,
        index: TileIndex,
        problem: Problem,
        size: Sequence[int],
        weight: Tensor | None = None,
    ) -> Tensor:
        from spfde.kernels.triton import spmm

        return spmm.input_grad(dy, _weights(values, index, problem, weight), index, problem.shape[1])

    def weight_grad(
        self, dy: Tensor, x: Tensor, index: TileIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        if not has_kernel(tuple(block)):
            return dense.DenseLinear().weight_grad(dy, x, index, block, problem, bias)
        from spfde.kernels.triton import sddmm

        return sddmm.weight_grad(dy, x, index, block, bias)


class _Conv2d(Product):
    """Results have the memory format of what they are made of."""

    fuses_epilogue = True

    def forward(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: TileIndex,
        problem: Problem,
        weight: Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        from spfde.kernels.triton import conv2d

        y = conv2d.forward(x, values, epilogue or Epilogue(bias), index, problem.shape, problem.window)
        return y.contiguous(memory_format=memory_format_of(x))

    def input_grad(
        self,
        dy: Tensor,
        values: Tensor,
        index: TileIndex,
        problem: Problem,
        size: Sequence[int],
        weight: Tensor | None = None,
    ) -> Tensor:
        from spfde.kernels.triton import conv2d

        dx = conv2d.input_grad(dy, values, index, tuple(size[2:]), problem.shape, problem.window)
        return dx.contiguous(memory_format=memory_format_of(dy))

    def weight_grad(
        self, dy: Tensor, x: Tensor, index: TileIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        from spfde.kernels.triton import conv2d

        return conv2d.weight_grad(dy, x, index, block, problem.shape, problem.window, bias)


def _weights(values: Tensor, index: KernelIndex, problem: Problem, weight: Tensor | None) -> Tensor:
    """What the kernels multiply by: the stored blocks, or the dense weight where their size has no kernel."""
    if weight is not None or has_kernel(tuple(values.shape[1:])):
        return values if weight is None else weight
    return scatter(values, index, problem.shape)


class Triton(Kernel):
    """Triton kernels for blocks with sides of 16, 32, 64 or 128; for linear layers any weight if it is forced."""

    name, devices = "triton", ("cuda",)
    index_type = TileIndex
    products: ClassVar = {"linear": _Linear(), "conv2d": _Conv2d()}

    def obstacle(self, device: str, dtype: torch.dtype, problem: Problem) -> str | None:
        """Why it cannot run for this problem on a type of device, or None."""
        if dtype == torch.float64:
            return "it computes in float32 at most, the input is float64"
        return why_not(device) or self.hindrance(problem)

    def hindrance(self, problem: Problem) -> str | None:
        """Why it runs on no machine for this problem, None where it runs on some."""
        return None if problem.op == "linear" else model.hindrance(problem.block, problem.window)

    def predict(self, dtype: torch.dtype, problem: Problem) -> Prediction:
        """By a model of this GPU (see `spfde.kernels.triton.model`)."""
        gpu, reason = gpu_here(), model.hindrance(problem.block, problem.window)
        if reason is None and gpu is not None and gpu.capability < model.OLDEST:
            reason = f"compute capability {model.OLDEST[0]}.{model.OLDEST[1]} is the oldest they are tested for"
        if reason is not None or gpu is None:
            return Prediction(0.0, False, f"no sparse kernel here: {reason or 'no CUDA device'}")
        return model.predict(problem, dtype, gpu)

    def launches(self, plan: Plan, problem: Problem, dtype: torch.dtype, gpu: Gpu) -> dict[str, Programs]:
        """Those around the computed launch that the GPU can hold."""
        return launches_to_time(plan, problem, dtype, gpu)

    def index(self, plan: Plan) -> TileIndex:
        """The plan's index and the tiles of the weight in each direction."""
        return tile_index(plan)

    def extends_index(self, plan: Plan) -> bool:
        """Where blocks of this size have kernels."""
        return has_kernel(plan.block) and plan.window.groups == 1 and why_not("cuda") is None

    def multiplies_dense(self, block: Sequence[int]) -> bool:
        """Where blocks of this size have no kernel."""
        return not has_kernel(tuple(block))


register(Triton())
