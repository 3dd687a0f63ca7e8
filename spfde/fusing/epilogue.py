"""A sparse layer and what follows it, called as one: each call settles whether one kernel does it all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spfde._modules import any_global_hook
from spfde.kernels import norm_act_frozen
from spfde.kernels.cuda import absence
from spfde.kernels.dtypes import compute_and_result_dtype, through_dispatcher
from spfde.kernels.epilogue import Epilogue, untracked
from spfde.kernels.memory_format import memory_format_of
from spfde.kernels.norm_act import ACTIVATIONS
from spfde.kernels.recompute import without_saving
from spfde.kernels.registry import get, names
from spfde.kernels.triton import why_not
from spfde.nn import FusedNormAct2d, SparseConv2d, SparseLayer, SparseLinear
from spfde.nn.norm import ADDITIONS, counted

_OPS: dict[type[nn.Module], str] = {SparseConv2d: "conv2d", SparseLinear: "linear"}
LAYERS = tuple(_OPS)  # these very types: a subclass may do something else
MODULES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.GELU: "gelu"}


def _sum(
    add: Callable[[Any, Any], Any], z: Tensor, residual: Any, act: Callable[[Tensor], Tensor] | str | None = None
) -> Tensor:
    y = add(z, residual)
    return y if act is None else (FUNCTIONS[act] if isinstance(act, str) else act)(y)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu, "relu_": F.relu_, "relu6": F.relu6, "relu6_": partial(F.relu6, inplace=True), "gelu": F.gelu,
    **{name: partial(_sum, add) for name, add in ADDITIONS.items()},
}  # fmt: skip


def call_with_epilogue(
    layer: Callable[[Tensor], Tensor],
    x: Tensor,
    then: nn.Module | str,
    rest: tuple[Any, ...] = (),
    again: bool | None = None,
) -> Tensor:
    """then(layer(x), *rest), in the layer's kernel where that is one of a GPU and has the gradient that is wanted.

    then: a FusedNormAct2d (rest: its other arguments), an activation, or one of `FUNCTIONS` (rest, of `ADDITIONS`: what
    is added, and an activation of the sum or nothing). again: `gelu` of `without_saving`; None: the layer saves x
    as ever.
    """
    follow = FUNCTIONS[then] if isinstance(then, str) else then
    # On a CPU that is all but for norms in training: what follows takes a few microseconds.
    if not through_dispatcher(x) and type(layer) in LAYERS:
        if x.is_cpu and type(then) is FusedNormAct2d and type(layer) is SparseConv2d:
            y = _with_norm(layer, x, then, rest, again)
            if y is not None:
                return y
        end = _epilogue(layer, x, then, *rest) if _kernels_end(x) else None
        if end is not None:
            z, whole = _run(partial(layer.call_with_epilogue, epilogue=end), x, again)
            return z if whole else follow(z, *rest)
    return follow(_run(layer, x, again), *rest)


def _kernels_end(x: Tensor) -> bool:
    """Whether there are kernels for its device that take an epilogue."""
    return why_not(x.device.type) is None or (x.is_cuda and absence() is None)


def _run(layer: Callable[[Tensor], Any], x: Tensor, again: bool | None) -> Any:
    return layer(x) if again is None else without_saving(layer, x, again)


def _with_norm(
    layer: SparseConv2d, x: Tensor, norm: FusedNormAct2d, rest: tuple[Any, ...], again: bool | None
) -> Tensor | None:
    """The norm of the layer's output as one op of a CPU, None where they run one by one."""
    if not _alone(layer) or not _plain(norm):
        return None
    residual, act, recompute, add = (*rest, *(None, "none", False, "add")[len(rest) :])
    if residual is not None and (type(residual) is not Tensor or residual.dtype != x.dtype):
        return None
    if add == "radd" and memory_format_of(residual) != memory_format_of(x):
        return None  # the sum lies in memory as what is first does

    def op(*vectors: Tensor | None, **options: Any) -> Tensor | None:
        return _run(lambda x: layer.call_with_norm(x, *vectors, **options), x, again)

    return counted(norm, op, residual=residual, act=act, recompute=recompute)


def act_of(module: nn.Module) -> str:
    """The activation that a module is, empty if it is none that a kernel has."""
    return "" if getattr(module, "approximate", "none") != "none" else MODULES.get(type(module), "")


def hooked(module: nn.Module) -> bool:
    """Whether someone else sees what the module is given or returns."""
    hooks: tuple[Any, ...] = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    )  # fmt: skip
    return any(hooks)


def _epilogue(
    layer: SparseLayer,
    x: Tensor,
    then: nn.Module | str,
    residual: Any = None,
    act: Any = "none",
    recompute: bool = False,
    add: str = "add",
) -> Callable[[], Epilogue] | None:
    """What makes the epilogue, None where the parts must run one by one; of `rest` as FusedNormAct2d takes it."""
    if layer.dispatch_key in names() and not get(layer.dispatch_key).products[_OPS[type(layer)]].fuses_epilogue:
        return None
    if not _alone(layer):
        return None
    add = then if then in ADDITIONS else add
    if then in ADDITIONS or residual is not None:
        if type(residual) is not Tensor:
            return None
        if add == "add_" and residual.dtype != compute_and_result_dtype(x, layer.values)[1]:
            return None  # what is added to in place keeps its precision
        if add == "radd" and memory_format_of(residual) != memory_format_of(x):
            return None  # the sum lies in memory as what is first does
    if type(then) is FusedNormAct2d:
        return _norm_epilogue(layer, x, then, residual, act) if _plain(then) else None
    act = act if then in ADDITIONS else then
    act = act.removesuffix("_") if isinstance(act, str) else act_of(act) if _plain(act) else ""
    if not act:
        return None
    end = Epilogue(layer.bias, residual=residual, act=act)
    return lambda: end


def _norm_epilogue(
    layer: SparseLayer, x: Tensor, norm: FusedNormAct2d, residual: Tensor | None, act: str
) -> Callable[[], Epilogue] | None:
    fits = type(layer) is SparseConv2d and norm.num_features == layer.shape[0] and act in ACTIVATIONS
    if norm.training or norm.running_mean is None or not fits:
        return None
    vectors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    if not norm_act_frozen.fits(x, *vectors) or not untracked(x, residual, layer.values, layer.bias, *vectors):
        return None

    def end() -> Epilogue:
        scale, shift = norm_act_frozen.affine(*vectors, norm.eps)
        if layer.bias is not None:
            shift = torch.addcmul(shift, scale, layer.bias.detach())
        return Epilogue(shift, scale, residual, act)

    return end


def _alone(layer: SparseLayer) -> bool:
    """Whether nobody sees what the layer is given and returns, and its product of its values is all that it does."""
    seen = any_global_hook() or not _plain(layer) or layer._grad_probe is not None
    return not seen and not layer.detour


def _plain(module: nn.Module) -> bool:
    """Whether a call of the module is its class's forward and nothing else."""
    return not hooked(module) and "forward" not in vars(module)
