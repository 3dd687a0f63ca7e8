"""How a topology follows the steps of a training: which of them count, when it looks at gradients, when it ends."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from spfde.topology.optimizer_state import check, optimizers
from spfde.topology.probes import finite_gradients
from spfde.topology.steps import now, stepping_instead, taken
from spfde.topology.update_rule import UpdateRule


class Stepping(UpdateRule):
    """The part of a `Topology` that is told of steps and epochs."""

    reason: str
    _told: bool
    _optimizer: Any
    _stepped: int
    _since: int
    _unseen: int

    @abstractmethod
    def update(self) -> bool:
        """One update now, whatever the interval; True when a mask moved."""

    @abstractmethod
    def finish(self) -> int:
        """The end of the training: exactly the target counts; how many weights went."""

    @property
    def optimizer(self) -> Any:
        """What takes the steps; give it another one where the training builds another one."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Any) -> None:
        check(optimizer, self.layers)
        self._unseen = 0
        self._optimizer, self._stepped, self._since = optimizer, taken(optimizers(optimizer)), now()
        if self._probes.of:
            self._probes.arm(self.live(), optimizer)

    def step(self) -> bool:
        """Follows one optimizer step; True when a mask moved.

        A call after which the optimizer was seen to take none (GradScaler skipped it) is a `skip()`. An update that
        needs gradients waits for the next step when this one's are not finite, and `reason` says so.

        Raises:
            ValueError: updates are counted in epochs, and no epoch was told; or the optimizer is not the one that takes
                the steps, or remembers what cannot follow a mask.
        """
        if self.schedule.every_epochs is not None and not self._told:
            raise ValueError(
                "expected begin_epoch(epoch, steps, epochs) before the first step with every_epochs, got none,"
                " try every="
            )
        if not self._optimizer_stepped():
            self.reason = (
                f"{type(self).__name__} moved nothing after step {self.steps_done}: the optimizer took no step"
            )
            return self.skip()
        self.steps_done += 1
        self.after_step()
        moved = False
        if self.due(self.steps_done):
            self._late = self.reads_gradient() and not finite_gradients(self.optimizer, self._ranks)
            if self._late:
                put_off = "put its update off: gradients are not finite"
                self.reason = f"{type(self).__name__} {put_off} at step {self.steps_done}"
            moved = not self._late and self.update()
        return self._end_step() or moved

    def skip(self) -> bool:
        """Follows an optimizer step that did not move the weights; True when a mask moved, as the training ended here.

        The schedule does not advance: what is left of the training is a step shorter, and an update that was to follow
        the step follows the next one.
        """
        self._stepped, self._since = self._steps_seen(), now()
        self.schedule = self.schedule.skip()
        self._late |= self.schedule.next_update == self.steps_done
        return self._end_step()

    def begin_epoch(self, epoch: int, steps: int, epochs: int) -> None:
        """Tells how many optimizer steps the coming epoch has: `every_epochs` counts by it.

        epoch: counts from 0. epochs: of the whole training; those after this one are taken to be as long. A run that
        resumes within an epoch does not tell it again: the state has it.
        """
        before = self.schedule.next_update
        self._late |= before is not None and before > self.steps_done  # the epoch was shorter than it was said to be
        self.schedule = self.schedule.begin_epoch(self.steps_done, epoch, steps, epochs)
        self._told = True
        self._prepare()

    @property
    def armed(self) -> bool:
        """Whether the coming backward passes are watched: compiled code stands aside for them, of the whole process."""
        return bool(self._probes.of)

    def arm(self) -> None:
        """Watches the backward passes from now on, for an `update()` out of turn; `step()` arms by itself."""
        self._probes.arm(self.live(), self.optimizer)

    def _prepare(self) -> None:
        """Watches the next step if an update follows it."""
        if self.watches(self.steps_done + 1):
            self.arm()

    def _end_step(self) -> bool:
        """Ends the training if this was its last step, else prepares for the next one; True when a mask moved."""
        self._probes.disarm()
        trimmed = self.finish() if self.steps_done == self.total_steps else 0
        if trimmed:
            self.reason = f"{type(self).__name__} trimmed {trimmed} weights at step {self.steps_done}"
        for grad in self._gradients():
            grad._seen_at_version = grad._version
        self._prepare()
        return trimmed > 0

    def _steps_seen(self) -> int:
        return taken(optimizers(self.optimizer))

    def _optimizer_stepped(self) -> bool:
        """Whether the optimizer took a step since the last call.

        One that was never seen to take any counts as such, and so does a call without a gradient since the last one.

        Raises:
            ValueError: another optimizer that holds the values takes the steps.
        """
        before, since = self._stepped, self._since
        self._stepped, self._since = self._steps_seen(), now()
        if self._stepped != before:
            if before == 0:  # now it has state, long before the first update
                check(self.optimizer, self.layers)
                self._forget_unseen()
            return True
        values = {id(layer.values) for layer in self.live().values()}
        other = stepping_instead(values, optimizers(self.optimizer), since)
        if other is not None:
            raise ValueError(
                f"expected the optimizer that this topology was given to take the steps, got another "
                f"{type(other).__name__} that holds the same values, try topology.optimizer = optimizer"
            )
        fresh = any(_is_new(grad) for grad in self._gradients())
        if self._stepped == 0:
            self._unseen += fresh
            return True
        return not fresh

    def _forget_unseen(self) -> None:
        """The first step that is seen to be taken tells that those before it were skipped: GradScaler's first ones."""
        if self._unseen:
            self.steps_done -= self._unseen
            self._late = False
            for _ in range(self._unseen):
                self.schedule = self.schedule.skip()
            self._unseen = 0

    def _gradients(self) -> list[Tensor]:
        grads = [layer.values.grad for layer in self.layers.values()]
        return [grad for grad in grads if grad is not None]


def _is_new(grad: Tensor) -> bool:
    """Whether a backward pass made or changed it since the last step that a topology was told of."""
    return getattr(grad, "_seen_at_version", None) != grad._version
