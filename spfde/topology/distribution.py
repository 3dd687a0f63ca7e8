"""How many blocks each layer keeps, for a sparsity of the whole model.

Every function takes the dense shapes by name, the sparsity (fraction of zeros) and how many blocks each layer has in
all (single weights if None), and returns the count of stored blocks by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

Shape = tuple[int, ...]


def stored_count(sparsity: float, size: int) -> int:
    """round((1 - sparsity) * size), at least 1 unless sparsity is 1."""
    return max(round((1 - sparsity) * size), 0 if sparsity == 1 else min(1, size))


def uniform(shapes: Mapping[str, Shape], sparsity: float, blocks: Mapping[str, int] | None = None) -> dict[str, int]:
    """The same sparsity in every layer."""
    blocks = blocks or _weights(shapes)
    return {name: stored_count(sparsity, blocks[name]) for name in shapes}


def erk(shapes: Mapping[str, Shape], sparsity: float, blocks: Mapping[str, int] | None = None) -> dict[str, int]:
    """Density proportional to sum(dimensions) / product(dimensions): small layers stay denser.

    Layers whose density would pass 1 are made dense and the scale is solved again, until none does. Source: RigL
    (1911.11134), section 3, after SET.
    """
    sizes = _weights(shapes)
    blocks = blocks or sizes
    raw = {name: sum(shape) / max(1, sizes[name]) for name, shape in shapes.items()}
    total = (1 - sparsity) * sum(sizes.values())
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        left = total - sum(sizes[name] for name in dense)
        weight = sum(raw[name] * sizes[name] for name in rest)
        scale = left / weight if weight else 0.0
        over = {name for name in rest if raw[name] * scale > 1}
        if not over:
            break
        dense |= over
    density = {name: 1.0 if name in dense else max(0.0, raw[name] * scale) for name in shapes}
    return {name: stored_count(sparsity if sparsity == 1 else 1 - density[name], blocks[name]) for name in shapes}


def _weights(shapes: Mapping[str, Shape]) -> dict[str, int]:
    return {name: prod(shape) for name, shape in shapes.items()}
