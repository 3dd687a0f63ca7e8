"""The kernel "native": the C++ core, in float32 on a CPU.

Its convolutions read NCHW and channels_last memory alike; a result has the memory format of its input. Only memory with
gaps is copied first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from spfde._native import native
from spfde.kernels import channel
from spfde.kernels.dispatch import cost
from spfde.kernels.epilogue import Epilogue
from spfde.kernels.memory_format import address, memory_format_of
from spfde.kernels.native_linear import Linear, correlate, multiply, multiply_transposed
from spfde.kernels.norm_act import CODES, note_moved
from spfde.kernels.panel_order import NativeIndex, native_index
from spfde.kernels.problem import Problem
from spfde.kernels.registry import Composite, Gradients, Kernel, NormedConv2d, Prediction, Product, register
from spfde.sparse.kernel_index import KernelIndex, Window, slots
from spfde.sparse.plan import Plan


class _NormedConv2d(NormedConv2d):
    """For single weights in windows."""

    def applies(self, window: Window, block: tuple[int, int]) -> bool:
        return not window.linear and block == (1, 1)

    def forward(
        self,
        x: Tensor,
        values: Tensor,
        conv_bias: Tensor | None,
        index: KernelIndex,
        problem: Problem,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        act: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The statistics are taken of z while it is written."""
        memory, channels = memory_format_of(x), problem.shape[0]
        x = x.contiguous(memory_format=memory)
        z = torch.empty((len(x), channels, *problem.size), dtype=x.dtype, device=x.device, memory_format=memory)
        y = torch.empty_like(z)
        if training:
            mean, var = x.new_empty(channels), x.new_empty(channels)
        else:
            mean, var, running_mean, running_var = running_mean, running_var, None, None
        native().conv2d_norm_act(
            _plan(x.shape, problem.shape, problem.window), index.row_ptr.data_ptr(), index.col.data_ptr(),
            values.data_ptr(), address(conv_bias), x.data_ptr(), z.data_ptr(), memory is torch.channels_last,
            CODES[act], training, eps, momentum, address(weight), address(bias), address(residual), mean.data_ptr(),
            var.data_ptr(), address(running_mean), address(running_var), y.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        note_moved(running_mean, running_var)
        return z, y, mean, var

    def gradients(
        self,
        dy: Tensor,
        z: Tensor,
        y: Tensor | None,
        x: Tensor,
        values: Tensor,
        index: KernelIndex,
        problem: Problem,
        need_conv_bias: bool,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        training: bool,
        eps: float,
        act: str,
    ) -> tuple[Tensor | None, ...] | None:
        """Where one copy of dz is packed for both gradients: it is computed then, and never written to memory."""
        memory, x_memory = memory_format_of(z), memory_format_of(x)
        dy, x = dy.contiguous(memory_format=memory), x.contiguous(memory_format=x_memory)
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory)
        dvalues = x.new_empty(slots(index, values.shape[1:]), *values.shape[1:])
        dconv_bias = x.new_empty(problem.shape[0]) if need_conv_bias else None
        dresidual = None if y is None else torch.empty_like(z)
        dweight, dbias = torch.empty_like(mean), torch.empty_like(mean)
        done = native().conv2d_norm_act_grad(
            _plan(x.shape, problem.shape, problem.window), index.t_row_ptr.data_ptr(), index.t_col.data_ptr(),
            values.data_ptr(), index.t_perm.data_ptr(), dx.data_ptr(), len(dvalues), index.row_ptr.data_ptr(),
            index.col.data_ptr(), x.data_ptr(), x_memory is torch.channels_last, dvalues.data_ptr(),
            address(dconv_bias), memory is torch.channels_last, CODES[act], training, eps, address(weight),
            address(bias), mean.data_ptr(), var.data_ptr(), z.data_ptr(), address(y), dy.data_ptr(),
            address(dresidual), dweight.data_ptr(), dbias.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return (dx, dvalues, dconv_bias, dresidual, dweight, dbias) if done else None


class _Conv2d(Product):
    """A pointwise convolution is a linear layer over pixels where both of its activations have one memory format."""

    normed: ClassVar[NormedConv2d | None] = _NormedConv2d()

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
        memory = memory_format_of(x)
        x, last = x.contiguous(memory_format=memory), memory is torch.channels_last
        y = torch.empty((len(x), problem.shape[0], *problem.size), dtype=x.dtype, device=x.device, memory_format=memory)
        if problem.window.linear:
            multiply(x, values, bias, index, problem.shape, *_pixels(x, last), y)
            return y
        _, height, width = values.shape
        run, block = (native().conv2d, ()) if height == 1 else (native().conv2d_blocks, (height, width))
        plan = _plan(x.shape, problem.shape, problem.window)
        run(
            plan, *block, index.row_ptr.data_ptr(), index.col.data_ptr(),
            values.data_ptr(), 0 if bias is None else bias.data_ptr(), x.data_ptr(), y.data_ptr(), last, last,
            torch.get_num_threads(),
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
        memory = memory_format_of(dy)
        dy, last = dy.contiguous(memory_format=memory), memory is torch.channels_last
        dx = torch.empty(tuple(size), dtype=dy.dtype, device=dy.device, memory_format=memory)
        if problem.window.linear:
            multiply_transposed(dy, values, index, problem.shape, *_pixels(dy, last), dx)
            return dx
        plan = _plan(tuple(size), problem.shape, problem.window)
        if values.shape[1] == 1:
            native().conv2d_input_grad(
                plan, index.t_row_ptr.data_ptr(), index.t_col.data_ptr(), values.data_ptr(),
                index.t_perm.data_ptr(), dy.data_ptr(), dx.data_ptr(), last, last, torch.get_num_threads(),
            )  # fmt: skip
        else:
            native().conv2d_blocks_input_grad(
                plan, *values.shape[1:], index.row_ptr.data_ptr(), index.col.data_ptr(),
                values.data_ptr(), dy.data_ptr(), dx.data_ptr(), last, last, torch.get_num_threads(),
            )  # fmt: skip
        return dx

    def weight_grad(
        self, dy: Tensor, x: Tensor, index: KernelIndex, block: Sequence[int], problem: Problem, bias: bool
    ) -> tuple[Tensor, Tensor]:
        dy_memory, x_memory = memory_format_of(dy), memory_format_of(x)
        dy, x = dy.contiguous(memory_format=dy_memory), x.contiguous(memory_format=x_memory)
        if problem.window.linear and dy_memory is x_memory:
            pixels = _pixels(x, x_memory is torch.channels_last)
            return correlate(dy, x, index, block, problem.shape, *pixels, bias)
        dvalues, dbias = x.new_empty(slots(index, block), *block), x.new_empty(problem.shape[0] if bias else 0)
        run, cut = (native().conv2d_blocks_weight_grad, block) if block[0] > 1 else (native().conv2d_weight_grad, ())
        plan = _plan(x.shape, problem.shape, problem.window)
        run(
            plan, *cut, len(dvalues), index.row_ptr.data_ptr(), index.col.data_ptr(),
            dy.data_ptr(), x.data_ptr(), dy_memory is torch.channels_last, x_memory is torch.channels_last,
            dvalues.data_ptr(), dbias.data_ptr() if bias else 0, torch.get_num_threads(),
        )  # fmt: skip
        return dvalues, dbias

    def gradients(
        self,
        dy: Tensor,
        x: Tensor | None,
        values: Tensor,
        index: KernelIndex,
        problem: Problem,
        size: Sequence[int],
        needs: Sequence[bool],
        weight: Tensor | None = None,
    ) -> Gradients:
        """Those of x and of single weights together, from one copy of dy."""
        need_x, need_values, need_bias = needs
        if problem.window.linear or not (need_x and need_values and values.shape[1] == 1):
            return super().gradients(dy, x, values, index, problem, size, needs, weight)
        dy_memory, x_memory = memory_format_of(dy), memory_format_of(x)
        dy, x = dy.contiguous(memory_format=dy_memory), x.contiguous(memory_format=x_memory)
        last = dy_memory is torch.channels_last
        dx = torch.empty(tuple(size), dtype=dy.dtype, device=dy.device, memory_format=dy_memory)
        dvalues = x.new_empty(slots(index, values.shape[1:]), *values.shape[1:])
        dbias = x.new_empty(problem.shape[0]) if need_bias else None
        native().conv2d_gradients(
            _plan(tuple(size), problem.shape, problem.window), index.t_row_ptr.data_ptr(), index.t_col.data_ptr(),
            values.data_ptr(), index.t_perm.data_ptr(), dy.data_ptr(), dx.data_ptr(), last, last, len(dvalues),
            index.row_ptr.data_ptr(), index.col.data_ptr(), x.data_ptr(), x_memory is torch.channels_last,
            dvalues.data_ptr(), 0 if dbias is None else dbias.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return dx, dvalues, dbias


def _pixels(x: Tensor, last: bool) -> tuple[int, int]:
    """How many there are, and how many of them are neighbours in memory. last: it is channels_last."""
    image = x.shape[2] * x.shape[3]
    return len(x) * image, 1 if last else image


@lru_cache(maxsize=1024)
def _plan(size: tuple[int, ...], shape: tuple[int, ...], window: Window) -> Any:
    """What the native convolutions of one shape share, see `Conv2dPlan` in csrc/cpu/geometry.h. size: the input's."""
    batch, channels, height, width = size
    (out_h, out_w), padding = window.output_size(height, width), window.padding
    return native().Conv2dPlan(
        batch=batch, in_channels=channels, in_h=height, in_w=width, out_channels=shape[0], out_h=out_h, out_w=out_w,
        kernel_h=window.kernel[0], kernel_w=window.kernel[1], stride_h=window.stride[0], stride_w=window.stride[1],
        pad_top=padding[0], pad_left=padding[2], dilation_h=window.dilation[0], dilation_w=window.dilation[1],
        groups=window.groups,
    )  # fmt: skip


class Native(Kernel):
    """C++ kernels that skip zeros, for float32 in a CPU's memory."""

    name, devices = "native", ("cpu",)
    index_type = NativeIndex
    products: ClassVar = {"linear": Linear(), "conv2d": _Conv2d()}

    def obstacle(self, device: str, dtype: torch.dtype, problem: Problem) -> str | None:
        """Why it cannot run for this problem on a type of device, or None."""
        if dtype == torch.float64:
            return "it computes in float32, the input is float64"
        return (
            f"it takes CPU tensors, the input is on {device}" if device != "cpu" and not problem.whole_outputs else None
        )

    def index(self, plan: Plan) -> KernelIndex | NativeIndex:
        """The plan's index; of a linear layer or pointwise convolution with the orders in which weights are visited."""
        return native_index(plan) if self.extends_index(plan) else plan.kernel_index

    def extends_index(self, plan: Plan) -> bool:
        """For a linear layer or pointwise convolution of which not whole outputs are stored."""
        return plan.window.linear and plan.kept_rows is None and plan.index.col.is_cpu

    def composite(self, plan: Plan) -> Composite | None:
        """A smaller dense product where whole outputs are stored."""
        return None if plan.kept_rows is None else channel.compute

    def predict(self, dtype: torch.dtype, problem: Problem) -> Prediction:
        """By the cost model (see `spfde.kernels.dispatch.cost`)."""
        ratio = cost.ratio(problem, cost.constants(problem.op, native().isa()))
        masked = cost.masked(problem)
        reason = f"predicted {1 / ratio:.1f}x the dense product at density {problem.density:.2f}"
        return Prediction(masked / ratio, ratio < cost.TIE * masked, reason)


register(Native())
