"""What freezers share that decide as the training goes: front to back, at boundaries, each decision with its reason."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

from torch import nn

from spfde._ranks import Ranks
from spfde.freezing.block import FreezeBlock, check_freezable
from spfde.freezing.checks import LEAST, check_blocks, check_share, check_whole, trainable_share
from spfde.freezing.costs import training_flops
from spfde.freezing.masks import MaskWatch
from spfde.freezing.report import FreezeReport, Sets
from spfde.freezing.schedule import Change, FreezeSchedule
from spfde.levers import Answer, Backward, Decision, EpochEnd, EpochStart, Event, Run


@dataclass(frozen=True)
class Verdict:
    """Whether a block may freeze now, and why, or why not."""

    freeze: bool
    reason: str


class _Boundary(NamedTuple):
    """What a boundary between epochs does. decided: whether it was one at which to decide."""

    decided: bool = False
    due: tuple[FreezeBlock, ...] = ()
    back: tuple[FreezeBlock, ...] = ()
    decisions: tuple[Decision, ...] = ()
    reason: str = ""


class Freezer(ABC):
    """Freezes blocks front to back, whichever its rule finds ready at a boundary between epochs.

    A block is only asked about once all in front of it are frozen or found ready, so what is frozen is always a front
    of the network, whose backward pass falls away. In a loop of your own call `begin_epoch(epoch)` before each epoch
    and `observe(inputs, lr=lr)` in each step, between its last backward pass and `optimizer.step()`; `fit` does both.

    A subclass looks at each step in `_note` and answers in `_verdict`, which changes nothing; `_give_back` may have
    blocks unfrozen, all of them or, by `_stays`, those behind the first few. Its own state goes through `_own_state`
    and `_load_own`. When a mask has moved, `_restart` comes before the next `_note`, so that no window of observations
    lasts across a change of the network itself.

    Ranks that train one model (torch.distributed's default group) decide alike, whatever each has seen: a block freezes
    where it is ready on every one, and is given back where one says so. So `begin_epoch` and `due` are called on
    all of them.

    Args:
        model: the network in training.
        blocks: its blocks, from `spfde.freezing.blocks`.
        interval: epochs between two boundaries at which it decides.
        fraction: share of the blocks that may freeze, in (0, 1].

    Raises:
        TypeError: `blocks` are not FreezeBlocks.
        ValueError: an argument is out of its range, the blocks are not those of `model` as it is now, one that may
            freeze shares state with an active part, or nothing would be left to train, or less than 5% of the
            parameters although `fraction` is below 1.
    """

    needs: Collection[type[Event]] = frozenset({Backward, EpochStart, EpochEnd})

    def __init__(
        self, model: nn.Module, blocks: Sequence[FreezeBlock], *, interval: int = 1, fraction: float = 2 / 3
    ) -> None:
        check_whole("interval", interval, 1)
        check_share("fraction", fraction, "(0, 1]", 2 / 3)
        check_blocks(blocks, model)
        self.model, self.blocks, self.interval = model, tuple(blocks), interval
        self._most = max(1, math.floor(fraction * len(blocks) + 0.5))
        for count in range(self._most):  # each stage: what is frozen by then may share nothing with the rest
            check_freezable(blocks[: count + 1], model)
        share = trainable_share(model, self.blocks[: self._most])
        if share < LEAST and fraction < 1:
            raise ValueError(
                f"expected a fraction that leaves {LEAST:.0%} of the parameters to train, got {share:.1%} with "
                f"{fraction:.3g}; try a smaller one, or 1 if that is what you want"
            )
        self._masks, self._ranks = MaskWatch(model), Ranks()
        self._epoch = -1  # the last one begun
        self._steps = 0
        self._frozen: list[str] = []
        self._changes: list[Change] = []
        self._decisions: tuple[Decision, ...] = ()
        self._reason = ""

    # ---- what a subclass says ---------------------------------------------------------------------------------------

    @abstractmethod
    def _verdict(self, block: FreezeBlock, epoch: int) -> Verdict:
        """Whether `block`, at the front of what is active, may freeze before `epoch`."""

    def _give_back(self, epoch: int) -> str | None:
        """Why frozen blocks go back to the training before `epoch`; None: they do not."""
        return None

    def _stays(self, epoch: int) -> int:
        """How many of the frozen blocks, from the first on, stay frozen where `_give_back` says why others do not."""
        return 0

    def _note(self, inputs: Any, lr: float | None) -> None:  # noqa: B027 (optional)
        """Looks at a step. inputs, lr: as given to `observe`."""

    def _restart(self) -> None:  # noqa: B027 (optional)
        """Forgets what it has seen: the masks have moved."""

    def _gave_back(self) -> None:
        """Goes on after blocks were given back; unless overridden, as after a move of the masks."""
        self._restart()

    def _decided(self) -> None:  # noqa: B027 (optional)
        """Goes on after a boundary: what it was decided by may be forgotten."""

    def _prepare(self, run: Run) -> None:  # noqa: B027 (optional)
        """Gets ready for an epoch under `fit`: what a loop of your own gives to `observe` as inputs comes from here."""

    def _own_state(self) -> dict[str, Any]:
        """What a resumed freezer needs to go on, in plain values and tensors."""
        return {}

    def _load_own(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (optional)
        """Takes over `_own_state`'s values, or raises and changes nothing."""

    # ---- in a loop of your own --------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> list[str]:
        """Freezes what is ready before `epoch` begins, or gives blocks back; names of the blocks frozen now."""
        boundary = self._boundary(epoch)
        for block in boundary.back:
            block.unfreeze()
        for block in boundary.due:
            block.freeze()
        self._cross(epoch, boundary)
        return [block.name for block in boundary.due]

    def observe(self, inputs: Any = None, *, lr: float | None = None) -> None:
        """Takes note of a step whose gradients are complete, and not clipped yet.

        Args:
            inputs: of the network in this step; for freezers that compare its outputs.
            lr: the learning rate of this step; for freezers that follow it.
        """
        if self._masks.moved():
            self._restart()
        self._steps += 1
        self._note(inputs, lr)

    def end_epoch(self) -> None:  # noqa: B027 (optional)
        """Nothing to note: decisions are made when an epoch begins."""

    def due(self, epoch: int) -> list[FreezeBlock]:
        """Blocks that `begin_epoch(epoch)` would freeze, front to back. Changes nothing."""
        return list(self._boundary(epoch).due)

    # ---- what it says -----------------------------------------------------------------------------------------------

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the blocks that are frozen now, in freezing order."""
        return tuple(self._frozen)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What the last boundary did, and why."""
        return self._decisions

    @property
    def reason(self) -> str:
        """Why the first active block was not frozen at the last boundary, or what froze or thawed there."""
        return self._reason

    def report(self) -> FreezeReport:
        """The timeline of its blocks, its plan if it has one, and what both save.

        Of a run's records, `freezer.report().after(result.epochs)` knows what was saved in seconds too.
        """
        return FreezeReport(
            method=type(self).__name__,
            blocks=tuple(block.name for block in self.blocks),
            planned=self._planned(),
            done=tuple(FreezeSchedule(tuple(self._changes), 0.0, "").sets(self._epoch + 1)),
            flops=training_flops(self.blocks),
            reason=self._reason,
        )

    def _planned(self) -> Sets:
        """What is frozen in each epoch of the whole training, where that is known."""
        return ()

    # ---- under fit --------------------------------------------------------------------------------------------------

    def on(self, event: Event, run: Run) -> Answer:
        """Looks at every step, and freezes or gives back through the run at the start of an epoch.

        After the last epoch it says why if nothing ever froze.
        """
        if isinstance(event, Backward):
            self.observe(lr=max(group["lr"] for group in run.optimizer.param_groups))
        if isinstance(event, EpochEnd) and event.epoch == run.epochs - 1 and not self._changes:
            return (Decision("freeze", "froze nothing", self._reason),)
        if not isinstance(event, EpochStart):
            return None
        boundary = self._boundary(event.epoch)
        run.unfreeze(block.name for block in boundary.back)
        run.freeze(block.name for block in boundary.due)
        self._cross(event.epoch, boundary)
        self._prepare(run)
        return boundary.decisions

    # ---- boundaries -------------------------------------------------------------------------------------------------

    @property
    def _active(self) -> tuple[FreezeBlock, ...]:
        """The blocks that may freeze and are not frozen, front to back."""
        return self.blocks[len(self._frozen) : self._most]

    def _boundary(self, epoch: int) -> _Boundary:
        check_whole("epoch", epoch, 0)
        if epoch <= self._epoch or epoch % self.interval:
            return _Boundary(reason=self._reason)
        why = self._give_back(epoch) if self._frozen else None
        stays = len(self._frozen) if why is None else self._stays(epoch)
        leaving = [place >= stays for place in range(len(self._frozen))]
        leaving = self._ranks.agree(leaving, any_rank=True) if leaving else []
        if any(leaving):
            why = why or "another rank says so"
            back = self.blocks[leaving.index(True) : len(self._frozen)]
            text = f"gave back {', '.join(block.name for block in back)}"
            decision = Decision("unfreeze", text, why)
            return _Boundary(True, back=back, decisions=(decision,), reason=f"{text}: {why}")
        due, decisions, reason = [], [], self._reason
        for block in self._active:
            verdict = self._verdict(block, epoch)
            if not self._ranks.agree([verdict.freeze], any_rank=False)[0]:
                held = "it is not ready on another rank" if verdict.freeze else verdict.reason
                reason = f"{block.name} stays active: {held}"
                break
            due.append(block)
            decisions.append(Decision("freeze", f"froze {block.name}", verdict.reason))
            reason = f"froze {block.name}: {verdict.reason}"
        return _Boundary(True, tuple(due), decisions=tuple(decisions), reason=reason)

    def _cross(self, epoch: int, boundary: _Boundary) -> None:
        self._epoch = max(epoch, self._epoch)
        self._changes += [
            *(Change(epoch, block.name, False) for block in boundary.back),
            *(Change(epoch, block.name) for block in boundary.due),
        ]
        if boundary.back:
            self._frozen = self._frozen[: -len(boundary.back)]
            self._gave_back()
        self._frozen += [block.name for block in boundary.due]
        self._decisions, self._reason = boundary.decisions, boundary.reason
        if boundary.decided:
            self._decided()

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """How far it went and what it has seen, in plain values and tensors."""
        return {
            **self._identity(),
            "epoch": self._epoch,
            "steps": self._steps,
            "frozen": list(self._frozen),
            "changes": [list(astuple(change)) for change in self._changes],
            "reason": self._reason,
            "masks": self._masks.state_dict(),
            "own": self._own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`: exactly the blocks frozen then are frozen afterwards.

        Raises:
            ValueError: `state` is not that of such a freezer of these blocks, or is damaged; nothing has changed then.
        """
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise ValueError(
                    f"expected a state with {key} {mine!r}, got {state.get(key)!r}; try the freezer it was saved from"
                )
        frozen, names = state.get("frozen"), [block.name for block in self.blocks[: self._most]]
        if not isinstance(frozen, list) or frozen != names[: len(frozen)]:
            raise ValueError(f"expected frozen blocks at the front of {names}, got {frozen}; try another checkpoint")
        try:
            epoch, steps, reason, masks = (state[key] for key in ("epoch", "steps", "reason", "masks"))
            changes = [Change(*each) for each in state["changes"]]
            watch = MaskWatch(self.model)
            watch.load_state_dict(masks)
            self._load_own(state["own"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"expected a whole state, got a damaged one ({error!r}); try another checkpoint"
            ) from error
        for block in self.blocks:
            if block.name in frozen:
                block.freeze()
            elif block.name in self._frozen:
                block.unfreeze()
        self._masks, self._decisions, self._changes = watch, (), changes
        self._epoch, self._steps, self._reason, self._frozen = epoch, steps, reason, list(frozen)

    def _identity(self) -> dict[str, Any]:
        return {
            "freezer": type(self).__name__,
            "interval": self.interval,
            "most": self._most,
            "blocks": [block.name for block in self.blocks],
        }

    def __str__(self) -> str:
        count = f"{len(self._frozen)} of {len(self.blocks)} blocks frozen, at most {self._most}"
        return f"{type(self).__name__}: {count}\n{self._reason}".rstrip()
