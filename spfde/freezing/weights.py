"""Freezing below a layer: single weights, blocks or outputs of a sparse layer become constant, the rest trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spfde.levers import Decision
from spfde.nn import SparseLayer
from spfde.nn.held import hold


@dataclass(frozen=True)
class WeightDecision(Decision):
    """What `freeze_weights` or `unfreeze_weights` did to a layer. frozen, stored: its weights after it."""

    frozen: int
    stored: int

    @property
    def share(self) -> float:
        """The share of the stored weights that is frozen, in [0, 1]."""
        return self.frozen / max(1, self.stored)


def freeze_weights(layer: SparseLayer, which: Tensor | Sequence[int]) -> WeightDecision:
    """Makes stored weights of a sparse layer constant, in addition to those that are: what was done, and why it pays.

    No weight gradient is computed for them: theirs is 0. No step of a torch optimizer moves them or its state of them
    (weight decay and momentum included), and masks move around them. Input gradient and bias are as ever. Survives
    deepcopy and pickle; `state_dict` keys do not change, so freeze anew before a state with the same topology is
    loaded, or after.

    Args:
        which: bool of the dense weight's shape, true where a weight freezes (places that are not stored do not count);
            or outputs, as numbers or bool [outputs] (a transposed convolution's inputs). Blocks freeze as a whole.

    Raises:
        TypeError: `layer` is no sparse layer, `which` no bool tensor, numbers or rows.
        ValueError: a shape or a row does not fit, a block would freeze in part, the layer's weights are computed
            (`transform`, a parametrization) or shared out by FSDP; nothing has changed then.
    """
    _check_layer(layer)
    places = _blocks(layer, which)
    before = frozen_positions(layer)
    after = torch.cat([before, places]).unique()
    hold(layer, after)
    return _decision(layer, "freeze", f"{places.numel() - int(torch.isin(places, before).sum())} more")


def unfreeze_weights(layer: SparseLayer, which: Tensor | Sequence[int] | None = None) -> WeightDecision:
    """Lets frozen weights of a layer train again; `which` as `freeze_weights` takes it, None for all.

    Values and optimizer state are as they were when they froze.

    Raises:
        TypeError, ValueError: as `freeze_weights`.
    """
    _check_layer(layer)
    before = frozen_positions(layer)
    places = before if which is None else _blocks(layer, which)
    after = before[~torch.isin(before, places)]
    hold(layer, after if after.numel() else None)
    return _decision(layer, "unfreeze", f"{before.numel() - after.numel()} fewer")


def frozen_weights(layer: SparseLayer) -> Tensor:
    """Bool of the dense weight's shape: true where a stored weight is frozen by itself.

    Raises:
        TypeError: `layer` is no sparse layer.
    """
    _check_kind(layer)
    return layer.mask_at(frozen_positions(layer))


def frozen_positions(layer: SparseLayer) -> Tensor:
    """Positions [n] (int64, ascending) of the frozen blocks in the pattern's grid."""
    live = layer.plan.live
    return layer.positions()[live.held] if live is not None else layer.positions()[:0]


def _blocks(layer: SparseLayer, which: Tensor | Sequence[int]) -> Tensor:
    """Positions (ascending) of the stored blocks that are meant."""
    dense, stored = _mask(layer, which), layer.positions()
    if layer.grid.block == (1, 1):
        return stored[dense.reshape(-1)[stored]]
    some, rest = layer.grid.cut(dense).any(-1).any(-1), layer.grid.cut(~dense).any(-1).any(-1)
    torn = int((some & rest)[stored].sum())
    if torn:
        raise ValueError(
            f"expected whole blocks of {layer.pattern}, got {torn} of which a part would freeze, try a mask that is "
            "true or false for all of a block"
        )
    return stored[some[stored]]


def _mask(layer: SparseLayer, which: Tensor | Sequence[int]) -> Tensor:
    """`which` as bool of the shape that the kernels have, outputs first."""
    rows, shape, device = layer.shape[0], tuple(layer.dense_shape), layer.values.device
    if isinstance(which, Sequence) and not isinstance(which, str):
        if not all(isinstance(row, int) and not isinstance(row, bool) for row in which):
            raise TypeError(f"expected numbers of outputs, got {which!r}, try a tensor for a mask")
        which = torch.tensor(which, dtype=torch.int64)
    if not isinstance(which, Tensor) or which.is_floating_point() or which.is_complex():
        got = which.dtype if isinstance(which, Tensor) else type(which).__name__
        raise TypeError(f"expected a bool mask {list(shape)} or numbers of outputs, got {got}, try mask.bool()")
    which = which.to(device)
    if which.dtype == torch.bool and tuple(which.shape) == shape:
        return layer.rows_first(which)
    if which.dim() != 1 or (which.dtype == torch.bool and which.numel() != rows):
        got = f"{which.dtype} {list(which.shape)}"
        raise ValueError(f"expected a bool mask {list(shape)}, bool [{rows}] or numbers of outputs, got {got}")
    chosen = torch.zeros(rows, dtype=torch.bool, device=device)
    if which.dtype == torch.bool:
        chosen = which
    elif which.numel():
        if int(which.min()) < 0 or int(which.max()) >= rows:
            raise ValueError(f"expected outputs in [0, {rows}), got [{int(which.min())}, {int(which.max())}]")
        chosen[which.long()] = True
    return chosen.view(-1, *[1] * (len(layer.shape) - 1)).expand(layer.shape)


def _check_kind(layer: nn.Module) -> None:
    if not isinstance(layer, SparseLayer):
        raise TypeError(
            f"expected a sparse layer, got {type(layer).__name__}, try spfde.sparsify first, or "
            "spfde.freezing.freeze(module) for all of a module"
        )


def _check_layer(layer: nn.Module) -> None:
    _check_kind(layer)
    layer.check_values()
    transform = layer._modules.get("transform")
    if transform is not None:
        raise ValueError(
            f"expected a layer that multiplies by its values, got one that computes its weights by {transform}, try "
            "spfde.freezing.freeze(layer)"
        )
    if hasattr(layer.values, "device_mesh"):
        raise ValueError(
            "expected whole values, got some that fully_shard shares out over ranks, try DistributedDataParallel"
        )


def _decision(layer: SparseLayer, kind: str, change: str) -> WeightDecision:
    frozen, stored = int(frozen_weights(layer).sum()), layer.stored
    share = frozen / max(1, stored)
    text = f"{type(layer).__name__} {'x'.join(map(str, layer.dense_shape))}: {frozen} of {stored} stored weights frozen"
    if not frozen:
        reason = "all of its weights train"
    elif frozen == stored:
        reason = "none of its weights trains, but its input is still kept for backward: freeze(layer) keeps none"
    else:
        reason = f"its weight gradient is computed at {1 - share:.1%} of the stored places ({change} blocks frozen)"
    return WeightDecision(kind, text, reason, frozen, stored)
