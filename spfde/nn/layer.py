"""What every sparse layer shares: a weight that is stored sparse, read dense, and multiplied by the kernel chosen."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy, Tracer

from spfde._modules import inside_a_forward
from spfde.kernels.dispatch import rule
from spfde.kernels.dispatch.in_use import use
from spfde.kernels.dispatch.table import Table
from spfde.kernels.dtypes import in_torch_ops, is_batched
from spfde.kernels.problem import KernelChoice, problem_of
from spfde.kernels.scatter import dense_weight
from spfde.nn.guard import Parameters, check_reader, guarded, only_read
from spfde.nn.indexed import Indexed, Stored
from spfde.nn.permutation import Permutation
from spfde.sparse.kernel_index import ONE_TAP, Window


class SparseLayer(Indexed, ABC):
    """A layer whose weight is stored as `values` [capacity, R, C] and an index; base of SparseLinear and SparseConv2d.

    The first `nnz` slots of `values` are live, the rest hold 0 and get gradient 0. A slot is one block of the pattern:
    R outputs x C inputs, a single weight unless the pattern is "block:RxC" or "channel" (see `spfde.sparse.pattern`).
    """

    bias: nn.Parameter | None

    def __init__(self, stored: Stored, bias: Tensor | None, pattern: str, window: Window = ONE_TAP) -> None:
        super().__init__(stored, pattern, window)
        self.__dict__["_parameters"] = Parameters(self._parameters)
        self.register_parameter("bias", bias)
        self._grad_probe: Callable[..., None] | None = None  # shown what the dense weight gradient is made of
        self._kernel = self._dispatch_key = "auto"
        self._table: Table | None = None
        self._last_input: tuple[str, torch.dtype, tuple[int, ...]] | None = None
        self._weight_taken = False

    # ---- the dense weight -------------------------------------------------------------------------------------------

    def dense_weight(self) -> Tensor:
        """The dense weight, zeros exact, detached."""
        return self._dense().detach()

    @property
    def weight(self) -> Tensor:
        """The dense weight, differentiable, made anew at every reading: for code that looks at `.weight`.

        Outside of a module's forward it refuses to be written in place, which would not reach the layer.
        """
        if torch.compiler.is_compiling():
            return self._dense()
        if inside_a_forward():
            return self._read_inside()
        check_reader()
        return guarded(self._dense())

    def _read_inside(self) -> Tensor:
        """The weight for the forward of a module that contains the layer."""
        return self.read_dense()

    def read_dense(self) -> Tensor:
        """The dense weight for a forward that multiplies by itself, which is noted."""
        # With grad, one that also runs by itself is rather read for a penalty than by a fast path of inference.
        if self._last() is None or not torch.is_grad_enabled():
            self._last_input, self._weight_taken, self.plan.last_seen = self._last(), True, None
        return self._dense()

    @weight.setter
    def weight(self, value: Any) -> None:
        raise only_read("another one")

    @property
    def weight_taken(self) -> bool:
        """Whether a module's forward has read `weight`, to multiply by itself, since this layer's own forward ran."""
        return self._weight_taken and (self._plan is None or self._plan.last_seen is None)

    def _dense(self) -> Tensor:
        dense = dense_weight(self.plan.arrange(self._effective()), self.plan)
        if self._grad_probe is not None and dense.requires_grad and not torch.compiler.is_compiling():
            dense.register_hook(self._grad_probe)
        return self.as_dense(dense)

    def _effective(self) -> Tensor:
        """The weights that the forward uses: `values`, through the submodule `transform` if there is one."""
        transform = self._modules.get("transform")
        return self.values if transform is None else transform(self.values)

    # ---- a permutation of its inputs or outputs -------------------------------------------------------------------

    @property
    def detour(self) -> str:
        """Why its forward is more than the product by `values`, which others could call by themselves; else empty."""
        if "transform" in self._modules:
            return "its weights are made anew by a transform"
        return "" if self._outer() is None else "its inputs or outputs are permuted beside the product"

    def permute(self, permutation: Permutation) -> None:
        """Multiplies by the stored weight through a permutation from now on (see `spfde.topology.permute`)."""
        self.permutation = permutation
        self.register_load_state_dict_post_hook(_permuted_anew)
        self._build_plan(self.positions())

    def harden(self, order: Tensor) -> None:
        """Makes the permutation that is learned the index `order` [n] (int64), a permutation of 0 to n - 1."""
        positions = self.positions()
        self.permutation.harden(order)
        self._build_plan(positions)
        self._lineage.hardened(order)

    def _outer(self) -> Permutation | None:
        """The permutation that is applied beside the product: one that is an index may be in the plan's."""
        return self._modules.get("permutation") if self.grid.order is None else None

    def _build_plan(self, positions: Tensor | None = None) -> None:
        permutation = self._modules.get("permutation")
        order = None if permutation is None else self._in_the_index(permutation)
        if order is self.grid.order:
            super()._build_plan(positions)
            return
        before, self._plan = self._plan, None  # what its kernels read may be the index: not to be written over
        self.grid = replace(self.grid, order=order)
        super()._build_plan(positions)
        if self._plan is not None and before is not None:
            self._plan.last_seen, self._plan.topology_version = before.last_seen, before.topology_version + 1

    def _in_the_index(self, permutation: Permutation) -> Tensor | None:
        """The order of the inputs, where kernels read any column: the others' blocks have neighbouring ones."""
        free = self.grid.block[0] == 1 or len(self.shape) == 2
        fits = permutation.hard and permutation.side == "inputs" and permutation.order.is_cpu and free
        return permutation.order if fits else None

    def as_dense(self, weight: Tensor) -> Tensor:
        """A stored weight as torch has the layer's: a view, unless it is permuted."""
        outer = self._outer()
        return super().as_dense(weight if outer is None else outer.of_weight(weight.view(self.shape)))

    def rows_first(self, dense: Tensor) -> Tensor:
        """A dense weight as it is stored, the other way round."""
        outer, weight = self._outer(), super().rows_first(dense)
        return weight if outer is None else outer.of_stored(weight)

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

    def forget_input(self) -> Callable[[], None]:
        """Forgets the input last seen; what is returned brings it back unless there was another one since."""
        before = self.plan.last_seen, self._last_input, self._weight_taken
        self.plan.last_seen = self._last_input = None
        self._weight_taken = False

        def bring_back() -> None:
            if self._last() is None and not self._weight_taken:
                self.plan.last_seen, self._last_input, self._weight_taken = before

        return bring_back

    def _attach_probe(self, x: Tensor, y: Tensor) -> None:
        """Shows x and, in the backward pass, the gradient of y to the probe that watches the dense weight gradient."""
        # A compiled graph must not look: it would be compiled anew for every probe.
        if torch.compiler.is_compiling() or not y.requires_grad or in_torch_ops():
            return
        probe, x, plan = self._shown_to(self._grad_probe), x.detach(), self.plan
        version = plan.topology_version

        def show(dy: Tensor) -> None:
            plan.check(version)
            if is_batched(dy):  # many gradients, none of which is accumulated
                return
            if torch.is_grad_enabled() and (plan.kept_rows is not None or self.kernel == "reference"):
                raise RuntimeError(
                    "expected first derivatives while a topology watches the dense gradient of a layer that torch "
                    "differentiates, got create_graph=True, try float32 and another pattern than 'channel', or SET"
                )
            probe(dy, x)

        y.register_hook(show)

    def _shown_to(self, probe: Callable[..., None]) -> Callable[..., None]:
        """A probe of the dense gradient, told of this layer's output gradient and input."""
        return probe

    def show_gradient(self, dy: Tensor, x: Tensor) -> None:
        """A part of a second derivative, for the probe."""
        if self._grad_probe is not None:
            self._grad_probe(dy, x.detach())

    # ---- torch.nn.Module ------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Options of the dense layer that others may ask for, such as `stride` or a Conv1D's `nf`."""
        shell = self.__dict__.get("_shell")
        if shell is not None and not name.startswith("_") and name in shell.__dict__:  # torch 2.6 compiles no vars()
            return shell.__dict__[name]
        return super().__getattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As any module's, but for a weight."""
        if name == "weight":
            raise only_read("another one")
        super().register_parameter(name, param)

    def __getstate__(self) -> dict[str, Any]:
        seen = {"_last_input": self._last(), "_weight_taken": self.weight_taken}
        return {**super().__getstate__(), "_grad_probe": None, **seen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._settle_dispatch_key()

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        permutation, name = self._modules.get("permutation"), prefix + "permutation."
        if permutation is not None:
            if permutation.problem(state_dict.get(name + "order"), state_dict.get(name + "soft")):
                return  # which it will tell by itself
            permutation.stays = prefix + "weight" in state_dict and prefix + "values" not in state_dict
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _traced(self, x: Any) -> Any:
        """A call of this layer in the graph that torch.fx traces, as of any layer of torch's own, else None."""
        if isinstance(x, Proxy) and isinstance(x.tracer, Tracer):
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})
        return None

    def __prepare_scriptable__(self):
        what = f"got {type(self).__name__}, whose kernels torch.jit.script cannot compile"
        how = "torch.jit.script(spfde.densify(copy.deepcopy(model))), or torch.jit.trace"
        raise TypeError(f"expected a dense model, {what}, try {how}")

    def _replicate_for_data_parallel(self):
        what = f"got DataParallel, whose copies of {type(self).__name__} would read one GPU's index"
        raise TypeError(f"expected DistributedDataParallel, {what}, try one process for each GPU")

    def _shared_repr(self) -> str:
        stored = f"nnz={self.nnz}, sparsity={self.sparsity:.4g}, pattern={self.pattern}"
        return f"{stored}, kernel={self.kernel}, bias={self.bias is not None}"


def _permuted_anew(layer: SparseLayer, _: Any) -> None:
    """After a state_dict: submodules are loaded after the layer itself."""
    layer._build_plan()
