"""Progressive freezing: front to back on a schedule that meets a FLOPs budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from spfde._names import unknown
from spfde.freezing.block import Block
from spfde.freezing.freeze import check_unshared, fix, freeze, unfreeze
from spfde.freezing.plan import Plan, single_shot

SCHEMES = {"single-shot": single_shot}


class Progressive:
    """Freezes blocks front to back, so that training costs `flops_reduction` fewer FLOPs.

    Counted as saved are the backward FLOPs of each block, at its density now, times the epochs it stays
    frozen, out of the forward and backward FLOPs of the whole model, stem and head included, over all epochs.
    The first block freezes at `first_epoch`, the latest multiple of `interval` that meets the target, then
    one block every `interval` epochs until about `fraction` of the blocks are frozen.

    Args:
        model: the network in training.
        blocks: its blocks, from `spfde.freezing.blocks`.
        epochs: length of the training.
        interval: epochs between two freezes; that of the topology updates, so that both fall on the same
            boundary.
        flops_reduction: share of all training FLOPs to save, in (0, 1).
        fraction: share of the blocks to freeze, in (0, 1].
        scheme: "single-shot", each block is frozen once and stays frozen.

    Raises:
        TypeError: `blocks` are not Blocks.
        ValueError: an argument is out of its range, the target cannot be reached, the blocks are not those of
            `model` as it is now, a planned block shares state with an active part, or nothing would be left
            to train.

    Source: SpFDE (NeurIPS 2022), "Layer Freezing Algorithm".
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        epochs: int = 160,
        interval: int = 5,
        flops_reduction: float = 0.20,
        fraction: float = 2 / 3,
        scheme: str = "single-shot",
    ) -> None:
        _check_arguments(epochs, interval, flops_reduction, fraction)
        if scheme not in SCHEMES:
            raise unknown("scheme", scheme, SCHEMES)
        _check_blocks(blocks, model)
        self.blocks = tuple(blocks)
        self._scheme = scheme
        self._epochs = epochs
        self._plan: Plan = SCHEMES[scheme](
            [block.name for block in blocks],
            [block.backward for block in blocks],
            _training_flops(blocks),
            epochs=epochs,
            interval=interval,
            flops_reduction=flops_reduction,
            fraction=fraction,
        )
        _check_freezable(blocks[: len(self._plan.steps)], model)
        self._frozen: list[str] = []

    @property
    def plan(self) -> tuple[tuple[int, str], ...]:
        """(epoch, block name) of every freeze, in order; `print(freezer)` shows it."""
        return self._plan.steps

    @property
    def first_epoch(self) -> int:
        """Epoch before which the first block freezes."""
        return self._plan.steps[0][0]

    @property
    def reason(self) -> str:
        """Why the plan starts when it starts, with its saving."""
        return self._plan.reason

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the blocks frozen so far, in freezing order."""
        return tuple(self._frozen)

    def due(self, epoch: int) -> list[Block]:
        """Blocks that `begin_epoch(epoch)` would freeze, front to back. Changes nothing."""
        _check_whole("epoch", epoch, 0, self._epochs - 1)
        start = {name: first for first, name in self.plan if first <= epoch and name not in self._frozen}
        return [block for block in self.blocks if block.name in start]

    def begin_epoch(self, epoch: int) -> list[str]:
        """Freezes what is due before `epoch` begins; names of the blocks frozen now."""
        due = self.due(epoch)
        for block in due:
            _freeze(block)
            self._frozen.append(block.name)
        if due:
            _forget_compiled()
        return [block.name for block in due]

    def end_epoch(self) -> None:
        """Nothing to note: the schedule was fixed at the start."""

    def state_dict(self) -> dict[str, Any]:
        """The plan and how far it went, in plain values."""
        return {
            **self._identity(),
            "plan": [[epoch, name] for epoch, name in self.plan],
            "saving": self._plan.saving,
            "reason": self.reason,
            "frozen": list(self._frozen),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over plan and progress of `state`: exactly the blocks frozen then are frozen afterwards.

        Raises:
            ValueError: `state` is not that of a freezer with the same scheme, epochs and blocks.
        """
        plan, frozen = self._read(state)
        for block in self.blocks:
            if block.name in frozen:
                _freeze(block)
            elif block.name in self._frozen:
                _unfreeze(block)
        self._plan, self._frozen = plan, frozen
        _forget_compiled()

    def _identity(self) -> dict[str, Any]:
        return {
            "scheme": self._scheme,
            "epochs": self._epochs,
            "blocks": [block.name for block in self.blocks],
        }

    def _read(self, state: dict[str, Any]) -> tuple[Plan, list[str]]:
        expected = self._identity()
        for key, mine in expected.items():
            if state.get(key) != mine:
                raise ValueError(
                    f"expected a state with {key} {mine!r}, got {state.get(key)!r}; try the recipe it was saved with"
                )
        order = [name for _, name in state["plan"]]
        if not order or order != expected["blocks"][: len(order)]:
            raise ValueError(
                f"expected a plan of the first of {expected['blocks']}, got one of {order}; try another checkpoint"
            )
        if state["frozen"] not in [order[:count] for count in range(len(order) + 1)]:
            raise ValueError(
                f"expected frozen blocks to be the first of {order}, got {state['frozen']}; try another checkpoint"
            )
        steps = tuple((epoch, name) for epoch, name in state["plan"])
        return Plan(steps, state["saving"], state["reason"]), list(state["frozen"])

    def __str__(self) -> str:
        return str(self._plan)


