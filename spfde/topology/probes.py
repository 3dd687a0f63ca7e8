"""The dense weight gradient of one step, for growth: in slabs of rows, from what its backward passes leave behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from spfde._ranks import Ranks
from spfde.nn import SparseLayer
from spfde.sparse import no_sync
from spfde.topology import standing_aside
from spfde.topology.gradients import dense_gradient, factors, placed, stored, wide, without
from spfde.topology.optimizer_state import optimizers
from spfde.topology.steps import taken

_armed: WeakSet[GradientProbes] = WeakSet()


def _look(optimizer: Any, args: Any, kwargs: Any) -> None:
    for probes in list(_armed):
        probes.look(optimizer)


register_optimizer_step_pre_hook(_look)

# Weights in a slab: large enough for a matrix product to run well, small beside any model.
SLAB = 1 << 20
# Of a gathered gradient, the part that what was seen may leave unexplained: ranks may reduce in half precision.
SHARE_UNSEEN = 1e-2


class GradientProbe:
    """Collects what the dense weight gradient of one layer is made of, over all backward passes of a step.

    It keeps the factors dY and X while they are smaller than the dense weight, else their product, so an armed step
    needs at most one dense gradient per layer and mostly far less. A pass counts once it has added to `values.grad`,
    as long as that is not set to zero: what `autograd.grad` or a pass before zero_grad did is no part of the step.
    `surgery` tells, where several passes ran, that the step saw some other mixture of them.

    What `fully_shard` differentiates is another tensor than the layer's Parameter, so that nothing tells which passes
    added to its gradient: all count, and `check_sum` tells whether that was right.

    optimizer: what takes the steps; passes after its next one belong to another step. None: all count.
    """

    def __init__(self, layer: SparseLayer, ranks: Ranks | None = None, optimizer: Any = None) -> None:
        self.layer, self.ranks = layer, Ranks() if ranks is None else ranks
        self.optimizers = optimizers(optimizer)
        self._steps = taken(self.optimizers)
        self._factors: list[tuple[Tensor, Tensor]] = []
        self._sum: Tensor | None = None
        self._pending: list[tuple[Tensor, Tensor | None]] = []  # of a pass that has not added to `values.grad` yet
        self._pass: int | None = None
        self._grad: tuple[Tensor, int] | None = None  # `values.grad` and its version after the last pass
        self._left: Tensor | None = None  # what was in it
        self._passes = 0
        self.surgery: Tensor | None = None
        self.sharded, self._values = hasattr(layer.values, "device_mesh"), layer.values
        self._decayed: Tensor | None = None  # the shared out values that the step saw
        self._handle = layer.values.register_post_accumulate_grad_hook(self._accumulated)

    def close(self) -> None:
        """Follows the layer's backward passes no longer."""
        self._handle.remove()

    def __call__(self, dy: Tensor, x: Tensor | None = None) -> None:
        """One more backward pass. dy: gradient of the output for input x, or that of the dense weight itself."""
        now = torch._C._current_graph_task_id()
        if self.sharded:
            if taken(self.optimizers) == self._steps:
                self._pending = [(dy.detach(), x)]
                self._take()
            return
        if now != self._pass:
            self._pass, self._pending = now, []
            if self._was_zeroed():
                self._factors, self._sum = [], None
        self._pending.append((dy.detach(), x))
        if now == -1:  # outside of a backward pass: shown by hand
            self._take()

    def _accumulated(self, values: Tensor) -> None:
        """The pass has added to `values.grad`."""
        this_pass = self._pass == torch._C._current_graph_task_id()
        if self._pending and this_pass and taken(self.optimizers) == self._steps:
            self._take()
            self._passes += 1
        self._pending = []
        self._grad = None if values.grad is None else (values.grad, values.grad._version)
        self._left = None if values.grad is None else values.grad.detach().clone()

    def _was_zeroed(self) -> bool:
        """Whether `values.grad` lost what the passes so far added."""
        grad = self.layer.values.grad
        if grad is None or self._grad is None:
            return grad is None
        same = grad is self._grad[0] and grad._version == self._grad[1]
        if same and (no_sync.is_async(grad) or not bool(self._left.any())):
            return False
        return not bool(grad.any())  # `.data` writes past the count

    @torch.no_grad()
    def look(self) -> None:
        """The optimizer steps now: is what it sees what the passes left, but scaled, clipped or with decay added?"""
        if self.sharded:
            self._decayed = self._values.detach().clone()
            return
        grad, left, values = self.layer.values.grad, self._left, self.layer.values
        if self._passes < 2 or grad is None or left is None or grad.shape != left.shape or self.ranks.count > 1:
            return
        seen, left, values = (tensor.flatten().double() for tensor in (grad, left, values))
        clipped = ((seen * left >= 0) & (seen.abs() <= left.abs())).all()
        rest = without(without(seen, left), without(values, left))
        self.surgery = ~clipped & (rest.norm() > 1e-3 * seen.norm())  # False where one is not finite

    def _take(self) -> None:
        for dy, x in self._pending:
            if x is None:
                self._sum = wide(dy) if self._sum is None else self._sum + wide(dy)
                continue
            self._factors.append(factors(self.layer, dy, x))
            if sum(dy.numel() + x.numel() for dy, x in self._factors) > prod(self.layer.shape):
                self.multiply()
        self._pending = []

    @property
    def seen(self) -> bool:
        """Whether a backward pass came by."""
        return bool(self._factors) or self._sum is not None

    def multiply(self) -> None:
        """Replaces the factors by their product, the dense gradient of this rank."""
        if self._factors:
            slabs = [self._slab(start, stop) for start, stop in self._spans()]
            self._factors, self._sum = [], torch.cat(slabs)

    def slabs(self) -> Iterator[tuple[int, Tensor]]:
        """(position of its first block, blocks [n, R, C] of the gradient), in order, averaged over ranks.

        Every rank must walk through it: each slab is one all-reduce.
        """
        grid = self.layer.grid
        for start, stop in self._spans():
            slab = self._slab(start, stop)
            slab = self.ranks.average(slab)
            yield start // grid.block[0] * grid.shape[1], replace(grid, outputs=stop - start).cut(slab)

    def magnitudes(self) -> Iterator[tuple[int, Tensor]]:
        """(position of its first block, sum of |gradient| over each block), as `slabs`."""
        for first, blocks in self.slabs():
            yield first, blocks.abs().sum((1, 2))

    def check_sum(self, name: str) -> None:
        """Refuses a stored gradient that is not what the passes that were seen add up to, scaled or with decay.

        Every rank must call it, with the whole gradient there.

        Raises:
            ValueError: passes did not reach it, or others did.
        """
        layer, positions, grad = self.layer, self.layer.positions(), self.layer.values.grad
        if grad is None:
            return
        found = layer.values.new_zeros(layer.nnz, *layer.grid.block)
        for first, blocks in self.slabs():
            found = found + placed(blocks, positions - first)
        used, found = grad[: layer.nnz].flatten().double(), found.flatten().double()
        rest = without(used, found)
        if self._decayed is not None:
            rest = without(rest, without(self._decayed.full_tensor()[: layer.nnz].flatten().double(), found))
        if rest.norm() > SHARE_UNSEEN * used.norm():
            raise ValueError(
                f"expected the gradient of {name!r} to be the sum of this step's backward passes, got another one "
                "under fully_shard (a pass that was zeroed or never added, gradient surgery), try backward passes "
                "that all count in a step before an update, or SET"
            )

    def scale(self) -> Tensor:
        """What the gradient that was seen must be multiplied by to be what the optimizer step sees: [] float64.

        It differs under GradScaler, averaging over ranks and clipping; 1 where the stored weights do not tell.
        """
        layer = self.layer
        positions, grad, live = layer.positions(), layer.values.grad, layer.plan.live
        if live is not None:  # what is frozen has no gradient to compare
            positions = positions[live.trained]
        used, found = layer.values.new_zeros(2, dtype=torch.float64)
        for first, blocks in self.slabs():
            found = found + stored(blocks, positions - first).abs().sum()
        if grad is not None:
            used = used + grad[: layer.nnz].abs().sum()
        return torch.where((used != 0) & (found != 0), used / found, 1.0)

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Rows [start, stop) of the slabs: whole blocks, whole groups of a grouped convolution."""
        rows, groups = self.layer.shape[0], self.layer.window.groups
        unit = self.layer.grid.block[0] if groups == 1 else rows // groups
        step = max(1, SLAB // max(1, unit * prod(self.layer.shape[1:]))) * unit
        for start in range(0, rows, step):
            yield start, min(start + step, rows)

    def _slab(self, start: int, stop: int) -> Tensor:
        parts = [] if self._sum is None else [self._sum[start:stop]]
        parts += [dense_gradient(self.layer, dy, x, start, stop) for dy, x in self._factors]
        if not parts:
            values = self.layer.values
            return values.new_zeros(stop - start, *self.layer.shape[1:], dtype=wide(values).dtype)
        return sum(parts[1:], parts[0])


class GradientProbes:
    """Probes on the layers of an armed step; none on any other, so that other steps pay nothing.

    A copy of a topology is armed as its original was, with nothing seen yet; a copy of a model has no probes.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.of: dict[str, GradientProbe] = {}
        self.ranks = Ranks() if ranks is None else ranks

    def arm(self, layers: Mapping[str, SparseLayer], optimizer: Any = None) -> None:
        """Puts a probe on each of these layers; what was seen before is forgotten."""
        self.disarm()
        self.of = {name: GradientProbe(layer, self.ranks, optimizer) for name, layer in layers.items()}
        _armed.add(self)
        if self.of:
            standing_aside.watch(self)
        for probe in self.of.values():
            probe.layer._grad_probe = probe

    def disarm(self) -> None:
        """Takes all probes away."""
        for probe in self.of.values():
            probe.layer._grad_probe = None
            probe.close()
        self.of = {}
        standing_aside.unwatch(self)

    def seen(self, layers: Mapping[str, SparseLayer]) -> dict[str, SparseLayer]:
        """Those layers whose dense gradient was seen, on any rank.

        Raises:
            ValueError: nothing is armed, or a layer has a gradient that came about unseen, or not by adding passes up.
        """
        if layers and not self.of:
            raise ValueError(
                "expected an update to follow backward passes that were watched, got none, try step() in its place, or "
                "arm() before the backward pass"
            )
        armed = {name: layer for name, layer in layers.items() if name in self.of}
        for name, layer in armed.items():
            if not self.of[name].seen and layer.values.grad is not None and bool(layer.values.grad.any()):
                raise ValueError(
                    f"expected the backward pass of {name!r} to be watched, got a gradient from elsewhere (a compiled "
                    f"model? autograd.grad?), try loss.backward() through the model itself, uncompiled, while "
                    f"topology.armed is true"
                )
        self._check_mixtures(list(armed))
        flags = self.ranks.agree([self.of[name].seen for name in armed], any_rank=True)
        seen = {name: layer for (name, layer), there in zip(armed.items(), flags, strict=True) if there}
        for name in seen:
            if self.of[name].sharded:
                self.of[name].check_sum(name)
        return seen

    def look(self, optimizer: Any) -> None:
        """An optimizer steps now."""
        for probe in self.of.values():
            if any(one is optimizer for one in probe.optimizers):
                probe.look()

    def _check_mixtures(self, names: list[str]) -> None:
        told = {name: self.of[name].surgery for name in names if self.of[name].surgery is not None}
        for name, surgery in zip(told, no_sync.to_host(list(told.values())), strict=True):
            if surgery:
                raise ValueError(
                    f"expected the optimizer to see the sum of the backward passes of {name!r}, scaled or clipped, got "
                    "another mixture (gradient surgery, or a gradient that was put back), whose part of the weights "
                    "that are not stored is not known, try one backward pass of the mixed loss, or SET"
                )

    def __getstate__(self) -> dict[str, Any]:
        held = {name: probe.layer for name, probe in self.of.items()}
        probe = next(iter(self.of.values()), None)
        return {"layers": held, "ranks": self.ranks, "optimizers": [] if probe is None else probe.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.of, self.ranks = {}, state["ranks"]
        self.arm(state["layers"], state["optimizers"])


def finite_gradients(optimizer: Optimizer, ranks: Ranks) -> bool:
    """Whether every gradient that the optimizer sees is finite, on all ranks: GradScaler skips a step otherwise."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    parts = [grad.to_local() if hasattr(grad, "device_mesh") else grad for grad in grads]
    return ranks.agree([all(no_sync.to_host([torch.isfinite(grad).all() for grad in parts]))], any_rank=False)[0]
