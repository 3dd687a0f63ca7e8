"""What follows a topology's moves beside the optimizer: tensors with a row for every slot, and copies of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spfde.nn import SparseLayer
from spfde.sparse.index import permute
from spfde.topology.wrappers import bare

Fill = float | Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class _Held:
    """One tensor, where its user keeps it and may replace it. part: "values", or of the index "row_ptr" or "col"."""

    container: Any
    key: Any
    part: str
    fill: Fill


@dataclass(eq=False)
class Followers:
    """The tensors that follow each layer, with its name."""

    layers: Mapping[str, SparseLayer]
    held: dict[SparseLayer, list[tuple[str, _Held]]] = field(default_factory=dict)

    def add(self, what: Any, fill: Fill) -> None:
        """Follows a mapping, a sequence, or a module: see `Topology.follow`."""
        if isinstance(what, nn.Module):
            pairs = matched(self.layers, what)
            for mine, theirs in pairs.values():
                mine._lineage.lead(theirs)
            return
        for name, held in self._found(what, fill):
            self.held.setdefault(self.layers[name], []).append((name, held))

    def _found(self, what: Any, fill: Fill) -> list[tuple[str, _Held]]:
        by_name = {bare(name): name for name in self.layers}
        found = []
        if isinstance(what, Mapping):
            for key in what:
                plain, part = bare(str(key)), "values"
                if plain not in by_name and "." in f".{plain}":
                    plain, _, part = plain.rpartition(".")
                if plain in by_name and part in ("values", "row_ptr", "col"):
                    found.append((by_name[plain], _Held(what, key, part, fill)))
        elif isinstance(what, Sequence) and not isinstance(what, str) and len(what) == len(self.layers):
            found = [(name, _Held(what, i, "values", fill)) for i, name in enumerate(self.layers)]
        else:
            raise TypeError(
                f"expected a module, tensors by layer's or Parameter's name, or a tensor for each of the "
                f"{len(self.layers)} layers, got {type(what).__name__}, try a dict such as "
                f"{{{next(iter(self.layers), '')!r}: tensor}}"
            )
        if not any(held.part == "values" for _, held in found):
            raise ValueError(f"expected tensors of {list(self.layers)[:3]}, got none of them, try a layer's name")
        for name, held in found:
            tensor, capacity = held.container[held.key], self.layers[name].values.shape[0]
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"expected a tensor for {name!r}, got {type(tensor).__name__}, try one shaped as values"
                )
            if held.part == "values" and (tensor.dim() == 0 or tensor.shape[0] != capacity):
                raise ValueError(
                    f"expected a tensor with a row for each of the {capacity} slots of {name!r}, got "
                    f"{list(tensor.shape)}, try torch.zeros_like(layer.values)"
                )
        return found

    @torch.no_grad()
    def moved(self, layer: SparseLayer, source: Tensor) -> None:
        """Follows a move of one layer. source: as `SparseLayer.move_to` returns it."""
        for name, held in self.held.get(layer, ()):
            tensor = held.container[held.key].detach()
            if held.part != "values":
                tensor.copy_(getattr(layer, held.part))
                continue
            if tensor.shape[0] < source.numel():  # room that was made since
                raise ValueError(
                    f"expected a tensor with a row for each of the {source.numel()} slots of {name!r}, got "
                    f"{list(tensor.shape)}, try topology.follow after room was reserved"
                )
            permute(tensor, source.to(tensor.device))
            new = (source[: layer.nnz] < 0).nonzero().view(-1)
            if callable(held.fill):
                tensor[new.to(tensor.device)] = held.fill(name, layer.positions()[new]).to(tensor)
            elif held.fill:
                tensor[new.to(tensor.device)] = held.fill


def matched(layers: Mapping[str, SparseLayer], copy: nn.Module) -> dict[str, tuple[SparseLayer, SparseLayer]]:
    """The layers and those of a copy, by name.

    Raises:
        ValueError: they are not the same, or their masks are not.
    """
    mine = {bare(name): layer for name, layer in layers.items()}
    theirs = {bare(name): m for name, m in copy.named_modules() if isinstance(m, SparseLayer)}
    if not theirs or not theirs.keys() <= mine.keys():
        other = sorted(theirs.keys() - mine.keys()) or "none"
        raise ValueError(f"expected a copy with sparse layers of the model, got {other}, try copy.deepcopy(model)")
    for name, layer in theirs.items():
        if layer is mine[name]:
            raise ValueError(f"expected a copy of {name!r}, got the layer itself, try copy.deepcopy(model)")
        same = layer.shape == mine[name].shape and layer.pattern == mine[name].pattern
        if not same or not torch.equal(layer.positions(), mine[name].positions().to(layer.values.device)):
            raise ValueError(f"expected a copy with the mask of {name!r}, got another one, try copy.deepcopy(model)")
    return {name: (mine[name], layer) for name, layer in theirs.items()}
