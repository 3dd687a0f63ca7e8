"""Which of a plan's stored blocks are trained, where others are frozen: those that a weight gradient is computed for.

A subset of the stored places is an index like any other: the trained blocks have a plan of their own, which the kernels
of the weight gradient read in place of the whole one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spfde.sparse.index import index_from_positions
from spfde.sparse.no_sync import nonzero
from spfde.sparse.plan import Plan, build_plan, written_into


class Live:
    """The trained blocks of a plan, through its moves.

    frozen: positions [n] (int64, ascending) of blocks that are constant; those that are not stored do not matter. held:
    the frozen slots. trained: the other live ones. plan: of the trained blocks alone, None where there are none.
    """

    held: Tensor
    trained: Tensor
    plan: Plan | None = None
    _constant: Tensor  # bool [capacity, 1, 1], true at the frozen slots
    _arranged: Tensor  # the same as the plan arranges values
    _units: Tensor  # where what `plan` arranges is along the first dimension of what the whole plan arranges

    def __init__(self, plan: Plan, frozen: Tensor) -> None:
        self.frozen = frozen
        self.follow(plan)

    def follow(self, plan: Plan) -> None:
        """Takes over where the blocks of the plan are now, in place wherever a tensor's shape stays."""
        positions, (capacity, height, _) = plan.positions, plan.values_shape
        is_frozen = torch.isin(positions, self.frozen)
        held, trained = nonzero(is_frozen), nonzero(~is_frozen)
        constant = torch.zeros(capacity, 1, 1, dtype=torch.bool, device=positions.device)
        constant[held] = True
        arranged = plan.ordered(constant.expand(plan.values_shape).contiguous())
        # Of single columns the stored weights come first, in order, in this plan as in the one of the trained blocks.
        units = trained if height > 1 else nonzero(~arranged.view(-1)[: plan.weights])
        now = {"held": held, "trained": trained, "_constant": constant, "_arranged": arranged, "_units": units}
        for name, tensor in now.items():
            setattr(self, name, written_into(getattr(self, name, None), tensor))
        new = _plan_at(plan, positions[trained]) if trained.numel() else None
        if self.plan is None or new is None:
            self.plan = new
        else:
            self.plan.update_(new)

    def hold(self, values: Tensor) -> Tensor:
        """The same values, of which the frozen ones have gradient 0."""
        return torch.where(self._constant, values.detach(), values)

    def cut(self, grad: Tensor) -> Tensor:
        """A gradient of values as the plan arranges them, 0 where they are frozen."""
        return grad.masked_fill(self._arranged, 0)

    def spread(self, part: Tensor) -> Tensor:
        """The gradient of all values as the plan arranges them, from that of the trained ones as `plan` does."""
        grad = part.new_zeros(self._arranged.shape)
        return grad.index_copy_(0, self._units, part[: self._units.numel()])

    def no_gradient(self, like: Tensor) -> Tensor:
        """The same where nothing is trained, in the precision and on the device of `like`."""
        return like.new_zeros(self._arranged.shape)


def _plan_at(plan: Plan, positions: Tensor) -> Plan:
    index = index_from_positions(positions, *plan.grid.shape, positions.numel())
    return build_plan(index, plan.shape, plan.window, plan.grid, positions=positions)
