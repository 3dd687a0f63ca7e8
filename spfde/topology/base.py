"""The frame of dynamic sparse training: drop score x grow score x schedule x counts of the layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spfde._ranks import Ranks
from spfde.levers import Answer, Decision, EpochStart, Event, Run, Step
from spfde.nn import SparseLayer
from spfde.sparse.no_sync import to_host
from spfde.topology.following import Followers
from spfde.topology.history import History, Shift
from spfde.topology.layers import LayerState, check_layers, sparse_layers
from spfde.topology.optimizer_state import check
from spfde.topology.options import Option, checked, documented, options_of, signature_with
from spfde.topology.probes import GradientProbes
from spfde.topology.report import Report
from spfde.topology.schedule import Schedule
from spfde.topology.sharded import gathered, is_sharded, reshard
from spfde.topology.stepping import Stepping
from spfde.topology.wrappers import bare, check_reduced, check_sharded, renamed, wrapper_of


class Topology(Stepping):
    """Moves the stored weights of a model's sparse layers during training.

    In a loop of your own call `step()` after every optimizer step and before zero_grad(). As a lever (`spfde.levers`)
    it does so by itself. An update keeps values and every optimizer state tensor of kept weights in place; grown
    weights and their state are 0; the Parameter objects and their shapes stay. Layers whose values do not require grad
    (frozen) are left alone, and move again once they do. One seed gives one result, on every rank.

    A method overrides what differs in its `UpdateRule` and declares its own options (`spfde.topology.option`).

    Args:
        model: has spfde sparse layers.
        optimizer: built after spfde.sparsify.
        total_steps: optimizer steps of the whole training.
        every: optimizer steps between updates.
        drop_fraction: share of a layer's stored weights that an update moves at first, in [0, 1].
        seed: of random growth.
        every_epochs: epochs between updates, in place of `every`: for a loop that tells each epoch's number of steps
            by `begin_epoch`, as the levers' does. An update follows the last step of an epoch.
        process_group: the ranks that train together; None: DistributedDataParallel's, else the default group.

    Raises:
        ValueError: an argument is out of range, the method does not have it or has no meaning for a layer's pattern,
            the model has no sparse layer, or is sharded and the method cannot move that, the optimizer does not hold
            one's values, or what it remembers cannot follow a mask.
    """

    needs: Collection[type[Event]] = frozenset({EpochStart, Step})

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, value in vars(cls).items():
            if isinstance(value, Option) and hasattr(Topology, name):
                raise TypeError(f"expected another name for option {name!r} of {cls.__name__}, which a topology has")
        if cls.__init__ is Topology.__init__:
            drop = ... if cls.default_drop is None else cls.default_drop
            defaults = {"every": cls.default_every, "drop_fraction": drop}
            cls.__signature__ = signature_with(signature(Topology), cls, defaults)
        if "__doc__" in vars(cls):
            cls.__doc__ = documented(cls.__doc__, cls)

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        every: int | None = None,
        drop_fraction: float | None = None,
        seed: int = 0,
        every_epochs: int | None = None,
        process_group: Any = None,
        **options: Any,
    ) -> None:
        vars(self).update(checked(type(self), options))
        self.check_options()
        if every is not None and every_epochs is not None:
            raise ValueError(f"expected every or every_epochs, got both ({every} and {every_epochs}), try leaving one")
        self.schedule = Schedule(total_steps, self.default_every if every is None else every, every_epochs)
        self.drop_fraction = self._checked_drop(drop_fraction)
        self.layers = sparse_layers(model)
        check_sharded(model, self)
        self._root = model
        self._model = model if any(map(is_sharded, self.layers.values())) else None
        check_layers(self.layers, optimizer, self)
        wrapper = wrapper_of(model, self.layers)
        check_reduced(wrapper, self.layers)
        if process_group is None and wrapper is not None:
            process_group = wrapper.process_group
        self._ranks, self._wrapped = Ranks(process_group), not (wrapper is self._model is None)
        self._probes = GradientProbes(self._ranks)
        self.optimizer = optimizer
        self.target = {name: layer.nnz for name, layer in self.layers.items()}
        self.reason = "no update yet"
        self._history = {name: History.start(layer) for name, layer in self.layers.items()}
        self._late = False
        self._told = False
        self.steps_done = 0
        self.generator = torch.Generator().manual_seed(seed)
        self._followers = Followers(self.layers)
        self.setup()
        self._prepare()

    @classmethod
    def options(cls) -> dict[str, Option]:
        """The options that this method has of its own, by name: default, kind, range and help."""
        return options_of(cls)

    # ---- in a training ---------------------------------------------------------------------------------------------

    def on(self, event: Event, run: Run) -> Answer:
        """Follows an event of a training; decisions where a mask moved."""
        if isinstance(event, EpochStart):
            self.begin_epoch(event.epoch, event.steps, run.epochs)
        elif isinstance(event, Step) and (self.step() if event.taken else self.skip()):
            count, unit = self.schedule.every_epochs, "epochs"
            if count is None:
                count, unit = self.schedule.every, "optimizer steps"
            return [Decision("topology", self.reason, f"due every {count} {unit}")]
        return None

    @torch.no_grad()
    def update(self) -> bool:
        """One update now, whatever the interval; True when a mask moved.

        Raises:
            ValueError: the method needs gradients that are not there, or the optimizer's state cannot follow.
        """
        with self._whole():
            check(self.optimizer, self.live())
            moved = self._count_moved(self._rearrange())
        self.reason = f"{type(self).__name__} moved {moved} weights at step {self.steps_done}"
        return moved > 0

    def arm(self) -> None:
        """Watches the backward passes from now on, for an `update()` out of turn; `step()` arms by itself."""
        if self._model is not None:
            reshard(self._model)
        super().arm()

    @torch.no_grad()
    def settle(self, module: nn.Module) -> list[str]:
        """Brings the layers inside `module` exactly to their target count, now; their names.

        For what is about to freeze, as a frozen layer cannot be pruned to the target any more. What stops a layer is
        that its values do not require grad; once they do again, its mask moves again.
        """
        inside = set(module.modules())
        layers = {name: layer for name, layer in self.live().items() if layer in inside}
        with self._whole():
            self._count_moved({name: self._trim(name, layer) for name, layer in layers.items()})
        return list(layers)

    def report(self) -> Report:
        """What the updates so far did to every layer, and how much of it was ever explored (R_s)."""
        return Report.of(self.layers, self._history, self.explored, self.steps_done)

    @property
    def explored(self) -> float:
        """R_s: the share of all weights of the sparse layers that was ever stored, in [0, 1]."""
        size = sum(layer.grid.size for layer in self.layers.values())
        return sum(history.ever for history in self._history.values()) / max(1, size)

    def state_dict(self) -> dict[str, Any]:
        """Step counter, targets, history and random state; the topology itself is in the model's state_dict."""
        return {
            "step": self.steps_done,
            "late": self._late,
            "schedule": self.schedule.state_dict(),
            "target": dict(self.target),
            "history": {name: history.state_dict() for name, history in self._history.items()},
            "generator": self.generator.get_state(),
            "own": self.own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`'s values.

        Raises:
            ValueError: the state is of a model with other layers, or of another method.
        """
        state = self._named_as_here(state)
        if set(state["target"]) != set(self.layers):
            other = sorted(set(state["target"]) ^ set(self.layers))
            raise ValueError(f"expected the state of a model with the same sparse layers, got a difference in {other}")
        if set(state["own"]) != set(self.own_state()):
            raise ValueError(
                f"expected the state of {type(self).__name__} ({sorted(self.own_state())}), got {sorted(state['own'])}"
            )
        self.steps_done, self._late, self._told = state["step"], state["late"], True
        self.schedule = replace(self.schedule, **state["schedule"])
        self.target = dict(state["target"])
        self._history = {n: History.loaded(h, self.layers[n].values.device) for n, h in state["history"].items()}
        self.generator.set_state(state["generator"].cpu())
        self.load_own_state(state["own"])
        self._probes.disarm()
        self._prepare()

    def _named_as_here(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state of the same model that was wrapped otherwise, under the names that its layers have here."""
        here = {bare(name): name for name in self.layers}
        names = {name: here.get(bare(name), name) for name in state["target"]}
        same = set(names) == set(self.layers) or len(set(names.values())) < len(names)
        return state if same else renamed(dict(state), names)

    # ---- how an update happens -------------------------------------------------------------------------------------

    def _whole(self) -> AbstractContextManager[None]:
        """Inside of it each rank has all stored weights."""
        if self._model is None:
            return nullcontext()
        return gathered(self._model, self.layers.values(), self.optimizer)

    def _checked_drop(self, fraction: float | None) -> float:
        if self.default_drop is None and fraction is not None:
            raise ValueError(
                f"expected no drop_fraction, which {type(self).__name__} does not have, got {fraction}, try "
                f"leaving it out"
            )
        fraction = self.default_drop if fraction is None else fraction
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"expected drop_fraction in [0, 1] (share of the stored weights), got {fraction}")
        return fraction or 0.0

    @torch.no_grad()
    def finish(self) -> int:
        """The end of the training: exactly the target counts; how many weights went."""
        with self._whole():
            return self._count_moved({name: self._trim(name, layer) for name, layer in self.live().items()})

    def _rearrange(self) -> dict[str, Shift | None]:
        """Moves the layers; with fixed counts, in patterns of one group, no GPU is waited for."""
        live = self._probes.seen(self.live()) if self.grows_by_gradient else self.live()
        layers = {name: LayerState.of(name, layer) for name, layer in live.items()}
        scores = {name: self.rated(layer.module, self.score(layer)) for name, layer in layers.items()}
        kept = {name: _with_frozen(layers[name], slots) for name, slots in self.keep_all(layers, scores).items()}
        counts = self.counts(layers, kept)
        shifts = {n: self.exchange(layer, scores[n], kept[n], counts[n]) for n, layer in layers.items()}
        self._probes.disarm()
        return shifts

    def _trim(self, name: str, layer: SparseLayer) -> Shift | None:
        """Prunes a layer to its target count."""
        if layer.nnz <= self.target[name]:
            return None
        state = LayerState.of(name, layer)
        score = self.rated(layer, self.final_score(state))
        return self.exchange(state, score, state.highest(score, self.target[name]), self.target[name])

    def _count_moved(self, shifts: Mapping[str, Shift | None]) -> int:
        """Reads back what moved, once for all layers, and remembers it; how many weights changed place."""
        moved, there = 0, {name: shift for name, shift in shifts.items() if shift is not None}
        for (name, shift), new in zip(there.items(), to_host([shift.new for shift in there.values()]), strict=True):
            self.record(name, shift, new)
            moved += (max(shift.before, shift.after) - shift.after + new) * prod(self.layers[name].grid.block)
        return moved

    def record(self, name: str, shift: Shift, new: int) -> None:
        """Adds a change to the layer's history."""
        self._history[name].record(self.steps_done, shift.before, shift.after, new)


def _with_frozen(layer: LayerState, kept: Tensor) -> Tensor:
    """The slots that a method keeps, and those that are frozen by themselves (ascending)."""
    live = layer.module.plan.live
    return kept if live is None else torch.cat([kept, live.held]).unique()
