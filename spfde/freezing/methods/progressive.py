"""Progressive freezing: front to back on a schedule that meets a budget of FLOPs or seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from spfde._names import unknown
from spfde.freezing.block import FreezeBlock, check_freezable
from spfde.freezing.checks import LEAST, check_blocks, check_share, check_whole, trainable_share
from spfde.freezing.costs import Costs, in_flops, in_seconds, training_flops
from spfde.freezing.report import FreezeReport
from spfde.freezing.schedule import Change, FreezeSchedule
from spfde.freezing.schemes import OWN_OPTIONS, SCHEMES, to_freeze
from spfde.freezing.seconds import non_increasing
from spfde.levers import Answer, Decision, EpochStart, Event, Run

TARGETS = ("flops", "seconds")


class Progressive:
    """Freezes blocks front to back, so that training costs `flops_reduction` fewer FLOPs, or seconds.

    With the target in FLOPs, counted as saved are the backward FLOPs of each block (behind a part that stays active
    only those of the weight gradients), at its density now, times the epochs it stays frozen, out of the forward and
    backward FLOPs of the whole model, stem and head included, over all epochs. In seconds, it is what the step took
    less with each block frozen in a measurement.

    Args:
        model: the network in training.
        blocks: its blocks, from `spfde.freezing.blocks`.
        epochs: length of the training.
        interval: epochs between two freezes; that of the topology updates, so that both fall on the same
            boundary.
        flops_reduction: share of all training FLOPs (of the seconds, with such a target) to save, in (0, 1).
        fraction: share of the blocks to freeze, in (0, 1].
        scheme: "single-shot", the first block freezes as late as the target allows, at a multiple of `interval`, then
            one every `interval` epochs, each once; "single-shot-resume", all of it `thaw_epochs` earlier, and every
            block active again for the last `thaw_epochs`; "periodic", front blocks are updated in one epoch of 4,
            those in the middle in one of 2; "delayed-periodic", the same after `delay` epochs.
        thaw_epochs: of single-shot-resume: a multiple of `interval`; None: a tenth of the training.
        delay: of delayed-periodic: epochs in which all trains; None: a quarter of the training.
        target: "flops" or "seconds".
        seconds: with target="seconds" those of a step with the first 0, 1, ... blocks frozen, as
            `spfde.freezing.step_seconds` measures them. They are kept in the state, and a state's win.

    Raises:
        TypeError: `blocks` are not FreezeBlocks.
        ValueError: an argument is out of its range or not one of the scheme, the target cannot be reached, the blocks
            are not those of `model` as it is now, a planned block shares state with an active part, or nothing would be
            left to train, or less than 5% of the parameters although `fraction` is below 1.

    Source: SpFDE (NeurIPS 2022), "Layer Freezing Algorithm" and Appendix B.
    """

    needs: Collection[type[Event]] = frozenset({EpochStart})

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[FreezeBlock],
        epochs: int = 160,
        interval: int = 5,
        flops_reduction: float = 0.20,
        fraction: float = 2 / 3,
        scheme: str = "single-shot",
        thaw_epochs: int | None = None,
        delay: int | None = None,
        target: str = "flops",
        seconds: Sequence[float] | None = None,
    ) -> None:
        _check_arguments(epochs, interval, flops_reduction, fraction)
        if scheme not in SCHEMES:
            raise unknown("scheme", scheme, SCHEMES)
        own = _own_options(scheme, epochs, thaw_epochs=thaw_epochs, delay=delay)
        check_blocks(blocks, model)
        self.blocks = tuple(blocks)
        costs = _costs(target, seconds, self.blocks, fraction)
        self._seconds = None if seconds is None else tuple(map(float, seconds))
        self._scheme = scheme
        self._epochs = epochs
        names = [block.name for block in blocks]
        schedule = SCHEMES[scheme](
            names,
            costs.credits,
            costs.total,
            epochs=epochs,
            interval=interval,
            flops_reduction=flops_reduction,
            fraction=fraction,
            unit=costs.unit,
            **own,
        )
        for count in range(len({name for _, name in schedule.freezes})):
            check_freezable(blocks[: count + 1], model)  # each stage may share nothing with the rest
        final = schedule.frozen(epochs - 1)
        share = trainable_share(model, [block for block in blocks if block.name in final])
        if share < LEAST and fraction < 1:
            raise ValueError(
                f"expected a plan that leaves {LEAST:.0%} of the parameters to train, got {share:.1%} after freezing "
                f"{', '.join(final)}; try a smaller fraction, or 1 if that is what you want"
            )
        saving = schedule.saves(names, costs.steps, epochs)
        exact = "" if seconds is not None else f"; {saving:.1%} counting every gradient that is then not computed"
        reason = f"{schedule.reason}{exact}; {share:.1%} of the parameters stay trainable to the end"
        self._schedule: FreezeSchedule = replace(schedule, saving=saving, reason=reason)
        self._frozen: list[str] = []
        self._epoch = -1  # the last one begun

    @property
    def plan(self) -> tuple[tuple[int, str], ...]:
        """(epoch, block name) of every freeze, in order; `print(freezer)` shows it, and what is given back when."""
        return self._schedule.freezes

    @property
    def first_epoch(self) -> int:
        """Epoch before which the first block freezes."""
        return self.plan[0][0]

    @property
    def reason(self) -> str:
        """Why the plan starts when it starts, with its saving and the share of parameters that never freezes."""
        return self._schedule.reason

    @property
    def saving(self) -> float:
        """Share of the training's FLOPs, of all that the steps compute, or of its seconds that the plan saves."""
        return self._schedule.saving

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the blocks that are frozen now, in freezing order."""
        return tuple(self._frozen)

    @property
    def horizons(self) -> dict[str, float]:
        """The fraction of the training at which each block that freezes once does.

        One that freezes again and again has the learning rate of what never freezes, as one that is given back has.
        """
        times = Counter(name for _, name in self.plan)
        return {name: epoch / self._epochs for epoch, name in self.plan if times[name] == 1}

    def due(self, epoch: int) -> list[FreezeBlock]:
        """Blocks that `begin_epoch(epoch)` would freeze, front to back. Changes nothing."""
        check_whole("epoch", epoch, 0, self._epochs - 1)
        wanted = self._schedule.frozen(epoch)
        return [block for block in self.blocks if block.name in wanted and block.name not in self._frozen]

    def begin_epoch(self, epoch: int) -> list[str]:
        """Freezes what is due before `epoch` begins, and gives back what is; names of the blocks frozen now."""
        due, back = self.due(epoch), self._back(epoch)
        for block in due:
            block.freeze()
        for block in self.blocks:
            if block.name in back:
                block.unfreeze()
        return self._note(epoch, due, back)

    def observe(self, inputs: Any = None, *, lr: float | None = None) -> None:
        """Nothing to note, as in freezers that look at steps: the plan is made."""

    def end_epoch(self) -> None:
        """Nothing to note: the schedule was fixed at the start."""

    def report(self) -> FreezeReport:
        """The timeline of its blocks, planned and up to now, and what that saves.

        Of a run's records, `freezer.report().after(result.epochs)` knows what was saved in seconds too.
        """
        return FreezeReport(
            method=f"Progressive, {self._scheme}",
            blocks=tuple(block.name for block in self.blocks),
            planned=tuple(self._schedule.sets(self._epochs)),
            done=tuple(self._schedule.sets(self._epoch + 1)),
            flops=training_flops(self.blocks),
            seconds=non_increasing(self._seconds or ()),
            reason=self.reason,
        )

    def on(self, event: Event, run: Run) -> Answer:
        """Freezes and gives back through the run what is due at the start of an epoch."""
        if not isinstance(event, EpochStart):
            return None
        due, back, decisions = self.due(event.epoch), self._back(event.epoch), []
        if back:
            run.unfreeze(back)
            decisions.append(Decision("unfreeze", f"gave back {', '.join(back)}", self.reason))
        if due:
            names = [block.name for block in due]
            run.freeze(names)
            decisions.append(Decision("freeze", f"froze {', '.join(names)}", self.reason))
        self._note(event.epoch, due, back)
        return decisions

    def _back(self, epoch: int) -> list[str]:
        """Names of the blocks that the schedule gives back by `epoch`."""
        wanted = self._schedule.frozen(epoch)
        return [name for name in self._frozen if name not in wanted]

    def _note(self, epoch: int, due: Sequence[FreezeBlock], back: Sequence[str]) -> list[str]:
        self._epoch = epoch
        names = [block.name for block in due]
        self._frozen = [*(name for name in self._frozen if name not in back), *names]
        return names

    def state_dict(self) -> dict[str, Any]:
        """The schedule and how far it went, in plain values."""
        return {
            **self._identity(),
            "changes": [[change.epoch, change.block, change.frozen] for change in self._schedule.changes],
            "saving": self.saving,
            "reason": self.reason,
            "frozen": list(self._frozen),
            "epoch": self._epoch,
            "seconds": None if self._seconds is None else list(self._seconds),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over schedule and progress of `state`: exactly the blocks frozen then are frozen afterwards.

        Raises:
            ValueError: `state` is not that of a freezer with the same scheme, epochs and blocks.
        """
        schedule, frozen, epoch = self._read(state)
        for block in self.blocks:
            if block.name in frozen:
                block.freeze()
            elif block.name in self._frozen:
                block.unfreeze()
        self._schedule, self._frozen, self._epoch = schedule, frozen, epoch
        self._seconds = tuple(seconds) if (seconds := state.get("seconds")) else None

    def _identity(self) -> dict[str, Any]:
        return {
            "scheme": self._scheme,
            "epochs": self._epochs,
            "blocks": [block.name for block in self.blocks],
        }

    def _read(self, state: Mapping[str, Any]) -> tuple[FreezeSchedule, list[str], int]:
        expected = self._identity()
        for key, mine in expected.items():
            if state.get(key) != mine:
                raise ValueError(
                    f"expected a state with {key} {mine!r}, got {state.get(key)!r}; try the recipe it was saved with"
                )
        changes = tuple(Change(*each) for each in state["changes"])
        named = list(dict.fromkeys(change.block for change in changes))
        if not named or named != expected["blocks"][: len(named)]:
            raise ValueError(
                f"expected changes of the first of {expected['blocks']}, got some of {named}; try another checkpoint"
            )
        schedule = FreezeSchedule(changes, state["saving"], state["reason"])
        if state["frozen"] not in map(list, schedule.sets(self._epochs)):
            raise ValueError(f"expected frozen blocks as of an epoch, got {state['frozen']}; try another checkpoint")
        epoch = state.get("epoch")
        if not isinstance(epoch, int) or not -1 <= epoch < self._epochs:
            raise ValueError(f"expected an epoch in [-1, {self._epochs}), got {epoch!r}; try another checkpoint")
        return schedule, list(state["frozen"]), epoch

    def __str__(self) -> str:
        return str(self._schedule)


