"""The frame of dynamic sparse training: drop score x grow score x schedule x distribution of counts over layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.nn.layer import permute
from spfde.sparse.no_sync import read
from spfde.topology import moves
from spfde.topology.capacity import reserve_all
from spfde.topology.history import History, Report, Shift
from spfde.topology.layers import check, check_schedule, count_groups, highest, magnitude, sparse_layers
from spfde.topology.schedule import Constant
from spfde.topology.topk import keep_highest_in_groups
from spfde.topology.watch import Watch, finite_gradients


class Topology:
    """Moves the stored weights of a model's sparse layers during training.

    Call `step()` after every optimizer step and before zero_grad(). An update keeps values and every optimizer state
    tensor of kept weights in place; newborn weights and their state are 0; the Parameter objects and their shapes stay.
    Layers whose values do not require grad (frozen) are left alone. One seed gives one result, on every rank.

    A method overrides what differs: `_score` (what stays), `_grow` (what comes), `schedule` (how much moves), `_counts`
    (how many blocks each layer then holds).

    model: has spfde sparse layers. optimizer: built after spfde.sparsify. total_steps: optimizer steps of the whole
    training. every: optimizer steps between updates. drop_fraction: share of a layer's stored weights that an update
    moves at first, in [0, 1]; None: the method's own default. seed: of random growth.

    Raises:
        ValueError: an argument is out of range, the method has no use for it or for a layer's pattern, the model has no
            sparse layer, or the optimizer does not hold one's values.
    """

    # A method without a drop fraction (None) refuses one.
    default_drop: ClassVar[float | None] = 0.3
    # Growth looks at the gradients of weights that are not stored.
    grows_by_gradient: ClassVar[bool] = False
    # A weight that is dropped and grown in one update starts anew instead of staying as it was.
    forgets: ClassVar[bool] = False
    # Patterns that the method has no meaning for.
    refused: ClassVar[tuple[str, ...]] = ()
    # What `SparseLayer.transform` may be.
    transforms: ClassVar[tuple[type[nn.Module], ...]] = ()

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int = 100,
        drop_fraction: float | None = None,
        seed: int = 0,
    ) -> None:
        drop_fraction = check_schedule(self, total_steps, every, drop_fraction)
        self.layers = sparse_layers(model)
        check(self.layers, optimizer, self)
        self.optimizer, self.every, self.total_steps = optimizer, every, total_steps
        self.target = {name: layer.nnz for name, layer in self.layers.items()}
        self.schedule: Callable[[int], float] = Constant(drop_fraction or 0.0)
        self.reason = "no update yet"
        self._wrapped = isinstance(model, DistributedDataParallel)
        self._history = {name: History.born(layer) for name, layer in self.layers.items()}
        self._settled: set[str] = set()
        self._late = False
        self._step = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._watch = Watch()
        self._prepare()

    def step(self) -> bool:
        """Follows one optimizer step; True when a mask moved.

        An update that needs gradients waits for the next step when this one's are not finite (GradScaler skipped it).
        """
        self._step += 1
        self._every_step()
        moved = False
        if self._due(self._step):
            self._late = self._reads_gradient() and not finite_gradients(self.optimizer)
            moved = not self._late and self.update()
        self._watch.disarm()
        if self._step == self.total_steps and (trimmed := self._finish()):
            moved, self.reason = True, f"{type(self).__name__} trimmed {trimmed} weights at step {self._step}"
        self._prepare()
        return moved

    @property
    def armed(self) -> bool:
        """Whether the coming backward passes are watched: run them through the model itself, not a compiled copy."""
        return bool(self._watch.probes)

    def arm(self) -> None:
        """Watches the backward passes from now on, for an `update()` out of turn; `step()` arms by itself."""
        self._watch.arm(self._live())

    @torch.no_grad()
    def update(self) -> bool:
        """One update now, whatever the interval; True when a mask moved.

        Raises:
            ValueError: the method needs gradients that are not there.
        """
        moved = self._count_moved(self._rearrange())
        self.reason = f"{type(self).__name__} moved {moved} weights at step {self._step}"
        return moved > 0

    @torch.no_grad()
    def settle(self, module: nn.Module) -> list[str]:
        """Brings the layers inside `module` exactly to their target count and stops moving them; their names.

        For what is about to freeze: a frozen layer cannot be pruned to the target any more.
        """
        inside = set(module.modules())
        names = [name for name, layer in self.layers.items() if layer in inside and name not in self._settled]
        self._count_moved({name: self._trim(name, self.layers[name]) for name in names})
        self._settled.update(names)
        return names

    def report(self) -> Report:
        """What the updates so far did to every layer, and how much of it was ever explored (R_s)."""
        return Report.of(self.layers, self._history, self.explored, self._step)

    @property
    def explored(self) -> float:
        """R_s: the share of all weights of the sparse layers that was ever stored, in [0, 1]."""
        size = sum(layer.grid.size for layer in self.layers.values())
        return sum(history.ever for history in self._history.values()) / max(1, size)

    def state_dict(self) -> dict[str, Any]:
        """Step counter, targets, history and random state; the topology itself is in the model's state_dict."""
        return {
            "step": self._step,
            "late": self._late,
            "target": dict(self.target),
            "settled": sorted(self._settled),
            "history": {name: history.state_dict() for name, history in self._history.items()},
            "generator": self._generator.get_state(),
            "own": self._own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state_dict`'s values.

        Raises:
            ValueError: the state is of a model with other layers, or of another method.
        """
        if set(state["target"]) != set(self.layers):
            other = sorted(set(state["target"]) ^ set(self.layers))
            raise ValueError(f"expected the state of a model with the same sparse layers, got a difference in {other}")
        if set(state["own"]) != set(self._own_state()):
            raise ValueError(
                f"expected the state of {type(self).__name__} ({sorted(self._own_state())}), got {sorted(state['own'])}"
            )
        self._step, self._late = state["step"], state["late"]
        self.target = dict(state["target"])
        self._settled = set(state["settled"])
        self._history = {n: History.loaded(h, self.layers[n].values.device) for n, h in state["history"].items()}
        self._generator.set_state(state["generator"].cpu())
        self._load_own(state["own"])
        self._watch.disarm()
        self._prepare()

    # ---- what a method may override --------------------------------------------------------------------------------

    def _due(self, step: int) -> bool:
        """Whether an update follows this optimizer step."""
        return (step % self.every == 0 or self._late) and step < self.total_steps

    def _reads_gradient(self) -> bool:
        """Whether an update looks at gradients at all."""
        return self.grows_by_gradient

    def _every_step(self) -> None:
        """What happens after every optimizer step."""

    def _score(self, name: str, layer: SparseLayer) -> Tensor:
        """A score [nnz] per stored block; the lowest are dropped. By magnitude."""
        return magnitude(layer)

    def _stays(self, name: str, layer: SparseLayer, score: Tensor) -> Tensor:
        """Which stored blocks (slots, ascending) stay: all but the `schedule`'s share with the lowest scores.

        A group (for most patterns the layer) drops no more than it has room to regrow.
        """
        old, rule, grid = layer.positions(), layer.pattern, layer.grid
        group, groups = rule.groups(grid, old.device), rule.parts(grid)
        room = count_groups(group, groups) - count_groups(group, groups, old)
        return moves.without_lowest(score, group[old], room, int(self.schedule(self._step) * layer.nnz))

    def _all_stay(self, live: Mapping[str, SparseLayer], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`_stays` of every layer; a method whose counts depend on the scores asks for them here, once."""
        return {name: self._stays(name, layer, scores[name]) for name, layer in live.items()}

    def _counts(self, live: Mapping[str, SparseLayer], stays: Mapping[str, Tensor]) -> dict[str, int]:
        """How many blocks each layer holds after the update. As many as before."""
        return {name: layer.nnz for name, layer in live.items()}

    def _grow(self, name: str, layer: SparseLayer, kept: Tensor, need: Tensor, group: Tensor) -> Tensor:
        """`need[g]` positions of every group g outside `kept`. At random."""
        return moves.drawn(group, kept, need, self._generator)

    def _own_state(self) -> dict[str, Any]:
        """What a method remembers besides."""
        return {}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        """Takes back `_own_state`."""

    def _moved(self, name: str, layer: SparseLayer, source: Tensor) -> None:
        """Follows a change of one layer's slots: `source` as `permute` takes it."""

    # ---- how an update happens -------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Watches the next step if an update follows it."""
        if self.grows_by_gradient and self._due(self._step + 1):
            self.arm()

    def _live(self) -> dict[str, SparseLayer]:
        """The layers that may move."""
        return {n: layer for n, layer in self.layers.items() if n not in self._settled and layer.values.requires_grad}

    def _rearrange(self) -> dict[str, Shift | None]:
        """Moves the layers; with fixed counts, in patterns of one group, no GPU is waited for."""
        live = self._watch.seen(self._live()) if self.grows_by_gradient else self._live()
        score = {name: self._score(name, layer) for name, layer in live.items()}
        stay = self._all_stay(live, score)
        count = self._counts(live, stay)
        shifts = {n: self._exchange(n, layer, score[n], stay[n], count[n]) for n, layer in live.items()}
        self._watch.disarm()
        return shifts

    def _count_moved(self, shifts: Mapping[str, Shift | None]) -> int:
        """Reads back what moved, once for all layers, and remembers it; how many weights changed place."""
        moved, there = 0, {name: shift for name, shift in shifts.items() if shift is not None}
        for (name, shift), born in zip(there.items(), read([shift.born for shift in there.values()]), strict=True):
            self._record(name, shift, born)
            moved += (max(shift.before, shift.after) - shift.after + born) * prod(self.layers[name].grid.block)
        return moved

    def _record(self, name: str, shift: Shift, born: int) -> None:
        """Adds a change to the layer's history."""
        self._history[name].record(self._step, shift.before, shift.after, born)

    def _exchange(self, name: str, layer: SparseLayer, score: Tensor, stays: Tensor, count: int) -> Shift | None:
        """Keeps what `stays`, grows the rest up to `count` blocks; None where nothing is to change."""
        old, rule, grid = layer.positions(), layer.pattern, layer.grid
        group, groups, kept = rule.groups(grid, old.device), rule.parts(grid), old[stays]
        if count == layer.nnz:
            want = count_groups(group, groups, old)
        else:  # a group may have too many
            want = rule.quota(grid, count, old.device)
            kept = kept[keep_highest_in_groups(score[stays], group[kept], want)]
        need = want - count_groups(group, groups, kept)
        grown = self._grow(name, layer, kept, need, group) if int(need.sum()) else kept.new_empty(0)
        if not grown.numel() and kept.numel() == old.numel():
            return None
        return self._move(name, layer, moves.ascending(grid.size, kept, grown), grown if self.forgets else None)

    def _trim(self, name: str, layer: SparseLayer) -> Shift | None:
        """Prunes a layer to its target count by magnitude."""
        if layer.nnz <= self.target[name]:
            return None
        score = magnitude(layer)
        stays = highest(layer, score, self.target[name])
        return self._exchange(name, layer, score, stays, self.target[name])

    @torch.no_grad()
    def _finish(self) -> int:
        """The last step of the training: exactly the target counts; how many weights went."""
        return self._count_moved({name: self._trim(name, layer) for name, layer in self._live().items()})

    def _move(self, name: str, layer: SparseLayer, positions: Tensor, newborn: Tensor | None = None) -> Shift:
        """Changes a layer's positions and carries its optimizer state along."""
        shape, before = layer.values.shape, layer.nnz
        source = layer._move(positions, newborn)
        for state in self.optimizer.state.get(layer.values, {}).values():
            if isinstance(state, Tensor) and state.shape == shape:
                permute(state, source)
        self._moved(name, layer, source)
        self._history[name].see(positions)
        return Shift(before, layer.nnz, (source[: layer.nnz] < 0).count_nonzero())

    def _reserve(self, capacity: Mapping[str, int]) -> None:
        """Makes room for that many blocks in each layer, as far as it has them."""
        reserve_all(self.layers, capacity, self.optimizer, self._wrapped)
