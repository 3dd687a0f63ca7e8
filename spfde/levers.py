"""The one protocol of everything that changes a training while it runs: topology, freezer, sieve, or a class of yours.

A lever is told of the events it declares in `needs`, in the order in which they happen, and answers. Several levers are
told of one event in the order of their list, which is so the order at an epoch boundary. In a loop of your own the same
objects work through their plain methods (`topology.step()`, `freezer.begin_epoch()`, `sieve.observe()`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Event:
    """Something that happens in a training; what a lever returns for it is stated by each kind."""


@dataclass(frozen=True)
class EpochStart(Event):
    """Before the first batch of an epoch. Answer: decisions, or None.

    Told once the epoch's samples are chosen, so after a sieve's own boundary: `steps` are the optimizer steps that this
    epoch has. Epochs may differ in length.
    """

    epoch: int
    steps: int


@dataclass(frozen=True)
class Forward(Event):
    """A forward pass of training ended. Answer: None.

    outputs: of every freezable block by name, detached, [n, ...]. indices: int64 [n], the samples of the batch.
    """

    outputs: Mapping[str, Tensor]
    indices: Tensor


@dataclass(frozen=True)
class Loss(Event):
    """The per-sample losses of a batch are known. Answer: weights float [n] that multiply them, or None.

    indices: int64 [n]. outputs: what the model returned, detached, [n, ...]. targets: [n]. losses: detached, [n]. Told
    once for each part of a batch that is computed in parts.
    """

    indices: Tensor
    outputs: Tensor
    targets: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Backward(Event):
    """All gradients of an optimizer step are in `.grad`: unscaled, not yet clipped. Answer: None."""


@dataclass(frozen=True)
class Step(Event):
    """An optimizer step is over. taken: it moved the weights (a GradScaler may have skipped it). Answer: decisions."""

    taken: bool = True


@dataclass(frozen=True)
class EpochEnd(Event):
    """After the last step of an epoch and its evaluation. accuracy: of the test set. Answer: decisions, or None."""

    epoch: int
    accuracy: float


@dataclass(frozen=True)
class Decision:
    """What a lever did and why, for records and reports. kind: topology, freeze, unfreeze, sieve, or your own word."""

    kind: str
    text: str
    reason: str


Answer = Tensor | Iterable[Decision] | None


class Run(Protocol):
    """What a lever sees of the training it is in.

    model, optimizer: as they are trained. blocks: the freezable blocks, front to back (`spfde.freezing.blocks`), empty
    where the model has none. epoch: the present one, from 0. epochs: planned. step: optimizer steps taken. samples:
    presented so far. total_samples: planned for the whole training, as the epochs are long now. levers: all of them.
    """

    model: nn.Module
    optimizer: Optimizer
    epoch: int
    epochs: int
    step: int
    samples: int

    @property
    def blocks(self) -> tuple[Any, ...]:
        """The freezable blocks."""

    @property
    def total_samples(self) -> int:
        """Presentations planned for the whole training."""

    @property
    def levers(self) -> tuple[Lever, ...]:
        """All levers, in their order."""

    def freeze(self, names: Iterable[str]) -> None:
        """Freezes blocks by name: masks are brought to their target first, compiled code of the model is dropped."""

    def unfreeze(self, names: Iterable[str]) -> None:
        """Gives blocks back to the training: their masks move again."""


@runtime_checkable
class Lever(Protocol):
    """Whatever answers events. needs: the kinds it is told of; what nobody needs costs nothing."""

    needs: Collection[type[Event]]

    def on(self, event: Event, run: Run) -> Answer:
        """Follows an event; returns what its kind says."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: what a resumed run needs to go on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`'s values."""


@runtime_checkable
class Sampler(Lever, Protocol):
    """A lever that chooses the samples of an epoch: at most one in a training.

    `begin_epoch` crosses the boundary into an epoch before any `EpochStart` is told.
    """

    def begin_epoch(self, epoch: int) -> Iterable[Decision]:
        """Chooses the samples of the epoch; what it decided."""

    def order(self) -> Tensor:
        """Indices int64 [active] of the epoch's samples, in order."""


# What `spfde.train.fit(levers=...)` takes: a lever, or what makes one of the run's model, blocks and optimizer.
LeverFactory = Callable[[Run], Lever]
