"""What a sieve refuses: arguments out of range, batches and states that are not its own."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset


def check_number(name: str, value: Any, low: int) -> int:
    """`value`, an integer of at least `low`.

    Raises:
        ValueError: it is anything else; a data set is told what to give instead.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and value >= low:
        return int(value)
    advice = str(low)
    if isinstance(value, IterableDataset):
        advice = "a map-style data set (with __getitem__ and __len__): a stream has no samples to leave out"
    elif hasattr(value, "__len__") and not isinstance(value, str):
        advice = "its len()"
    got = f"{value!r}" if isinstance(value, Integral | float | str | None) else type(value).__name__
    raise ValueError(f"expected {name} to be an integer >= {low}, got {got}; try {advice}")


def check_fraction(name: str, value: Any, *, example: float, one: bool = False) -> float:
    """`value`, a number in [0, 1), or with `one` in [0, 1].

    Raises:
        ValueError: it is anything else.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 <= value < 1 or (one and value == 1)):
        raise ValueError(f"expected {name} in [0, 1{']' if one else ')'}, got {value!r}; try {example}")
    return float(value)


def check_indices(indices: Any) -> np.ndarray:
    """`indices` int64 [n] as an array.

    Raises:
        TypeError, ValueError: they are no int64 tensor of one dimension.
    """
    if not isinstance(indices, torch.Tensor) or indices.dtype != torch.int64:
        raise TypeError(f"expected indices as an int64 tensor, got {kind(indices)}; try indices.long()")
    if indices.ndim != 1:
        raise ValueError(f"expected indices [n], got {list(indices.shape)}; try flattening the batch")
    return indices.cpu().numpy()


def check_logits(indices: torch.Tensor, logits: Any, targets: Any) -> None:
    """Logits [n, classes] with targets int64 [n], or soft ones [n, classes].

    Raises:
        TypeError, ValueError: a type or shape does not fit, or a target is no class.
    """
    soft = isinstance(targets, torch.Tensor) and targets.is_floating_point()
    if not soft and (not isinstance(targets, torch.Tensor) or targets.dtype != torch.int64):
        raise TypeError(f"expected targets as an int64 tensor, got {kind(targets)}; try targets.long()")
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
        raise TypeError(f"expected logits as a floating point tensor, got {kind(logits)}; try the model's output")
    if logits.ndim != 2 or len(logits) != len(indices) or targets.shape != (logits.shape if soft else indices.shape):
        raise ValueError(
            f"expected indices [n], logits [n, classes] and targets {'[n, classes]' if soft else '[n]'}, got "
            f"{list(indices.shape)}, {list(logits.shape)} and {list(targets.shape)}; try flattening the batch"
        )
    if len(targets) and not soft:
        check_range("targets", targets.cpu().numpy(), logits.shape[1], "labels from 0, or losses= of another kind")


def check_losses(indices: torch.Tensor, losses: Any, correct: Any) -> None:
    """Losses floating point [n], and correct bool [n] or None.

    Raises:
        TypeError, ValueError: a type or shape does not fit.
    """
    if not isinstance(losses, torch.Tensor) or not losses.is_floating_point():
        raise TypeError(f"expected losses as a floating point tensor, got {kind(losses)}; try reduction='none'")
    if correct is not None and (not isinstance(correct, torch.Tensor) or correct.dtype != torch.bool):
        raise TypeError(f"expected correct as a bool tensor, got {kind(correct)}; try logits.argmax(1) == targets")
    for name, given in (("losses", losses), ("correct", correct)):
        if given is not None and given.shape != indices.shape:
            raise ValueError(
                f"expected {name} [{len(indices)}], one for each index, got {list(given.shape)}; try reduction='none'"
            )


def check_range(name: str, values: np.ndarray, end: int, advice: str = "the data set's own numbers") -> None:
    """Integers in [0, end).

    Raises:
        ValueError: one is not.
    """
    if (
        len(values) and values.view(np.uint64).max() >= end
    ):  # a negative one is huge as unsigned: one pass for both ends
        wrong = values[(values < 0) | (values >= end)][0]
        raise ValueError(f"expected {name} in [0, {end}), got {wrong}; try {advice}")


def check_state(mine: dict[str, Any], identity: dict[str, Any], state: Any) -> None:
    """A state that a sieve of this `identity`, whose own state is `mine`, may have written.

    Raises:
        ValueError: it is another sieve's, or damaged.
    """
    for name, value in identity.items():
        if state.get(name) != value:
            raise ValueError(
                f"expected a state with {name} {value!r}, got {state.get(name)!r}; try the sieve it was saved from"
            )
    for name, value in mine.items():
        if not _alike(value, state.get(name)):
            raise ValueError(f"expected {kind(value)} as {name}, got {kind(state.get(name))}; try another checkpoint")
    if state["epoch"] < 0:
        raise ValueError(f"expected epoch >= 0, got {state['epoch']}; try another checkpoint")


def check_resumed(place: tuple[int, int], mark: Any) -> None:
    """That a sieve at `place`, (epoch, presented in it), is as far as when a loader made a `mark` of it.

    Raises:
        ValueError: it is not, or the mark is another sampler's.
    """
    if not isinstance(mark, dict) or mark.keys() != {"epoch", "presented"}:
        raise ValueError(f"expected the place of a sieve in a loader's state, got {mark!r}; try another checkpoint")
    if place < (mark["epoch"], mark["presented"]):
        raise ValueError(
            f"expected the sieve's own state to be loaded before the loader is iterated, got one at epoch {place[0]} "
            f"after {place[1]} samples for a loader at epoch {mark['epoch']}; try sieve.load_state_dict"
        )


def _alike(mine: object, theirs: object) -> bool:
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return theirs.shape == mine.shape and theirs.dtype == mine.dtype
    if isinstance(mine, list) and isinstance(theirs, list):
        return all(type(each) is int for each in theirs)
    return type(theirs) is type(mine)


def kind(value: object) -> str:
    """What `value` is, for an error."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
