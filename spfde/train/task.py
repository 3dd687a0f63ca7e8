"""What a training learns, told by its targets, and the figure of the test set that says how well."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Tested(Protocol):
    """What a figure is made of: the share of targets that were right, and their mean loss where it is known."""

    test_accuracy: float
    test_loss: float | None


@dataclass(frozen=True)
class Task:
    """A kind of task: what its `metric` is called, whether more of it is better, and how it follows from an epoch."""

    name: str
    metric: str
    higher: bool
    figure: Callable[[Tested], float]
    text: Callable[[float], str]

    def better(self, figure: float, other: float) -> bool:
        """Tell whether a figure is better than another one."""
        return figure > other if self.higher else figure < other


def perplexity(tested: Tested) -> float:
    """Return exp of the mean loss of a token in nats: among how many tokens, as it were, a guess has to be made."""
    loss = math.inf if tested.test_loss is None else tested.test_loss
    return math.exp(loss) if loss < 700 else math.inf


def _perplexity_text(figure: float) -> str:
    return f"{figure:.3f} ({math.log2(figure):.3f} bits a token)"


CLASSIFICATION = Task("classification", "test accuracy", True, lambda tested: tested.test_accuracy, "{:.2%}".format)
LANGUAGE = Task("language", "test perplexity", False, perplexity, _perplexity_text)
TASKS: Mapping[str, Task] = {task.name: task for task in (CLASSIFICATION, LANGUAGE)}


def task_of(targets: Tensor) -> Task:
    """Return the task that a batch's targets are of: classes [n], or tokens [n, t]."""
    return LANGUAGE if targets.ndim > 1 else CLASSIFICATION