def _costs(target: str, seconds: Sequence[float] | None, blocks: Sequence[FreezeBlock], fraction: float) -> Costs:
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    if (target == "seconds") != (seconds is not None):
        raise ValueError(
            f"expected seconds with target='seconds' and with no other, got target={target!r} and seconds={seconds!r}; "
            "try seconds=step_seconds(model, blocks, step)"
        )
    return in_flops(blocks) if seconds is None else in_seconds(seconds, len(blocks), to_freeze(len(blocks), fraction))


def _own_options(scheme: str, epochs: int, **given: int | None) -> dict[str, int]:
    """Those of the options of single schemes that are given."""
    options = {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        if name != OWN_OPTIONS.get(scheme):
            owner = next(each for each, own in OWN_OPTIONS.items() if own == name)
            raise ValueError(f"expected no {name} with scheme={scheme!r}, got {value!r}; try scheme={owner!r}")
        check_whole(name, value, 1, epochs - 1)
    return options


def _check_arguments(epochs: int, interval: int, flops_reduction: float, fraction: float) -> None:
    check_whole("epochs", epochs, 2)
    check_whole("interval", interval, 1, epochs - 1)
    check_share("flops_reduction", flops_reduction, "(0, 1)", 0.2)
    check_share("fraction", fraction, "(0, 1]", 2 / 3)
