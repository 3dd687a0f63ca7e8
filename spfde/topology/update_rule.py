"""What differs between the methods of dynamic sparse training: what is dropped, what grows, how much, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde._ranks import Ranks
from spfde.nn import SparseLayer
from spfde.nn.held import refusal
from spfde.topology import moves
from spfde.topology.following import Fill, Followers
from spfde.topology.history import History, Shift
from spfde.topology.layers import LayerState, magnitude, reserve_all
from spfde.topology.optimizer_state import follow
from spfde.topology.probes import GradientProbes
from spfde.topology.schedule import Schedule
from spfde.topology.topk import keep_highest_in_groups


class UpdateRule:
    """The part of a `Topology` that its methods override, mostly one or two of the functions; else it is SET's.

    layers: by name. target: the count of blocks that each ends at. schedule: when updates are due. steps_done: of the
    optimizer, so far. drop_fraction: as given. generator: of all random choices.
    """

    layers: dict[str, SparseLayer]
    target: dict[str, int]
    schedule: Schedule
    steps_done: int
    drop_fraction: float
    generator: torch.Generator
    optimizer: Optimizer
    _history: dict[str, History]
    _probes: GradientProbes
    _followers: Followers
    _late: bool
    _ranks: Ranks
    _wrapped: bool

    default_every: int | None = 100  # None: it depends on the options
    # A method without a drop fraction (None) refuses one.
    default_drop: ClassVar[float | None] = 0.3
    # Growth looks at the gradients of weights that are not stored: `gradient_magnitudes`.
    grows_by_gradient: bool = False
    # A weight that is dropped and grown in one update starts anew at 0 instead of staying as it was.
    reset_regrown: ClassVar[bool] = False
    # Kinds of pattern that the method has no meaning for.
    refused: tuple[str, ...] = ()
    # An update needs nothing but the weights, their gradients (the dense ones too) and optimizer state, which
    # fully_shard can gather.
    sharded: ClassVar[bool] = False
    # It moves masks around weights that are frozen by themselves.
    keeps_frozen: ClassVar[bool] = True
    # What `SparseLayer.transform` may be.
    transforms: ClassVar[tuple[type[nn.Module], ...]] = ()

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training, as far as is known."""
        return self.schedule.total_steps

    # ---- what a method may override --------------------------------------------------------------------------------

    def check_options(self) -> None:
        """Raises ValueError where options contradict each other; each has passed its own check."""

    def setup(self) -> None:
        """Makes what the method remembers, once layers, optimizer and options are there; may `reserve` room."""

    def due(self, step: int) -> bool:
        """Whether an update follows this optimizer step."""
        return self.schedule.due(step) or (self._late and step < self.total_steps)

    def reads_gradient(self) -> bool:
        """Whether an update looks at gradients at all."""
        return self.grows_by_gradient

    def watches(self, step: int) -> bool:
        """Whether the backward passes of this optimizer step are watched for `gradient_magnitudes`."""
        return self.grows_by_gradient and self.due(step)

    def after_step(self) -> None:
        """What happens after every optimizer step, before an update."""

    def drop_share(self, step: int) -> float:
        """The share of a layer's stored weights that an update after this step drops. `drop_fraction`, always."""
        return self.drop_fraction

    def score(self, layer: LayerState) -> Tensor:
        """A score [nnz] per stored block; the lowest are dropped. By magnitude."""
        return magnitude(layer.module)

    def final_score(self, layer: LayerState) -> Tensor:
        """A score [nnz] per stored block, by which a layer ends at its target count. By magnitude."""
        return magnitude(layer.module)

    def keep_slots(self, layer: LayerState, score: Tensor) -> Tensor:
        """Which stored blocks (slots, ascending) stay: all but `drop_share` of them with the lowest scores.

        A group (for most patterns the layer) drops no more than it has room to regrow.
        """
        count = int(self.drop_share(self.steps_done) * layer.nnz)
        return moves.without_lowest(score, layer.group[layer.positions], layer.room, count)

    def keep_all(self, layers: Mapping[str, LayerState], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`keep_slots` of every layer; a method that decides over all layers at once does it here."""
        return {name: self.keep_slots(layer, scores[name]) for name, layer in layers.items()}

    def counts(self, layers: Mapping[str, LayerState], kept: Mapping[str, Tensor]) -> dict[str, int]:
        """How many blocks each layer holds after the update. As many as before."""
        return {name: layer.nnz for name, layer in layers.items()}

    def grow(self, layer: LayerState, kept: Tensor, need: Tensor) -> Tensor:
        """`need[g]` positions of every group g outside `kept` (positions, ascending). At random."""
        return moves.drawn(layer.group, kept, need, self.generator)

    def exchange(self, layer: LayerState, score: Tensor, kept: Tensor, count: int) -> Shift | None:
        """Keeps the slots `kept` and grows the rest up to `count` blocks; None where nothing is to change."""
        slots, positions = kept, layer.positions[kept]
        want = layer.held
        if count != layer.nnz:  # a group may have too many
            want = layer.quota(count)
            positions = positions[keep_highest_in_groups(score[slots], layer.group[positions], want)]
        need = want - moves.count_groups(layer.group, want.numel(), positions)
        grown = self.grow(layer, positions, need) if int(need.sum()) else positions.new_empty(0)
        if not grown.numel() and positions.numel() == layer.nnz:
            return None
        return self.move(layer, moves.ascending(layer.grid.size, positions, grown), grown)

    def slots_moved(self, layer: LayerState, source: Tensor) -> None:
        """Follows a change of one layer's slots: `source` as `spfde.nn.layer.permute` takes it."""

    def own_state(self) -> dict[str, Any]:
        """What a method remembers besides: tensors and plain values."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Takes back `own_state`."""

    # ---- what a method may ask for ---------------------------------------------------------------------------------

    def live(self) -> dict[str, SparseLayer]:
        """The layers that may move: not frozen.

        Raises:
            ValueError: some weights of one are frozen by themselves, and the method does not move masks around them.
        """
        live = {name: layer for name, layer in self.layers.items() if layer.values.requires_grad}
        if not self.keeps_frozen:
            held = [name for name, layer in live.items() if layer.plan.live is not None]
            if held:
                raise ValueError(
                    f"expected no single weights frozen under {type(self).__name__}, got some in {held[0]!r}, try RigL"
                    ", or spfde.freezing.unfreeze_weights(layer)"
                )
        return live

    def rated(self, layer: SparseLayer, score: Tensor) -> Tensor:
        """A score [nnz] of stored blocks as it decides: nothing is above those that are frozen by themselves."""
        live = layer.plan.live
        return score if live is None else score.index_fill(0, live.held, torch.inf)

    def gradient_magnitudes(self, layer: LayerState) -> Iterator[tuple[int, Tensor]]:
        """|dL/dw| summed over every block, stored or not, of a step that was watched: (first position, scores)."""
        return self._probes.of[layer.name].magnitudes()

    def reserve(self, capacity: Mapping[str, int]) -> None:
        """Makes room for that many blocks in each layer, as far as it has them."""
        reserve_all(self.layers, capacity, self.optimizer, self._wrapped)

    def follow(self, what: nn.Module | Mapping[str, Tensor] | Sequence[Tensor], fill: Fill = 0.0) -> None:
        """Carries tensors with a row for every slot of `values` along at every move: anchors, importance scores.

        what: tensors by a layer's or its Parameter's name, or one for each layer in order; entries may be replaced by
        others, shapes stay. Of a copied state_dict the index follows too. Or a copy of the model (an average), with the
        model's masks now. fill: what new slots hold, a number or fill(layer name, positions) -> [new, ...].

        Raises:
            ValueError: a shape does not fit, or names or masks are not the model's.
            TypeError: it is nothing of that kind.
        """
        self._followers.add(what, fill)

    def move(self, layer: LayerState, positions: Tensor, grown: Tensor | None = None) -> Shift:
        """Changes the positions of a layer and carries its optimizer state along. grown: those that are new."""
        sparse = layer.module
        problem = refusal(sparse, positions)
        if problem:
            raise ValueError(f"{type(self).__name__} in {layer.name!r}: {problem}")
        source = sparse._move(positions, grown if self.reset_regrown else None)
        self.carry(sparse, source)
        self.slots_moved(layer, source)
        self._history[layer.name].see(positions)
        return Shift(layer.nnz, sparse.nnz, (source[: sparse.nnz] < 0).count_nonzero())

    def carry(self, layer: SparseLayer, source: Tensor) -> None:
        """Moves what is remembered of a layer's slots with them, after every move: `source` as `move_to` returns it."""
        follow(self.optimizer, layer.values, source)
        self._followers.moved(layer, source)
