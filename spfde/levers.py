"""The one protocol of everything that changes a training while it runs: topology, freezer, sieve, or a class of yours.

A lever is told of the events it declares in `needs`, in the order in which they happen, and answers. Several levers are
told of one event in the order of their list, which is so the order at an epoch boundary. In a loop of your own the same
objects work through their plain methods (`topology.step()`, `freezer.begin_epoch()`, `sieve.observe()`). docs/levers.md
has a freezer and a sieve written for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
    epoch has. Epochs may differ in length. Not told again to a run that is resumed within the epoch.
    """

    epoch: int
    steps: int


@dataclass(frozen=True)
class Forward(Event):
    """A forward pass of training ended. Answer: None.

    outputs: of every freezable block by name, detached, [n, ...]. indices: int64 [n], the samples of the batch. Told
    once for each part of a batch that is computed in parts.
    """

    outputs: Mapping[str, Tensor]
    indices: Tensor


@dataclass(frozen=True)
class Loss(Event):
    """The per-sample losses of a batch are known. Answer: weights float [n] that multiply them, or None.

    indices: int64 [n]. outputs: what the model returned, detached, [n, ...]. targets: [n], or [n, t] next tokens.
    losses: detached, [n], label smoothing included, of a sequence the mean of its tokens'. Told once for each part of a
    batch that is computed in parts, before its backward pass. Weights of several levers are multiplied; what is
    differentiated is the mean of losses * weights.
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
    """After the last step of an epoch and its evaluation. Answer: decisions, or None.

    accuracy: the share of the test set's targets that are right.
    """

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

    model, optimizer: as they are trained. epoch: the present one, from 0. epochs: planned. step: optimizer steps taken.
    samples: presented so far.
    """

    model: nn.Module
    optimizer: Optimizer
    epoch: int
    epochs: int
    step: int
    samples: int

    @property
    def blocks(self) -> tuple[Any, ...]:
        """The freezable blocks, front to back; ValueError where `spfde.freezing.blocks` finds none."""

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the blocks that are frozen now, in freezing order."""

    @property
    def num_samples(self) -> int:
        """Samples in the training set: `batches` takes indices below it."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps planned for the whole training, as the epochs are long now."""

    @property
    def total_samples(self) -> int:
        """Presentations planned for the whole training, as the epochs are long now."""

    @property
    def levers(self) -> Levers:
        """All levers, in their order."""

    def batches(self, indices: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Training samples without augmentation, where the model is: (indices [n], inputs [n, ...], targets [n]).

        For what training itself does not compute; to be called between epochs.
        """

    def predictions(self, indices: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """The outputs of `batches` in evaluation mode: (indices [n], outputs [n, ...], targets [n]), no graph."""

    def freeze(self, names: Iterable[str]) -> None:
        """Freezes blocks by name: masks are brought to their target first, compiled code of the model is dropped."""

    def unfreeze(self, names: Iterable[str]) -> None:
        """Gives blocks back to the training: their masks move again, their learning rate is that of the others."""


@runtime_checkable
class Lever(Protocol):
    """Whatever answers events. needs: the kinds it is told of; what nobody needs costs nothing.

    A lever may offer more, and nobody asks for it where it does not:

    - `settle(module)`: brings what it moves inside a module to its end state, before that is frozen;
    - `horizons`: a mapping of block names to the fraction of the training at which their learning rate reaches zero, 1
      for all others; read before the optimizer is made, so not of a lever that a factory makes;
    - `lr_factors`: a mapping of those blocks' names to factors on their learning rate all along, 1 for all others;
    - `armed`: true while the passes must run through the model itself, not through compiled code of it;
    - `plan` and `reason`: what it means to do when, and why, for the run's record.
    """

    needs: Collection[type[Event]]

    def on(self, event: Event, run: Run) -> Answer:
        """Follows an event; returns what its kind says."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: what a resumed run needs to go on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`'s values; blocks that were frozen are frozen by the run."""


@runtime_checkable
class Sampler(Lever, Protocol):
    """A lever that chooses the samples of an epoch: at most one in a training.

    `begin_epoch` crosses the boundary into an epoch before any `EpochStart` is told.
    """

    def begin_epoch(self, epoch: int) -> Iterable[Decision]:
        """Chooses the samples of the epoch; what it decided."""

    def order(self) -> Tensor:
        """Indices int64 [active] of the epoch's samples, in order: the same until the next `begin_epoch`."""


# What `spfde.train.fit(levers=...)` takes: a lever, or what makes one of the run's model, blocks and optimizer.
LeverFactory = Callable[[Run], Lever]


class Levers(Sequence[Lever]):
    """The levers of one training, in the order in which they are told.

    Raises:
        TypeError: one is no lever, or needs what is no kind of event.
        ValueError: more than one chooses the samples.
    """

    def __init__(self, levers: Iterable[Lever] = ()) -> None:
        self._levers = tuple(levers)
        for lever in self._levers:
            _check(lever)
        samplers = [lever for lever in self._levers if isinstance(lever, Sampler)]
        if len(samplers) > 1:
            names = " and ".join(type(lever).__name__ for lever in samplers)
            raise ValueError(f"expected at most one lever that chooses the samples, got {names}, try sieve=0")
        self.sampler = samplers[0] if samplers else None

    def __getitem__(self, index: Any) -> Any:
        return self._levers[index]

    def __len__(self) -> int:
        return len(self._levers)

    def needing(self, kind: type[Event]) -> tuple[Lever, ...]:
        """The levers that are told of a kind of event; none: it need not be worked out."""
        return tuple(lever for lever in self._levers if kind in lever.needs)

    def tell(self, event: Event, run: Run) -> list[Decision]:
        """Tells an event; what the levers decided, in their order."""
        return [decision for lever in self.needing(type(event)) for decision in _decisions(lever, event, run)]

    def weigh(self, event: Loss, run: Run) -> Tensor | None:
        """Tells the losses of a batch; the product [n] of the levers' weights, None where none has any."""
        product = None
        for lever in self.needing(Loss):
            weights = lever.on(event, run)
            if weights is None:
                continue
            if not isinstance(weights, Tensor) or weights.shape != event.losses.shape:
                got = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
                raise ValueError(
                    f"expected {type(lever).__name__} to answer Loss with weights {list(event.losses.shape)} or None,"
                    f" got {got}, try one float for each index"
                )
            weights = weights.to(event.losses)
            product = weights if product is None else product * weights
        return product

    def settle(self, modules: Iterable[nn.Module]) -> None:
        """Brings what is about to freeze to its end state, by every lever that can."""
        settlers = [lever for lever in self._levers if hasattr(lever, "settle")]
        for module in modules if settlers else ():
            for lever in settlers:
                lever.settle(module)

    @property
    def armed(self) -> bool:
        """Whether a lever watches the coming passes."""
        return any(getattr(lever, "armed", False) for lever in self._levers)

    @property
    def horizons(self) -> dict[str, float]:
        """Where the learning rate of a block ends, as a fraction of the training, by the levers that say so."""
        return {name: end for lever in self._levers for name, end in getattr(lever, "horizons", {}).items()}

    @property
    def lr_factors(self) -> dict[str, float]:
        """By what the learning rate of a block with a horizon is multiplied, by the levers that say so."""
        return {name: by for lever in self._levers for name, by in getattr(lever, "lr_factors", {}).items()}

    def state_dict(self) -> list[dict[str, Any]]:
        """The kind and the state of every lever, in their order."""
        return [{"lever": type(lever).__name__, "state": lever.state_dict()} for lever in self._levers]

    def load_state_dict(self, kept: Sequence[Mapping[str, Any]]) -> None:
        """Goes on from `state_dict`'s values.

        Raises:
            ValueError: they are those of other levers.
        """
        theirs, ours = [each["lever"] for each in kept], [type(lever).__name__ for lever in self._levers]
        if theirs != ours:
            raise ValueError(f"expected the levers {theirs}, as the state was saved with, got {ours}, try those")
        for each, lever in zip(kept, self._levers, strict=True):
            lever.load_state_dict(each["state"])


def _check(lever: Any) -> None:
    if isinstance(lever, type) or not isinstance(lever, Lever):
        missing = [
            name for name in ("needs", "on", "state_dict", "load_state_dict") if getattr(lever, name, None) is None
        ]
        kind = lever if isinstance(lever, type) else type(lever)
        got = f"the class {kind.__name__}" if kind is lever else f"{kind.__name__} without {', '.join(missing)}"
        raise TypeError(f"expected a lever (spfde.levers.Lever), got {got}, try an object with needs and on")
    for kind in lever.needs:
        if not (isinstance(kind, type) and issubclass(kind, Event)):
            raise TypeError(
                f"expected {type(lever).__name__}.needs to hold kinds of events, got {kind!r}, try spfde.levers.Step"
            )


def _decisions(lever: Lever, event: Event, run: Run) -> Iterator[Decision]:
    answer = lever.on(event, run)
    for decision in () if answer is None else answer:
        if not isinstance(decision, Decision):
            raise TypeError(
                f"expected {type(lever).__name__} to answer {type(event).__name__} with Decisions or None,"
                f" got {type(decision).__name__}, try [Decision(kind, text, reason)]"
            )
        yield decision
