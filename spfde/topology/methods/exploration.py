"""Weights that get a gradient but take no part in the forward pass: Top-KAST's exploration set of one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from spfde.kernels.conv2d import compute_weight_grad
from spfde.kernels.dispatch import rule as dispatch
from spfde.kernels.sddmm import compute
from spfde.kernels.tiled import units_for
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
        self.layer._probe = self
        self._handle = self.layer.values.register_hook(self._add)

    def detach(self) -> None:
        """Stops following them."""
        self.layer._probe = None
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
            self.plan.become(plan)

    @property
    def slots(self) -> slice:
        """Where the explored blocks are in `values`."""
        return slice(self.layer.nnz, self.layer.nnz + self.positions.numel())

    def __call__(self, dy: Tensor, x: Tensor | None = None) -> None:
        """One backward pass. dy: gradient of the output for input x, or that of the dense weight itself."""
        with torch.no_grad():
            dtype = self.layer.values.dtype
            dy = dy.detach().to(dtype)
            grad = self.layer.grid.cut(dy)[self.positions] if x is None else self._product(dy, x.to(dtype))
            self.grad = grad if self.grad is None else self.grad + grad

    def _product(self, dy: Tensor, x: Tensor) -> Tensor:
        plan, layer = self.plan, self.layer
        leaf = torch.zeros(self.positions.numel(), *layer.grid.block, dtype=x.dtype, device=x.device)
        with torch.enable_grad():
            arranged = plan.arrange(leaf.requires_grad_())
        block = arranged.shape[1:]
        if len(layer.shape) == 2:
            dy, x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
            kernel = dispatch.linear("auto", x, layer.shape[0], plan.multiplied, plan.block).kernel
            grad = compute(dy, x, units_for(plan, kernel), block, False, kernel)[0]
        else:
            dy, x = (t.unsqueeze(0) if t.dim() == 3 else t for t in (dy, x))
            kernel = dispatch.convolution("auto", x, layer.shape, layer.window, plan.multiplied, plan.block).kernel
            kernel = "dense" if kernel == "reference" else kernel
            grad = compute_weight_grad(dy, x, plan.units, block, layer.shape, layer.window, False, kernel)[0]
        return grad if arranged is leaf else torch.autograd.grad(arranged, leaf, grad)[0]

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
