"""conv_chain: sparse convolutions one behind the other in inference, each with bias, residual and activation.

The native core takes as many images as a vector has lanes through all of them before the next: what is between two
convolutions is never written to memory. float32 on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from spfde._native import native
from spfde.kernels.clock import timed
from spfde.kernels.memory_format import address, memory_format_of
from spfde.kernels.norm_act import ACTIVATIONS
from spfde.sparse.kernel_index import Window

FULL = 0.6  # share of the lanes in use below which layer by layer is faster
LARGEST = 2**24  # bytes of an activation of so many images, beyond which it would not stay in a cache
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}


@dataclass(frozen=True)
class ChainStep:
    """target = act(conv(source) + bias + residual): values by number, residual None for none.

    weights: [units, 1, 1] at `row_ptr` and `col` (see KernelIndex), float32 and without gaps as bias [outputs] is. act:
    of `ACTIVATIONS`.
    """

    source: int
    target: int
    residual: int | None
    window: Window
    row_ptr: Tensor
    col: Tensor
    weights: Tensor
    bias: Tensor | None
    act: str


class ConvChain:
    """Steps on values of shapes [channels, height, width], which reads the steps' tensors at every call."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], steps: Sequence[ChainStep]) -> None:
        self.shapes, self.steps = tuple(shapes), tuple(steps)  # which keep the tensors that the core reads
        self._native = native().ConvChain(list(self.shapes))
        for step in self.steps:
            window = step.window
            self._native.add(
                source=step.source, target=step.target, residual=-1 if step.residual is None else step.residual,
                kernel=window.kernel, stride=window.stride, pad=(window.padding[0], window.padding[2]),
                dilation=window.dilation, groups=window.groups, row_ptr=address(step.row_ptr),
                col=address(step.col), values=address(step.weights), bias=address(step.bias), act=_CODES[step.act],
            )  # fmt: skip

    @timed
    def __call__(self, inputs: Mapping[int, Tensor], outputs: Sequence[int]) -> list[Tensor]:
        """The values `outputs` [n, ...] made of the values `inputs`, float32, in the memory format of the first."""
        held = {value: x.contiguous(memory_format=memory_format_of(x)) for value, x in inputs.items()}
        first = next(iter(held.values()))
        batch, memory = len(first), memory_format_of(first)
        made = [
            first.new_empty(0).new_empty((batch, *self.shapes[v])).contiguous(memory_format=memory) for v in outputs
        ]
        native().conv_chain(
            self._native, batch,
            [(value, x.data_ptr(), memory_format_of(x) is torch.channels_last) for value, x in held.items()],
            [(value, y.data_ptr(), memory is torch.channels_last) for value, y in zip(outputs, made, strict=True)],
            torch.get_num_threads(),
        )  # fmt: skip
        return made


def pays(batch: int, shapes: Sequence[tuple[int, int, int]], threads: int) -> bool:
    """Whether a chain of values of these shapes fills lanes, threads and no more than a cache."""
    lanes = native().lanes()
    chunks = -(-batch // lanes)
    shared = chunks % threads == 0 or chunks >= 4 * threads
    return shared and batch >= FULL * chunks * lanes and near(shapes)


def near(shapes: Sequence[tuple[int, int, int]]) -> bool:
    """Whether values of these shapes, of as many images as there are lanes, stay in a cache."""
    return max(map(prod, shapes)) * native().lanes() * 4 <= LARGEST
