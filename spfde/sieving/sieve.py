"""What every sieve is: a sampler over the active samples of an epoch that looks at the losses of the training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from spfde.levers import Answer, Decision, Event, Loss, Run
from spfde.sieving.checks import check_indices, check_logits, check_losses, check_range, check_resumed, check_state
from spfde.sieving.ranks import Batch
from spfde.sieving.report import SieveReport
from spfde.sieving.sampler import ActiveSampler, asked_by_a_loader

JUDGED, LEARNED = 1, 2  # bits of a sample's outcome: its prediction was right or wrong, and right at least once


@dataclass(frozen=True)
class SieveEvent:
    """What a boundary did: before `epoch` begins, `moved` samples went out (of a fixed size: as many came back)."""

    epoch: int
    moved: int
    reason: str


class Sieve(ActiveSampler, ABC):
    """A sampler over part of [0, num_samples), chosen anew at the boundaries between epochs.

    Iterating yields the active samples, shuffled; the order is a pure function of (seed, epoch, active). With many
    ranks each iterates an equal shard of it, `observe` gathers what it needs, and all ranks decide alike, as one
    process would that sees all batches. After `load_state_dict` in mid-epoch it yields those not observed yet.

    A subclass chooses in `_boundary`, by `_choose`, from what it keeps of `_note`; how many samples are out may vary,
    and `_weights` may answer a batch with weights of its losses. `QueueSieve` is the base of those of a fixed size.

    Args:
        num_samples: size of the data set.
        seed: of the order of each epoch.
        rank, world: which of how many equal shards is iterated here; default torch.distributed's, else the whole order.
            world=1 where something else shares the batches out (Accelerate).
        group: the torch.distributed group whose ranks train one model; default all.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs: Collection[type[Event]] = frozenset({Loss})
    by_logits = False  # whether losses alone do not do

    def __init__(
        self, num_samples: int, seed: int = 0, *, rank: int | None = None, world: int | None = None, group: Any = None
    ) -> None:
        super().__init__(num_samples, seed, rank, world, group)
        self._presentations = np.zeros(num_samples, np.int32)
        self._outcomes = np.zeros(num_samples, np.uint8)
        self._volumes: list[int] = []  # active samples of the epochs that are over
        self._told_why, self._extra_seconds = "", 0.0

    @property
    def presentations(self) -> torch.Tensor:
        """How often each sample was observed since the start: int64 [num_samples]."""
        return torch.from_numpy(self._presentations.astype(np.int64))

    def observe(
        self,
        indices: torch.Tensor,
        logits: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        *,
        losses: torch.Tensor | None = None,
        correct: torch.Tensor | None = None,
        gathered: bool = False,
    ) -> torch.Tensor | None:
        """Takes note of a training forward pass; a sample that appears twice counts in batch order.

        Give logits and targets, or the losses that are there already: a task without classes, a sequence of a language
        model, mixed samples have no others. On many ranks all of them call it, each with its own batch.

        Args:
            indices: int64 [n], active samples.
            logits: floating point [n, classes], on any device.
            targets: int64 [n], classes; or floating point [n, classes], soft ones.
            losses: floating point [n], on any device, in place of logits and targets.
            correct: bool [n], with losses: whether the prediction was right, where there is such a thing.
            gathered: the batch holds the samples of all ranks already.

        Returns:
            None, or weights float [n] to multiply the per-sample losses with.

        Raises:
            TypeError: an argument is not a tensor of the type above, or both forms are given.
            ValueError: a shape does not fit, an index is not an active sample, a target not a class, a logit or loss
                not finite, or another rank's batch is at fault; nothing is counted then.
        """
        return self._take(lambda: self._batch(indices, logits, targets, losses, correct, gathered), gathered)

    def end_epoch(self) -> SieveEvent | None:
        """Closes an epoch; where the sieve chooses anew, does so and says what moved."""
        self._volumes.append(self._volume)
        self.epoch += 1
        self._begin(np.zeros(self.num_samples, bool))
        event = self._boundary()
        if event is not None:
            self._told_why = event.reason
        return event

    def report(self) -> SieveReport:
        """What was left out so far, and which samples were never predicted right, wrong labels among them."""
        never = np.flatnonzero(self._outcomes == JUDGED)
        shown = self._presentations[never]
        order = np.argsort(-shown.astype(np.int64), kind="stable")
        return SieveReport(
            method=type(self).__name__,
            num_samples=self.num_samples,
            volumes=(*self._volumes, self._volume),
            reason=self._told_why,
            never_learned=tuple(never[order].tolist()),
            presentations=tuple(shown[order].tolist()),
            extra_seconds=self._extra_seconds,
        )

    # ---- as a lever ------------------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> list[Decision]:
        """Crosses the boundaries up to the one before `epoch`.

        Raises:
            ValueError: the sieve is further: it has served another training.
        """
        if epoch < self.epoch:
            raise ValueError(
                f"expected a sieve at epoch {epoch} or before, got one at epoch {self.epoch}; try a new one for each "
                "training"
            )
        decisions = []
        while self.epoch < epoch:
            swap = self.end_epoch()
            if swap is not None:
                decisions.append(Decision("sieve", self._told(swap), swap.reason))
        return decisions

    def on(self, event: Event, run: Run) -> Answer:
        """Observes the losses of a batch; the weights of its samples, if any."""
        if not isinstance(event, Loss):
            return None
        return self._take(
            lambda: self._known(event.indices, *self._judge(event.outputs, event.targets, event.losses), False), False
        )

    # ---- what a subclass defines -----------------------------------------------------------------------------------

    @abstractmethod
    def _note(self, samples: np.ndarray, losses: np.ndarray, correct: np.ndarray | None) -> None:
        """Keeps what it needs of a batch: int64 [n], float32 [n], bool [n] or None."""

    @abstractmethod
    def _boundary(self) -> SieveEvent | None:
        """Chooses the samples of `self.epoch`, which is about to begin; what it did."""

    def _judge(
        self, outputs: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `_note` gets of a forward pass: a figure [n], here the loss, and whether the prediction was right."""
        outputs, targets = outputs.detach(), targets.to(outputs.device)
        if losses is None:
            losses = F.cross_entropy(outputs.float(), targets, reduction="none")
        classes = outputs.ndim == 2 and targets.dtype == torch.int64 and targets.ndim == 1
        return losses, outputs.argmax(1) == targets if classes else None

    def _told(self, event: SieveEvent) -> str:
        """What a boundary did, in a few words."""
        return f"{self.num_samples - self._volume} of {self.num_samples} samples are out"

    def _weights(self, samples: np.ndarray) -> torch.Tensor | None:
        """Weights float [n] of a batch's losses."""
        return None

    def _own_state(self) -> dict[str, Any]:
        """What it remembers: integers and tensors of fixed shapes (or empty ones where it remembers nothing yet)."""
        return {}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        """Takes `_own_state`'s values back, after checking them."""

    def _identity(self) -> dict[str, Any]:
        """What makes a state this sieve's own."""
        return {"method": type(self).__name__, "num_samples": self.num_samples, "seed": self.seed}

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: who is active, how far the epoch is, what it counted; the same on all ranks."""
        if asked_by_a_loader():
            return {"epoch": self.epoch, "presented": self._presented}
        return {
            **self._identity(),
            "epoch": self.epoch,
            "active": torch.from_numpy(self._is_active.copy()),
            "seen": torch.from_numpy(np.packbits(self._seen)),  # in this epoch
            "presentations": torch.from_numpy(self._presentations.copy()),
            "outcomes": torch.from_numpy(self._outcomes.copy()),
            "volumes": list(self._volumes),
            **self._own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`, in the middle of an epoch too, and on any number of ranks.

        A StatefulDataLoader keeps the state of its sampler, of when it fetched a batch and not of when that was trained
        on. It gets no more than a mark of the place: what decides is the state that a program loads itself.

        Raises:
            ValueError: `state` is that of another sieve, or damaged; nothing has changed then. Or a loader has resumed
                and the sieve was not.
        """
        if asked_by_a_loader():
            check_resumed((self.epoch, self._presented), state)
            return
        state = {name: each.cpu() if isinstance(each, torch.Tensor) else each for name, each in state.items()}
        check_state(self.state_dict(), self._identity(), state)
        before = self.active
        self._choose(state["active"].nonzero().flatten())
        try:
            self._load_own(state)
        except ValueError:
            self._choose(before)
            raise
        self.epoch = state["epoch"]
        self._begin(np.unpackbits(state["seen"].numpy(), count=self.num_samples).astype(bool))
        self._presentations, self._outcomes = state["presentations"].numpy().copy(), state["outcomes"].numpy().copy()
        self._volumes = list(state["volumes"])

    # ---- a batch ---------------------------------------------------------------------------------------------------

    def _take(self, make: Callable[[], Batch], gathered: bool) -> torch.Tensor | None:
        """Gathers and counts a batch; the weights of this rank's."""
        batch, whole = self._gather(make, gathered)
        self._check_opened(batch.samples, whole.samples, gathered)
        if len(whole.samples):
            self._count(whole)
        return self._weights(batch.samples) if len(batch.samples) else None

    def _gather(self, make: Callable[[], Batch], gathered: bool) -> tuple[Batch, Batch]:
        """A batch of this rank and that of all; a rank whose own is at fault takes part before it raises."""
        if gathered:
            whole = make()
            return whole, whole
        batch: Batch | None = None
        fault: Exception | None = None
        try:
            batch = make()
        except Exception as error:  # of any kind, a subclass's too: the other ranks would wait for ever
            fault = error
        whole = self._ranks.gather(batch, fault)
        assert batch is not None
        return batch, whole

    def _batch(
        self,
        indices: Any,
        logits: Any,
        targets: Any,
        losses: Any,
        correct: Any,
        gathered: bool,
        trained: bool = True,
    ) -> Batch:
        by_class = logits is not None and targets is not None and losses is None and correct is None
        if not by_class and (losses is None or logits is not None or targets is not None):
            raise TypeError("expected logits and targets, or losses (and correct), got a mixture; try one of the two")
        if self.by_logits and not by_class:
            raise ValueError(
                f"expected logits and targets for {type(self).__name__}, got losses; try Circular or InfoBatch"
            )
        check_indices(indices)
        if by_class:
            check_logits(indices, logits, targets)
            losses, correct = self._judge(logits, targets, None)
        else:
            check_losses(indices, losses, correct)
        return self._known(indices, losses, correct, gathered, trained)

    def _known(
        self, indices: torch.Tensor, losses: torch.Tensor, correct: Any, gathered: bool, trained: bool = True
    ) -> Batch:
        """A batch by its losses; one that is not `trained` on may hold samples that are out."""
        samples = check_indices(indices)
        check_range("indices", samples, self.num_samples)
        if trained:
            self._check_shown(samples, gathered)
        figures = losses.detach().float().cpu().numpy()
        if not np.isfinite(figures).all():
            raise ValueError("expected finite losses, got NaN or infinity; try a lower learning rate")
        return Batch(samples, figures, None if correct is None else correct.cpu().numpy())

    def _count(self, batch: Batch) -> None:
        """Counts presentations, but for those that only fill the last shards up."""
        batch = batch.take(self._advance(batch.samples))
        if batch.correct is not None:
            self._outcomes[batch.samples] |= JUDGED
            self._outcomes[batch.samples[batch.correct]] |= LEARNED
        self._note(batch.samples, batch.figures, batch.correct)
        np.add.at(self._presentations, batch.samples, 1)
