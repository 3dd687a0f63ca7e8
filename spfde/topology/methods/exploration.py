"""Weights that get a gradient but take no part in the forward pass: Top-KAST's exploration set of one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from spfde.kernels.call import weight_gradient
from spfde.nn import SparseLayer
from spfde.sparse.index import index_from_positions
from spfde.sparse.plan import Plan, build_plan


class Exploration:
    """The blocks at `positions` (ascending) live in the slots of `values` after the stored ones, which no kernel reads.

    Their gradient is computed at these positions only, in the layer's own backward, and added before the gradient
    reaches `values.grad`, so that averaging over ranks, clipping, scaling and the optimizer treat all slots alike.
    penalty: of the L2 term, times w on stored blocks and times w / density on explored ones.
    """

    def __init__(self, layer: SparseLayer, positions: Tensor, penalty: float) -> None:
        self.layer, self.penalty = layer, penalty
        self.grad: Tensor | None = None
        self.plan: Plan | None = None
        self.place(positions)
        self.attach()

    def attach(self) -> None:
        """Follows the layer's backward passes."""
        self.layer._grad_probe = self
        self._handle = self.layer.values.register_hook(self._add)

    def detach(self) -> None:
        """Stops following them."""
        self.layer._grad_probe = None
        self._handle.remove()

    def place(self, positions: Tensor) -> None:
        """Changes the explored positions."""
        layer = self.layer
        self.positions = positions
        index = index_from_positions(positions, *layer.grid.shape, positions.numel())
        plan = build_plan(index, layer.shape, layer.window, layer.grid, positions=positions)
        if self.plan is None:
            self.plan = plan
        else:  # whatever reads its tensors, a CUDA graph too, reads the new positions
            self.plan.update_(plan)

    @property
    def slots(self) -> slice:
        """Where the explored blocks are in `values`."""
        return slice(self.layer.nnz, self.layer.nnz + self.positions.numel())

    def __call__(self, dy: Tensor, x: Tensor | None = None) -> None:
        """One backward pass. dy: gradient of the output for input x, or that of the dense weight itself."""
        with torch.no_grad():
            dtype = self.layer.values.dtype
            dy = dy.detach().to(dtype)
            grad = (
                self.layer.grid.cut(dy)[self.positions]
                if x is None
                else weight_gradient(dy, x.to(dtype), self.plan, self.layer.dispatch_key)
            )
            self.grad = grad if self.grad is None else self.grad + grad

    def _add(self, grad: Tensor) -> Tensor:
        """The gradient of all slots of `values`."""
        layer, found = self.layer, self.grad
        if found is None:
            raise ValueError(
                "expected Top-KAST to follow this backward pass, got a gradient from elsewhere (a compiled model?), "
                "try the model itself, uncompiled"
            )
        self.grad = None
        grad, values = grad.clone(), layer.values.detach()
        grad[self.slots] += found
        if self.penalty:
            density = layer.nnz / max(1, layer.grid.size)
            grad[: layer.nnz] += self.penalty * values[: layer.nnz]
            grad[self.slots] += self.penalty / max(density, 1e-12) * values[self.slots]
        return grad

    def __getstate__(self) -> dict:
        return {"layer": self.layer, "positions": self.positions, "penalty": self.penalty}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)
