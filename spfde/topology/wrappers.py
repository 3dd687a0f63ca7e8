"""What wraps a model for several processes: found where a topology is made, refused where masks cannot move."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spfde.nn import SparseLayer

T = TypeVar("T")
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def wrapper_of(model: nn.Module, layers: Mapping[str, SparseLayer]) -> DistributedDataParallel | None:
    """The DistributedDataParallel that holds these layers, also where the model inside it is what is given."""
    if isinstance(model, DistributedDataParallel):
        return model
    if not (dist.is_available() and dist.is_initialized()):
        return None
    values = {id(layer.values) for layer in layers.values()}
    wrapped = (one for one in gc.get_objects() if issubclass(type(one), DistributedDataParallel))
    return next((one for one in wrapped if any(id(p) in values for p in one.parameters())), None)


def check_reduced(wrapper: DistributedDataParallel | None, layers: Mapping[str, SparseLayer]) -> None:
    """Refuses layers that were made after their model was wrapped.

    Raises:
        ValueError: the wrapper averages the gradients of other Parameters.
    """
    if wrapper is None:
        return
    reduced = {id(p) for p in wrapper._module_parameters}
    name = next((name for name, layer in layers.items() if id(layer.values) not in reduced), None)
    if name is not None:
        raise ValueError(
            f"expected spfde.sparsify before DistributedDataParallel, got {name!r} made after it, whose gradients it "
            "would not average, try wrapping the sparse model anew"
        )


def check_sharded(model: nn.Module, method: Any) -> None:
    """Refuses weights of which each rank has a part, where a method cannot move their masks.

    Raises:
        ValueError: FullyShardedDataParallel holds the model, which keeps no Parameter of a layer's own; or fully_shard
            (FSDP2), and the method is not `sharded`.
    """
    kinds = {base.__name__ for module in model.modules() for base in type(module).__mro__}
    values = (m._parameters.get("values") for m in model.modules() if isinstance(m, SparseLayer))
    if "FullyShardedDataParallel" in kinds:
        raise ValueError(
            "expected every layer to hold its stored weights, so that their masks can move, got"
            " FullyShardedDataParallel, try DistributedDataParallel, or fully_shard (FSDP2) and SET, RigL or MEST"
        )
    if any(hasattr(one, "device_mesh") for one in values) and not method.sharded:
        raise ValueError(
            f"expected a method that fully_shard (FSDP2) can gather the weights for, got {type(method).__name__}, which"
            " needs more than them at an update, try SET, MEST, ITOP, RigL or DSTEE, or DistributedDataParallel"
        )


def keep_masks_local(ddp: DistributedDataParallel) -> DistributedDataParallel:
    """Takes the indices of sparse layers out of what `ddp` broadcasts before every forward pass; returns `ddp`.

    An index has about as many bytes as the weights. Wrapping has made the masks of all ranks equal; they stay so as
    long as every rank makes the same moves, which a `spfde.topology` with one seed does. Not for a mask that one rank
    alone changes, by hand or by loading a checkpoint.

    Raises:
        TypeError: `ddp` is not a DistributedDataParallel.
    """
    if not isinstance(ddp, DistributedDataParallel):
        raise TypeError(f"expected a DistributedDataParallel, got {type(ddp).__name__}, try wrapping the model first")
    indices = {
        f"{name}.{part}".lstrip(".")
        for name, module in ddp.module.named_modules()
        if isinstance(module, SparseLayer)
        for part in ("row_ptr", "col")
    }
    # What torch offers is read when a model is wrapped; what it read then is kept in these.
    ddp.parameters_to_ignore = {*ddp.parameters_to_ignore, *indices}
    ddp._assign_modules_buffers()
    return ddp


def bare(name: str) -> str:
    """A layer's name without what DistributedDataParallel and torch.compile put in front."""
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name if name not in ("module", "_orig_mod") else ""


def renamed(state: Any, names: Mapping[str, str]) -> Any:
    """Plain state with the layers' names changed, as keys of its dictionaries, however deep."""
    if not isinstance(state, dict):
        return state
    return {names.get(key, key): renamed(value, names) for key, value in state.items()}
