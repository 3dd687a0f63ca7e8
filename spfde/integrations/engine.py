"""Levers in a training that another program runs: it says what happens, they are told and answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from spfde._modules import unwrapped
from spfde.freezing import FreezeBlock, blocks
from spfde.freezing.block import check_freezable
from spfde.levers import (
    Backward,
    Decision,
    EpochEnd,
    EpochStart,
    Event,
    Forward,
    Lever,
    LeverFactory,
    Levers,
    Loss,
    Step,
)


class Engine:
    """The levers of somebody else's training, and what they see of it: a `spfde.levers.Run`.

    `begin` comes once model and optimizer are there; then, in the order in which they happen, `start_epoch`, `weigh`,
    `backward`, `stepped` and `end_epoch`. `decisions` is what the levers did: (epoch, Decision).

    Args:
        levers: each is one, or makes one when called with this, as
            `lambda run: RigL(run.model, run.optimizer, total_steps=run.total_steps)`.
        example_input: one batch, for levers that freeze blocks and bring none of their own.

    Raises:
        TypeError: one is neither.
    """

    def __init__(self, levers: Iterable[Lever | LeverFactory], example_input: Any = None) -> None:
        self._given, self._example = tuple(levers), example_input
        self.levers = Levers(each for each in self._given if _is_lever(each))
        odd = next((each for each in self._given if not _is_lever(each) and not callable(each)), None)
        if odd is not None:
            raise TypeError(
                f"expected levers (spfde.levers.Lever) or what makes one of a run, got {type(odd).__name__}, try "
                "lambda run: spfde.topology.RigL(run.model, run.optimizer, total_steps=run.total_steps)"
            )
        self._kept: Mapping[str, Any] | None = None
        self._frozen: list[str] = []
        self._blocks: tuple[FreezeBlock, ...] | None = None
        self.epoch, self.step, self.samples = -1, 0, 0
        self.decisions: list[tuple[int, Decision]] = []

    def begin(self, model: nn.Module, optimizer: Optimizer, *, epochs: int, steps: int) -> None:
        """Make the levers, and go on where a state that was loaded left them.

        epochs, steps: planned, optimizer steps of all epochs.

        Raises:
            ValueError: a lever needs what only `spfde.train.fit` tells, or the state is that of other levers.
        """
        self.model, self.optimizer, self.epochs, self.total_steps = unwrapped(model), optimizer, epochs, steps
        self.levers = Levers(each if _is_lever(each) else each(self) for each in self._given)
        lost = next((type(lever).__name__ for lever in self.levers.needing(Forward)), None)
        if lost is not None:
            raise ValueError(f"expected levers that need no outputs of blocks, got {lost}, try spfde.train.fit")
        if self._kept is not None:
            self._load(self._kept)
            self._kept = None

    # ---- what levers see -------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> tuple[FreezeBlock, ...]:
        """The freezable blocks, front to back: a lever's own, else those of the model.

        Raises:
            ValueError: there is no example_input to find them by.
        """
        if self._blocks is None:
            own = next((each.blocks for each in self.levers if getattr(each, "blocks", None)), None)
            if own is None and self._example is None:
                raise ValueError("expected example_input to find blocks by, got none, try example_input=batch")
            self._blocks = tuple(blocks(self.model, self._example) if own is None else own)
        return self._blocks

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the blocks that are frozen now, in freezing order."""
        return tuple(self._frozen)

    @property
    def num_samples(self) -> int:
        """Samples in the training set, where a sieve knows them.

        Raises:
            ValueError: none does.
        """
        if self.levers.sampler is None:
            raise ValueError("expected a sieve, which knows the training set, got none, try spfde.train.fit")
        return self.levers.sampler.num_samples

    @property
    def total_samples(self) -> int:
        """Presentations planned, as the epochs are long now."""
        return len(self.levers.sampler.order()) * self.epochs if self.levers.sampler is not None else 0

    def batches(self, indices: Tensor) -> Any:
        """Refuses: the data are the other program's.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "expected a lever that looks at training passes alone, got one that wants more of the data, try its plain "
            "methods, or spfde.train.fit"
        )

    predictions = batches

    def freeze(self, names: Iterable[str]) -> None:
        """Freeze blocks by name, once levers have settled what they move in them.

        Raises:
            ValueError: a name is no block's, or nothing would train.
            RuntimeError: a DistributedDataParallel would wait for their gradients.
        """
        fresh = [block for block in self._named(names) if block.name not in self._frozen]
        if not fresh:
            return
        check_freezable([*self._named(self._frozen), *fresh], self.model)
        self.levers.settle(module for block in fresh for _, module in block.modules)
        for block in fresh:
            block.freeze()
            self._frozen.append(block.name)

    def unfreeze(self, names: Iterable[str]) -> None:
        """Give blocks back to the training.

        Raises:
            ValueError: a name is no block's.
        """
        for block in self._named(names):
            if block.name in self._frozen:
                block.unfreeze()
                for _, module in block.modules:
                    module.train(self.model.training)
                self._frozen.remove(block.name)

    def _named(self, names: Iterable[str]) -> Sequence[FreezeBlock]:
        names = list(dict.fromkeys(names))
        known = {block.name: block for block in self.blocks} if names else {}
        missing = next((name for name in names if name not in known), None)
        if missing is not None:
            raise ValueError(f"expected a block of {sorted(known)}, got {missing!r}, try a name of run.blocks")
        return [known[name] for name in names]

    # ---- what happens ----------------------------------------------------------------------------------------------

    def start_epoch(self, epoch: int) -> None:
        """An epoch begins, or goes on after a resume: levers are told of it once."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        self._choose(epoch)
        steps = max(1, round(self.total_steps / self.epochs))
        self._tell(EpochStart(epoch, steps))

    def weigh(self, indices: Tensor, outputs: Tensor, targets: Tensor, losses: Tensor) -> Tensor | None:
        """A training pass has the losses [n] of samples `indices` [n]; weights [n] of them, or None."""
        self.samples += len(indices)
        return self.levers.weigh(Loss(indices, outputs.detach(), targets, losses.detach()), self)

    def backward(self) -> None:
        """All gradients of an optimizer step are there."""
        self.levers.tell(Backward(), self)

    def stepped(self, taken: bool = True) -> None:
        """An optimizer step is over, its gradients still there; taken: it moved the weights."""
        self.step += 1
        self._tell(Step(taken))

    def end_epoch(self) -> None:
        """The epoch's last step is over, its accuracy unknown; a sieve chooses the next one's samples."""
        self._tell(EpochEnd(self.epoch, math.nan))
        self._choose(self.epoch + 1)

    def _choose(self, epoch: int) -> None:
        if self.levers.sampler is not None:
            self.decisions += [(epoch, each) for each in self.levers.sampler.begin_epoch(epoch)]

    def _tell(self, event: Event) -> None:
        self.decisions += [(self.epoch, each) for each in self.levers.tell(event, self)]

    # ---- what a checkpoint keeps -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: where the training is, and every lever's state."""
        place = {"epoch": self.epoch, "step": self.step, "samples": self.samples}
        return {**place, "frozen": list(self._frozen), "levers": self.levers.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s values once `begin` has made the levers."""
        self._kept = state

    def _load(self, state: Mapping[str, Any]) -> None:
        self.levers.load_state_dict(state["levers"])
        self.epoch, self.step, self.samples = state["epoch"], state["step"], state["samples"]
        self._frozen = list(state["frozen"])
        for block in self._named(self._frozen):
            block.freeze()


def _is_lever(given: Any) -> bool:
    return isinstance(given, Lever) and not isinstance(given, type)