def _freeze(block: Block) -> None:
    for _, module in block.modules:
        freeze(module)
    fix(parameter for _, parameter in block.parameters)


def _unfreeze(block: Block) -> None:
    for _, module in block.modules:
        unfreeze(module)
    for _, parameter in block.parameters:
        parameter.requires_grad_(True)


def _forget_compiled() -> None:
    """Drops compiled code: every freeze would recompile it, and torch.compile gives up after eight times."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _training_flops(blocks: Sequence[Block]) -> int:
    """Forward + backward FLOPs per sample of the whole model, stem and head included."""
    work = [*(w for block in blocks for w in block.work), *(layer.work for layer in blocks[0].rest)]
    return sum(w.forward + w.backward for w in work)


def _check_blocks(blocks: Sequence[Block], model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module as model, got {type(model).__name__}; try Progressive(model, blocks)")
    if not all(isinstance(block, Block) for block in blocks):
        kinds = ", ".join(sorted({type(block).__name__ for block in blocks}))
        raise TypeError(f"expected a list of Block, got {kinds}; try spfde.freezing.blocks(model, example_input)")
    names = [block.name for block in blocks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"expected blocks with different names, got {names}; try blocks(model, example_input)")
    inside = {id(m) for m in model.modules()}
    for block in blocks:
        for name, module in (*block.modules, *((layer.work.name, layer.module) for layer in block.layers)):
            if id(module) not in inside:
                raise ValueError(
                    f"expected blocks of this model as it is now, got {name!r} of block {block.name!r}, "
                    "which is not in it; try calling blocks(model, example_input) again, after sparsify"
                )


def _check_freezable(planned: Sequence[Block], model: nn.Module) -> None:
    modules: list[nn.Module] = []
    for block in planned:
        modules += [module for _, module in block.modules]
        check_unshared(modules, model)
    fixed = {id(p) for module in modules for p in module.parameters()}
    fixed |= {id(p) for block in planned for _, p in block.parameters}
    if all(id(p) in fixed for p in model.parameters() if p.requires_grad):
        raise ValueError(
            f"expected some parameter to stay trainable, got a plan that freezes all {len(planned)} blocks "
            "of a model without a head; try a smaller fraction"
        )


def _check_arguments(epochs: int, interval: int, flops_reduction: float, fraction: float) -> None:
    _check_whole("epochs", epochs, 2, None)
    _check_whole("interval", interval, 1, epochs - 1)
    _check_share("flops_reduction", flops_reduction, "(0, 1)", 0.2)
    _check_share("fraction", fraction, "(0, 1]", 2 / 3)


def _check_whole(name: str, value: object, low: int, high: int | None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        span = f">= {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"expected {name} to be an integer {span}, got {value!r}; try {low}")


def _check_share(name: str, value: object, span: str, usual: float) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not (0 < value < 1 or (value == 1 and span.endswith("]"))):
        raise ValueError(f"expected {name} in {span}, got {value!r}; try {usual:.2g}")
