"""The torch ops of a training step that multiply no weight: which, how much of each, and what they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spfde._modules import tensors
from spfde.tuning.device_profile import OpSeconds

# Products with a weight: layers count them. In a network they are all there is of these but for attention's.
PRODUCTS = (
    "aten::convolution", "aten::convolution_backward", "aten::addmm", "aten::mm", "spfde::spmm", "spfde::sddmm",
    "spfde::conv2d",
)  # fmt: skip
NORM, NORM_GRAD = "spfde::norm_act", "spfde::norm_act_grad"
STATISTICS = ("aten::lerp_", "aten::mul_", "aten::add_")  # what the registered norm_act leaves to torch, in this order
LAST = " channels_last"  # behind the name of an op on images in that memory format


class Op(NamedTuple):
    """One call of a torch op; see `device_profile.OpSeconds`. seconds: 0 where nobody measured."""

    name: str
    amount: int
    seconds: float = 0.0


class OpLog(TorchDispatchMode):
    """Notes every op that runs inside the block, forward and backward, but layers' products and views.

    clock: by which they are timed on a CPU, without the time of noting; None: they are not.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self._clock = clock or (lambda: 0.0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, start = func._schema.name, self._clock()  # type: ignore[attr-defined]
        result = func(*args, **(kwargs or {}))
        seconds = self._clock() - start
        if not name.startswith(PRODUCTS) and not _is_view(name, args, result):
            mark = LAST if any(map(is_last, (*tensors(args), *tensors(result)))) else ""
            self.ops.append(Op(name + mark, amount_of(name, args, result), seconds))
        return result


def eager(ops: Sequence[Op]) -> list[Op]:
    """The ops of a step that nobody looks at: there norm_act moves its statistics itself, in the same call."""
    kept: list[Op] = []
    due: list[str] = []
    for op in ops:
        if op.name == NORM_GRAD:  # torch makes gradients of its statistics, which nobody reads
            while kept and kept[-1].name == "aten::zeros":
                kept.pop()
        if due and op.name == due[0]:
            due.pop(0)
            continue
        due = list(STATISTICS) if op.name == NORM else []
        kept.append(op)
    return kept


def amount_of(name: str, args: Any, result: Any) -> int:
    """The bytes that an op reads and writes, or the FLOPs of a product of two activations."""
    if "attention" in name:
        query, key = next(tensors(args)), list(tensors(args))[1]
        if "backward" in name:  # its first tensor is the gradient, shaped like the query; five products, not two
            key = list(tensors(args))[2]
        return (5 if "backward" in name else 2) * 2 * query.numel() * key.shape[-2]
    if name in ("aten::bmm", "aten::baddbmm"):
        return 2 * result.numel() * list(tensors(args))[-2].shape[-1]
    held = {(t.data_ptr(), t.numel()): t.numel() * t.element_size() for t in (*tensors(args), *tensors(result))}
    return sum(held.values())


def _is_view(name: str, args: Any, result: Any) -> bool:
    if not isinstance(result, Tensor) or name.endswith("_"):
        return False
    mine = result.untyped_storage().data_ptr()
    return any(t.untyped_storage().data_ptr() == mine for t in tensors(args)) or prod(result.shape) == 0


def is_last(tensor: Tensor) -> bool:
    """Whether it holds images in channels_last memory, and in no other."""
    last = torch.channels_last
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous()


def summarised(ops: list[Op]) -> list[OpSeconds]:
    """Medians of timed ops: amounts within an octave are one point, at the median of both."""
    groups: dict[tuple[str, int], list[Op]] = {}
    for op in ops:
        groups.setdefault((op.name, op.amount.bit_length()), []).append(op)
    return [
        OpSeconds(name, round(median(op.amount for op in some)), median(op.seconds for op in some))
        for (name, _), some in groups.items()
    ]


def curve(ops: tuple[OpSeconds, ...], name: str) -> list[tuple[int, float]]:
    """(amount, seconds) of an op, ascending."""
    return sorted((op.amount, op.seconds) for op in ops if op.op == name)
