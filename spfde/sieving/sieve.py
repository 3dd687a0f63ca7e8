"""What every sieve is: a sampler over the active samples of an epoch that looks at the losses of the training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from spfde.levers import Answer, Decision, Event, Loss, Run
from spfde.sieving.shuffle import derived, shuffled
from spfde.sieving.window import outcome


@dataclass(frozen=True)
class SieveEvent:
    """What a boundary did: before `epoch` begins, `moved` samples went out (of a fixed size: as many came back)."""

    epoch: int
    moved: int
    reason: str


class Sieve(Sampler[int], ABC):
    """A sampler over part of [0, num_samples), chosen anew at the boundaries between epochs.

    Iterating yields the active samples, shuffled; the order is a pure function of (seed, epoch, active). A subclass
    chooses in `_boundary`, by `_choose`, from what it keeps of `_note`; how many samples are out may vary, and
    `_weights` may answer a batch with weights of its losses. `QueueSieve` is the base of those of a fixed size.

    Args:
        num_samples: size of the data set.
        seed: of the order of each epoch.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs: Collection[type[Event]] = frozenset({Loss})

    def __init__(self, num_samples: int, seed: int = 0) -> None:
        for name, value, low in (("num_samples", num_samples, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"expected {name} to be an integer >= {low}, got {value!r}; try {low}")
        self.num_samples, self.seed, self.epoch = num_samples, seed, 0
        self._presentations = np.zeros(num_samples, np.int64)
        self._choose(torch.arange(num_samples))

    @property
    def active(self) -> torch.Tensor:
        """Samples of this epoch: int64 [active], ascending."""
        return self._active.clone()

    @property
    def removed(self) -> torch.Tensor:
        """Samples that are out: int64 [out], ascending."""
        return complement(self._active, self.num_samples)

    @property
    def presentations(self) -> torch.Tensor:
        """How often each sample was observed since the start: int64 [num_samples]."""
        return torch.from_numpy(self._presentations.copy())

    def order(self) -> torch.Tensor:
        """The active samples in this epoch's order: int64 [active]."""
        return shuffled(self._active, derived(self.seed, "order", self.epoch))

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return len(self._active)

    def observe(
        self,
        indices: torch.Tensor,
        logits: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        *,
        losses: torch.Tensor | None = None,
        correct: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Takes note of a training forward pass; a sample that appears twice counts in batch order.

        Give logits and targets, or the losses that are there already (a task without classes has no others).

        Args:
            indices: int64 [n], active samples.
            logits: floating point [n, classes], on any device.
            targets: int64 [n], classes.
            losses: floating point [n], on any device, in place of logits and targets.
            correct: bool [n], with losses: whether the prediction was right, where there is such a thing.

        Returns:
            None, or weights float [n] to multiply the per-sample losses with.

        Raises:
            TypeError: an argument is not a tensor of the type above, or both forms are given.
            ValueError: a shape does not fit, an index is not an active sample, a target not a class, a logit or loss
                not finite, or this sieve needs `correct`; nothing is counted then.
        """
        by_class = logits is not None and targets is not None and losses is None and correct is None
        if not by_class and (losses is None or logits is not None or targets is not None):
            raise TypeError("expected logits and targets, or losses (and correct), got a mixture; try one of the two")
        samples = self._check_samples(indices)
        if losses is None:
            _check_logits(indices, logits, targets)
            losses, correct = outcome(logits, targets)
        else:
            _check_losses(indices, losses, correct)
        if not len(samples):
            return None
        loss = losses.detach().float().cpu().numpy()
        if not np.isfinite(loss.sum()):
            raise ValueError("expected finite losses, got NaN or infinity; try a lower learning rate")
        self._note(samples, loss, None if correct is None else correct.cpu().numpy())
        np.add.at(self._presentations, samples, 1)
        return self._weights(samples)

    def end_epoch(self) -> SieveEvent | None:
        """Closes an epoch; where the sieve chooses anew, does so and says what moved."""
        self.epoch += 1
        return self._boundary()

    # ---- as a lever ------------------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> list[Decision]:
        """Crosses the boundaries up to the one before `epoch`."""
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
        classes = event.outputs.ndim == 2 and event.targets.dtype == torch.int64
        correct = event.outputs.argmax(1) == event.targets if classes else None
        return self.observe(event.indices, losses=event.losses, correct=correct)

    # ---- what a subclass defines -----------------------------------------------------------------------------------

    @abstractmethod
    def _note(self, samples: np.ndarray, losses: np.ndarray, correct: np.ndarray | None) -> None:
        """Keeps what it needs of a batch: int64 [n], float32 [n], bool [n] or None."""

    @abstractmethod
    def _boundary(self) -> SieveEvent | None:
        """Chooses the samples of `self.epoch`, which is about to begin; what it did."""

    def _told(self, event: SieveEvent) -> str:
        """What a boundary did, in a few words."""
        return f"{self.num_samples - len(self)} of {self.num_samples} samples are out"

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

    def _choose(self, active: torch.Tensor) -> None:
        """Makes `active`, int64 [active], ascending, the samples of the epoch."""
        self._active = active
        self._is_active = np.zeros(self.num_samples, bool)
        self._is_active[active.numpy()] = True

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: where the sampler is, who is active, what it counted."""
        return {
            **self._identity(),
            "epoch": self.epoch,
            "active": torch.from_numpy(self._is_active.copy()),
            "presentations": self.presentations,
            **self._own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`, in the middle of an interval too.

        Raises:
            ValueError: `state` is that of another sieve, or damaged; nothing has changed then.
        """
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise ValueError(
                    f"expected a state with {name} {mine!r}, got {state.get(name)!r}; try the sieve it was saved from"
                )
        for name, mine in self.state_dict().items():
            if not _alike(mine, state.get(name)):
                got = _kind(state.get(name))
                raise ValueError(f"expected {_kind(mine)} as {name}, got {got}; try another checkpoint")
        if state["epoch"] < 0:
            raise ValueError(f"expected epoch >= 0, got {state['epoch']}; try another checkpoint")
        before = self._active
        self._choose(state["active"].nonzero().flatten())
        try:
            self._load_own(state)
        except ValueError:
            self._choose(before)
            raise
        self.epoch, self._presentations = state["epoch"], state["presentations"].numpy().copy()

    def _check_samples(self, indices: torch.Tensor) -> np.ndarray:
        if not isinstance(indices, torch.Tensor) or indices.dtype != torch.int64:
            raise TypeError(f"expected indices as an int64 tensor, got {_kind(indices)}; try indices.long()")
        if indices.ndim != 1:
            raise ValueError(f"expected indices [n], got {list(indices.shape)}; try flattening the batch")
        samples = indices.cpu().numpy()
        if len(samples):
            _check_range("indices", samples, self.num_samples)
            active = self._is_active[samples]
            if not active.all():
                raise ValueError(
                    f"expected active samples, got {samples[~active][0]}, which is out in epoch {self.epoch}; "
                    "try iterating this sampler, and calling end_epoch after the epoch's last observe"
                )
        return samples


def complement(samples: torch.Tensor, num_samples: int) -> torch.Tensor:
    """All of range(num_samples) that is not in `samples`, ascending."""
    left = torch.ones(num_samples, dtype=torch.bool)
    left[samples] = False
    return left.nonzero().flatten()


def _check_logits(indices: torch.Tensor, logits: Any, targets: Any) -> None:
    if not isinstance(targets, torch.Tensor) or targets.dtype != torch.int64:
        raise TypeError(f"expected targets as an int64 tensor, got {_kind(targets)}; try targets.long()")
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
        raise TypeError(f"expected logits as a floating point tensor, got {_kind(logits)}; try the model's output")
    if logits.ndim != 2 or len(logits) != len(indices) or targets.shape != indices.shape:
        raise ValueError(
            "expected indices [n], logits [n, classes] and targets [n], got "
            f"{list(indices.shape)}, {list(logits.shape)} and {list(targets.shape)}; try flattening the batch"
        )
    if len(targets):
        _check_range("targets", targets.cpu().numpy(), logits.shape[1])


def _check_losses(indices: torch.Tensor, losses: Any, correct: Any) -> None:
    if not isinstance(losses, torch.Tensor) or not losses.is_floating_point():
        raise TypeError(f"expected losses as a floating point tensor, got {_kind(losses)}; try reduction='none'")
    if correct is not None and (not isinstance(correct, torch.Tensor) or correct.dtype != torch.bool):
        raise TypeError(f"expected correct as a bool tensor, got {_kind(correct)}; try logits.argmax(1) == targets")
    for name, given in (("losses", losses), ("correct", correct)):
        if given is not None and given.shape != indices.shape:
            raise ValueError(
                f"expected {name} [{len(indices)}], one for each index, got {list(given.shape)}; try reduction='none'"
            )


def _check_range(name: str, values: np.ndarray, end: int) -> None:
    if values.view(np.uint64).max() >= end:  # a negative one is huge as unsigned: one pass for both ends
        wrong = values[(values < 0) | (values >= end)][0]
        raise ValueError(f"expected {name} in [0, {end}), got {wrong}; try the data set's own numbers")


def _alike(mine: object, theirs: object) -> bool:
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return theirs.shape == mine.shape and theirs.dtype == mine.dtype
    return type(theirs) is type(mine)


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
