"""A permutation in front of or behind a sparse layer: soft while it is learned, then an index."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from spfde.sparse.pattern import Pattern

SIDES = ("inputs", "outputs")


def side_of(pattern: Pattern) -> str | None:
    """Which permutation of a weight gives the pattern other masks: of its "inputs", its "outputs", or None.

    The masks of single weights, of "fan-in" and of "channel" are the same in every order. Blocks of one column are the
    same in every order of the inputs, those of one row and n:m in every order of the outputs. Blocks of several rows
    and columns differ in both, of which the inputs are taken.
    """
    height, width = pattern.numbers
    if pattern.kind == "n:m" or (pattern.kind == "block" and width > 1):
        return "inputs"
    return "outputs" if pattern.kind == "block" and height > 1 else None


class Permutation(nn.Module):
    """W = S P (inputs) or P^T S (outputs) for the weight S that a sparse layer stores and a permutation P.

    order: int64 [n], P[i, order[i]] = 1: what S has at place i is input or output order[i] of W. soft: [n, n], doubly
    stochastic, in the place of P while it is learned; None once it is hard. It is a buffer with a gradient, no
    Parameter: `spfde.topology.Permutations` trains it, and no optimizer.
    """

    order: Tensor
    soft: Tensor | None

    def __init__(self, side: str, order: Tensor, soft: Tensor | None = None, images: bool = False) -> None:
        """images: what is permuted are the channels of [(batch,) channels, height, width], else the last dimension."""
        super().__init__()
        self.side, self.images = side, images
        self.stays = False  # the state_dict that is being loaded has a dense weight, and so no order
        self.register_buffer("order", order)
        self.register_buffer("soft", None)
        self.register_buffer("_rank", order.argsort(), persistent=False)
        if soft is not None:
            self.soft = soft.detach().requires_grad_()
        self._note()

    def _note(self) -> None:
        """Remembers the order, to tell when others write another one."""
        self._noted, self._version, self._kept = self.order, _version(self.order), self.order.detach().clone()

    def follow(self) -> bool:
        """Takes over an order that others wrote in place (a broadcast) or exchanged; whether it is another one.

        Raises:
            ValueError: it is no permutation (an average of buffers).
        """
        if self.order is self._noted and _version(self.order) == self._version:
            return False
        same = torch.equal(self._kept.to(self.order.device), self.order)
        if not same:
            problem = self.problem(self.order, None)
            if problem:
                raise ValueError(
                    f"{problem}, written by others, try AveragedModel without use_buffers, or load_state_dict"
                )
            self._rank = self.order.argsort()
        self._note()
        return not same

    @property
    def hard(self) -> bool:
        """Whether it is an index."""
        return self.soft is None

    def forward(self, x: Tensor, bias: Tensor | None, product: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """The layer's output for x: product(x, bias) is that of S."""
        dim = -3 if self.images else -1
        if self.side == "inputs":
            moved = self._mix(x, self.soft) if self.soft is not None else x.index_select(dim, self.order)
            return product(moved, bias)
        if self.soft is None:
            bias = None if bias is None else bias.index_select(0, self.order)
            return product(x, bias).index_select(dim, self._rank)
        y = self._mix(product(x, None), self.soft.mT)
        return y if bias is None else y + (bias.view(-1, 1, 1) if self.images else bias)

    def _mix(self, x: Tensor, matrix: Tensor) -> Tensor:
        matrix = matrix.to(x.dtype)
        return F.conv2d(x, matrix[:, :, None, None]) if self.images else F.linear(x, matrix)

    def of_weight(self, weight: Tensor) -> Tensor:
        """W of S, [outputs, inputs, ...]; of a bool mask while it is soft: the mask itself."""
        dim = SIDES[::-1].index(self.side)
        if self.soft is None:
            return weight.index_select(dim, self._rank)
        if weight.dtype == torch.bool:
            return weight
        matrix = self.soft.to(weight.dtype)
        matrix = matrix if dim else matrix.mT
        return torch.tensordot(weight, matrix, ([1], [0])).movedim(-1, 1) if dim else torch.tensordot(matrix, weight, 1)

    def of_stored(self, weight: Tensor) -> Tensor:
        """S of W: `of_weight` undone.

        Raises:
            ValueError: it is soft, and the weight no mask.
        """
        if self.soft is None:
            return weight.index_select(SIDES[::-1].index(self.side), self.order)
        if weight.dtype == torch.bool:
            return weight
        raise ValueError(
            "expected a permutation that is an index, got one that is still learned, through which a dense weight "
            "cannot be stored, try loading it before spfde.topology.Permutations"
        )

    def harden(self, order: Tensor) -> None:
        """Makes it the index `order` [n], a permutation of 0 to n - 1."""
        self.order.copy_(order)
        self._rank, self.soft = self.order.argsort(), None
        self._note()

    # ---- torch.nn.Module ------------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Permutation:
        soft, self.soft = self.soft, None
        super()._apply(fn, recurse)
        if soft is not None:
            self.soft = fn(soft.detach()).detach().requires_grad_()
        self._note()
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        stays, self.stays = self.stays, False
        if stays:
            return
        order, soft = state_dict.get(prefix + "order"), state_dict.get(prefix + "soft")
        problem = self.problem(order, soft)
        if problem:
            errors.append(f"{prefix.rstrip('.')}: {problem}")
            return
        if order is not None and soft is None:
            self.soft = None
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        self._rank = self.order.argsort()
        self._note()

    def problem(self, order: Any, soft: Any) -> str | None:
        """What is wrong with what is about to be loaded, or None."""
        n = self.order.numel()
        if order is not None and (
            tuple(order.shape) != (n,)
            or order.dtype != torch.int64
            or not torch.equal(order.sort().values, torch.arange(n, device=order.device))
        ):
            return f"expected order to be a permutation of {n} places (int64), got {order.dtype} {list(order.shape)}"
        if soft is not None and self.soft is None:
            return (
                "expected the state of a permutation that is an index, got one that is still learned, try "
                "spfde.topology.Permutations(model, ...) before loading"
            )
        return None

    def extra_repr(self) -> str:
        """What repr() shows."""
        return f"{self.side}, {self.order.numel()}, {'an index' if self.hard else 'soft'}"


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written in place, None where nobody counts."""
    return None if tensor.is_inference() else tensor._version
