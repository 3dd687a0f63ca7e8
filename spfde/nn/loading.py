"""What a sparse layer checks of what it is made of or loads, before anything changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from spfde.sparse.index import Index, check_index, index_from_positions, positions_of

if TYPE_CHECKING:
    from spfde.nn.indexed import Indexed


def check_dense(layer: nn.Module, kind: type[nn.Module]) -> None:
    """Refuses what is no dense layer of a kind, or one that a sparse layer with its weights could not stand for.

    Raises:
        TypeError: it is of another kind, or has a forward of its own.
        ValueError: its weight is computed, has no data yet, or is not floating point.
    """
    what = f"torch.nn.{kind.__name__}"
    if not isinstance(layer, kind):
        raise TypeError(f"expected a {what}, got {type(layer).__name__}")
    if type(layer).forward is not kind.forward or "forward" in vars(layer):
        own = f"{type(layer).__name__} with a forward of its own, which a sparse layer would not keep"
        raise TypeError(f"expected a layer that computes as {what}, got {own}, try a {what} with its weights")
    if parametrize.is_parametrized(layer):
        remedy = "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first"
        raise ValueError(f"expected a plain weight, got a parametrized one, try {remedy}")
    if is_lazy(layer.weight) or layer.weight.is_meta:
        raise ValueError("expected a weight with data, got one without, try loading it, or a forward pass, first")
    if not layer.weight.is_floating_point():
        raise ValueError(f"expected a floating-point weight, got {layer.weight.dtype}, try layer.float()")


def index_from_dense(layer: Indexed, dense: Tensor, state_dict: dict[str, Any], prefix: str) -> str | None:
    """Puts values and index of a dense checkpoint's weight into `state_dict`; returns what is wrong, or None.

    Where it has fewer nonzeros than the layer stores, stored values are 0: at the layer's own places first.
    """
    if dense.shape != layer.dense_shape:
        return f"expected a dense weight of shape {list(layer.dense_shape)}, got {list(dense.shape)}"
    blocks = layer.grid.cut(layer.rows_first(dense))
    nonzero = (blocks != 0).any(2).any(1).nonzero().view(-1)  # a stored value may be 0: blocks need not be full
    positions = _filled_up(layer, nonzero)
    if positions is None:
        what = "nonzeros" if layer.grid.block == (1, 1) else "blocks that are not zero"
        return (
            f"expected a dense weight with {layer.nnz} {what}, got {nonzero.numel()}, try loading the "
            f"checkpoint before spfde.sparsify"
        )
    problem = layer.pattern.problem(positions, layer.grid)
    if problem:
        return problem
    values = dense.new_zeros(layer.values.shape)
    values[: positions.numel()] = blocks[positions]
    index = index_from_positions(positions, *layer.grid.shape, layer.values.shape[0])
    state_dict.update({prefix + "values": values, prefix + "row_ptr": index.row_ptr, prefix + "col": index.col})
    return None


def _filled_up(layer: Indexed, nonzero: Tensor) -> Tensor | None:
    """As many positions as the layer stores, `nonzero` (ascending) among them; None if these are too many."""
    own, grid, pattern = layer.positions().to(nonzero.device), layer.grid, layer.pattern
    if nonzero.numel() >= own.numel():
        return nonzero if nonzero.numel() == own.numel() else None
    if torch.isin(nonzero, own).all():
        return own
    score = torch.zeros(grid.size, dtype=torch.int8, device=nonzero.device)
    score[own] = 1
    score[nonzero] = 2
    group, quota = pattern.groups(grid, score.device), pattern.quota(grid, own.numel(), score.device)
    best = score.sort(descending=True, stable=True).indices  # and then by group: the best of each come first
    best = best[group[best].sort(stable=True).indices]
    sizes = torch.bincount(group, minlength=quota.numel())
    rank = torch.arange(grid.size, device=score.device) - (sizes.cumsum(0) - sizes)[group[best]]
    fits = best[rank < quota.to(score.device)[group[best]]]
    chosen = fits[score[fits].sort(descending=True, stable=True).indices][: own.numel()].sort().values
    return chosen if torch.isin(nonzero, chosen).all() else nonzero  # the pattern says where there are too many


def check_loaded(layer: Indexed, state_dict: dict[str, Any], prefix: str) -> str | None:
    """What is wrong with the index about to be loaded, or None (without it that is torch's to report)."""
    row_ptr, col = state_dict.get(prefix + "row_ptr"), state_dict.get(prefix + "col")
    if row_ptr is None and col is None:
        return None
    if row_ptr is None or col is None:
        there, missing = ("col", "row_ptr") if row_ptr is None else ("row_ptr", "col")
        return f"expected row_ptr and col together, got {there} alone, try adding {missing} or leaving {there} out"
    values = state_dict.get(prefix + "values", layer.values)
    if values.shape != layer.values.shape:
        return f"expected values of shape {list(layer.values.shape)}, got {list(values.shape)}"
    index = Index(row_ptr, col)
    problem = check_index(index, *layer.grid.shape, layer.values.shape[0])
    return problem or layer.pattern.problem(positions_of(index, layer.grid.shape[1]), layer.grid)
