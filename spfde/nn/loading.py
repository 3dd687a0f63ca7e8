"""What a sparse layer's load_state_dict checks before anything changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from spfde.sparse.index import Index, check_index, index_from_positions, positions_of

if TYPE_CHECKING:
    from spfde.nn.indexed import Indexed


def index_from_dense(layer: Indexed, dense: Tensor, state_dict: dict[str, Any], prefix: str) -> str | None:
    """Puts values and index of a dense checkpoint's weight into `state_dict`; returns what is wrong, or None."""
    if dense.shape != layer.shape:
        return f"expected a dense weight of shape {list(layer.shape)}, got {list(dense.shape)}"
    blocks = layer.grid.cut(dense)
    positions = (blocks != 0).any(2).any(1).nonzero().view(-1)  # a stored value may be 0: blocks need not be full
    if positions.numel() != layer.nnz:
        what = "nonzeros" if layer.grid.block == (1, 1) else "blocks that are not zero"
        return (
            f"expected a dense weight with {layer.nnz} {what}, got {positions.numel()}, try loading the "
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
