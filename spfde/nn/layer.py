"""What every sparse layer shares: values, index, plan, kernel choice, and how its topology changes."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from spfde._modules import inside_a_forward
from spfde.kernels.dispatch import rule
from spfde.kernels.dispatch.in_use import use
from spfde.kernels.dispatch.table import Table
from spfde.kernels.problem import KernelChoice, problem_of
from spfde.kernels.scatter import dense_weight
from spfde.nn.loading import check_loaded, index_from_dense
from spfde.sparse.index import Index, index_from_positions, permute
from spfde.sparse.kernel_index import ONE_TAP, Window
from spfde.sparse.pattern import Pattern
from spfde.sparse.plan import Plan, build_plan


class SparseLayer(nn.Module, ABC):
    """A layer whose weight is stored as `values` [capacity, R, C] and an index; base of SparseLinear and SparseConv2d.

    The first `nnz` slots of `values` are live, the rest hold 0 and get gradient 0. A slot is one block of the pattern:
    R outputs x C inputs, a single weight unless the pattern is "block:RxC" or "channel" (see `spfde.sparse.pattern`).
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    row_ptr: Tensor
    col: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        pattern: str,
        window: Window = ONE_TAP,
        positions: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.pattern = Pattern.parse(pattern)
        self.shape = weight.shape
        self.window = window
        self.grid = self.pattern.grid(tuple(weight.shape), window.groups)
        if positions is None:
            mask = weight.detach() != 0 if mask is None else mask
            if mask.shape != weight.shape or mask.dtype != torch.bool:
                got = f"{mask.dtype} {list(mask.shape)}"
                raise ValueError(f"expected mask to be bool {list(weight.shape)}, got {got}, try mask.bool()")
            positions = self.pattern.positions(mask.to(weight.device), self.grid)
        index = index_from_positions(positions, *self.grid.shape, positions.numel())
        self.values = nn.Parameter(self.grid.cut(weight.detach())[positions], weight.requires_grad)
        self.register_parameter("bias", bias)
        self.register_buffer("row_ptr", index.row_ptr)
        self.register_buffer("col", index.col)
        self._grad_probe: Callable[..., None] | None = None  # shown what the dense weight gradient is made of
        self._kernel = self._dispatch_key = "auto"
        self._table: Table | None = None
        self._last_input: tuple[str, torch.dtype, tuple[int, ...]] | None = None
        self._weight_taken = False
        self._plan: Plan | None = None
        self._build_plan()

    def _build_plan(self, positions: Tensor | None = None) -> None:
        if self.row_ptr.is_meta and positions is None:  # it cannot be asked where the blocks are
            self._plan = None
            return
        index, whole, before = Index(self.row_ptr, self.col), self.pattern.kind == "channel", self._plan
        with torch.inference_mode(False):  # it outlives the mode it is made in
            plan = build_plan(index, self.shape, self.window, self.grid, whole, positions)
            if before is not None and before.index.row_ptr is self.row_ptr and before.index.col is self.col:
                before.update_(plan)
            else:
                self._last_input, self._weight_taken = self._last(), self.weight_taken
                self._plan = plan
            self._plan.pattern = self.pattern
            self._plan.publish()

    @property
    def plan(self) -> Plan:
        """What the kernels read; a topology change writes into its tensors, and it is never saved."""
        plan = self._plan
        if plan is None:
            raise ValueError("expected data, got a layer on the meta device, try to_empty() and load_state_dict()")
        if torch.compiler.is_compiling() or plan.stale:  # once, while it is traced: later the registered ops look
            plan.follow()
        return plan

    # ---- what is stored -------------------------------------------------------------------------------------------

    @property
    def nnz(self) -> int:
        """Number of stored blocks: single weights unless the pattern says otherwise."""
        return self.plan.nnz

    @property
    def stored(self) -> int:
        """Number of stored weights."""
        return self.plan.weights

    @property
    def sparsity(self) -> float:
        """Share of the weights that is not stored, in [0, 1]."""
        return 1.0 - self.stored / max(1, prod(self.shape))

    def positions(self) -> Tensor:
        """Positions [nnz] (int64, ascending) of the stored blocks in the pattern's grid (see `spfde.sparse.pattern`).

        For patterns of single weights that is their flat place in the dense weight.
        """
        return self.plan.positions

    def mask(self) -> Tensor:
        """Bool tensor of the dense shape, true exactly at the stored positions (a stored value may be 0)."""
        mask = torch.zeros(prod(self.shape) + 1, dtype=torch.bool, device=self.values.device)
        mask[self.plan.places.long()] = True
        return mask[:-1].view(self.shape)

    def dense_weight(self) -> Tensor:
        """The dense weight, zeros exact, detached."""
        return self._dense().detach()

    @property
    def weight(self) -> Tensor:
        """The dense weight, differentiable, made anew at every reading: for code that looks at `.weight`."""
        dense = self._dense()
        if not torch.compiler.is_compiling():
            if self._grad_probe is not None and dense.requires_grad:
                dense.register_hook(self._grad_probe)
            # With grad, one that also runs by itself is rather read for a penalty than by a fast path of inference.
            if (self._last() is None or not torch.is_grad_enabled()) and inside_a_forward():
                self._last_input, self._weight_taken, self.plan.last_seen = self._last(), True, None
        return dense

    @property
    def weight_taken(self) -> bool:
        """Whether a module's forward has read `weight`, to multiply by itself, since this layer's own forward ran."""
        return self._weight_taken and (self._plan is None or self._plan.last_seen is None)

    def _dense(self) -> Tensor:
        return dense_weight(self.plan.arrange(self._effective()), self.plan)

    def _effective(self) -> Tensor:
        """The weights that the forward uses: `values`, through the submodule `transform` if there is one."""
        transform = self._modules.get("transform")
        return self.values if transform is None else transform(self.values)

    # ---- which kernel runs ----------------------------------------------------------------------------------------

    @property
    def kernel(self) -> str:
        """The kernel in use: the forced one, else the one last chosen ("auto" before the first forward)."""
        choice = self.choice
        return self._kernel if choice is None else choice.kernel

    @kernel.setter
    def kernel(self, name: str) -> None:
        self._kernel = rule.check_kernel(name)
        self._settle_dispatch_key()

    @property
    def table(self) -> Table | None:
        """The measurements that choose the kernel unless one is forced; None: the cost model. Not in state_dict."""
        return self._table

    @table.setter
    def table(self, table: Table | None) -> None:
        self._table = table
        self._settle_dispatch_key()

    def _settle_dispatch_key(self) -> None:
        """What the ops are told to run: they take strings, so a table goes by its name."""
        self._dispatch_key = self._kernel if self._table is None or self._kernel != "auto" else use(self._table)

    @property
    def dispatch_key(self) -> str:
        """What settles the kernel: "auto" (the cost model), the kernel that was forced, or the table's name."""
        return self._dispatch_key

    @property
    def choice(self) -> KernelChoice | None:
        """The kernel for the input last seen, with the reason; None before the first forward."""
        last, plan = self._last(), self.plan
        if last is None:
            return None
        device, dtype, shape = last
        problem = problem_of(plan.shape, shape, plan.multiplied, plan.block, plan.window, device, dtype)
        return rule.choose(self._dispatch_key, device, dtype, problem)

    def _last(self) -> tuple[str, torch.dtype, tuple[int, ...]] | None:
        """Device, precision and shape of what the kernel last multiplied; None before the first forward."""
        seen = None if self._plan is None else self._plan.last_seen
        return self._last_input if seen is None else seen

    def _attach_probe(self, x: Tensor, y: Tensor) -> None:
        """Shows x and, in the backward pass, the gradient of y to the probe that watches the dense weight gradient."""
        # A compiled graph must not look: it would be compiled anew for every probe.
        if torch.compiler.is_compiling() or not y.requires_grad:
            return
        probe, x, plan, version = self._grad_probe, x.detach(), self.plan, self.plan.topology_version

        def show(dy: Tensor) -> None:
            plan.check(version)
            probe(dy, x)

        y.register_hook(show)

    # ---- topology -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def move_to(self, positions: Tensor, new: Tensor | None = None) -> Tensor:
        """Changes which blocks are stored; kept ones keep their values, new ones start at 0.

        Every tensor that a kernel reads changes in place: a captured CUDA graph goes on with the new topology (of
        pattern "channel" only while the count stays).

        positions: as `positions()` gives them (int64), ascending, unique, at most `capacity`. new: those among them
        that start at 0 even if they were stored before. Returns `source` [capacity]: the old slot that each slot of
        `values` now holds, -1 where it holds a new block or none. The caller applies it to whatever else is shaped like
        `values` (see `permute`).

        Raises:
            ValueError: positions are unsorted, repeated, out of range, more than the capacity, on another device, or
                violate the pattern.
        """
        capacity, size, device = self.values.shape[0], self.grid.size, self.values.device
        if positions.device != device or (new is not None and new.device != device):
            got = positions.device if positions.device != device else new.device
            raise ValueError(f"expected positions on {device} like the layer, got {got}, try .to({str(device)!r})")
        if positions.dtype != torch.int64 or positions.dim() != 1 or positions.numel() > capacity:
            raise ValueError(
                f"expected at most {capacity} int64 positions (the layer's capacity), got {positions.dtype} "
                f"{list(positions.shape)}"
            )
        outside = (positions[:1] < 0).any() | (positions[-1:] >= size).any()
        if outside | (positions.diff() <= 0).any():  # one question to the device
            raise ValueError(f"expected ascending unique positions in [0, {size}), got others")
        problem = self.pattern.problem(positions, self.grid)
        if problem:
            raise ValueError(problem)
        new = None if new is None else positions[torch.isin(positions, new)]
        return self._move(positions.clone(), new)

    @torch.no_grad()
    def _move(self, positions: Tensor, new: Tensor | None = None) -> Tensor:
        """`move_to` for positions that are right, without a question to the device; the layer keeps them."""
        capacity, size, old = self.values.shape[0], self.grid.size, self.plan.positions
        source = torch.full((capacity,), -1, dtype=torch.int64, device=positions.device)
        slot = torch.full((size,), -1, dtype=torch.int32, device=positions.device)
        slot[old] = torch.arange(old.numel(), dtype=torch.int32, device=positions.device)
        if new is not None:
            slot[new] = -1
        source[: positions.numel()] = slot[positions]
        index = index_from_positions(positions, *self.grid.shape, capacity)
        self.row_ptr.copy_(index.row_ptr)
        self.col.copy_(index.col)
        permute(self.values.data, source)
        if self.values.grad is not None:
            permute(self.values.grad, source)
        self._build_plan(positions)
        return source

    # ---- torch.nn.Module ------------------------------------------------------------------------------------------

    def _apply(self, fn, recurse: bool = True):
        before = self.row_ptr, self.col
        super()._apply(fn, recurse)
        if self.row_ptr is not before[0] or self.col is not before[1]:
            self._build_plan()
        return self

    def __getstate__(self) -> dict[str, Any]:
        seen = {"_last_input": self._last(), "_weight_taken": self.weight_taken}
        return {**self.__dict__, "_plan": None, "_grad_probe": None, **seen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._settle_dispatch_key()
        self._build_plan()

    def _replicate_for_data_parallel(self):
        what = f"got DataParallel, whose copies of {type(self).__name__} would read one GPU's index"
        raise TypeError(f"expected DistributedDataParallel, {what}, try one process for each GPU")

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        dense = state_dict.get(prefix + "weight")
        if dense is not None and prefix + "values" not in state_dict:
            state_dict = dict(state_dict)
            del state_dict[prefix + "weight"]
            problem = index_from_dense(self, dense, state_dict, prefix)
        else:
            problem = check_loaded(self, state_dict, prefix)
        if problem:
            errors.append(f"{prefix.rstrip('.') or 'layer'}: {problem}")
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        self._build_plan()

    def _shared_repr(self) -> str:
        stored = f"nnz={self.nnz}, sparsity={self.sparsity:.4g}, pattern={self.pattern}"
        return f"{stored}, kernel={self.kernel}, bias={self.bias is not None}"
