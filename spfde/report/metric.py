"""How the figure that a task is judged by is told: accuracy in percent, perplexity as the number it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spfde._words import percent, points
from spfde.train.task import CLASSIFICATION, LANGUAGE

SAME_ACCURACY = 0.0005  # accuracies closer than this round to the same tenth of a point
SAME_PERPLEXITY = 0.0005  # as a share


@dataclass(frozen=True)
class Metric:
    """A task's figure in words: in a sentence, in a table, how far apart two are, whether that reads as nothing."""

    text: Callable[[float], str]
    exact: Callable[[float], str]
    gap: Callable[[float, float], str]
    same: Callable[[float, float], bool]
    signed: Callable[[float, float], tuple[str, str]]  # a tile: a number and its unit
    meaning: str


def _three_digits(figure: float) -> str:
    return f"{figure:.3f}"


METRICS: Mapping[str, Metric] = {
    CLASSIFICATION.name: Metric(
        text=percent,
        exact=lambda figure: percent(figure, 2),
        gap=lambda ours, theirs: points(ours - theirs),
        same=lambda ours, theirs: abs(ours - theirs) < SAME_ACCURACY,
        signed=lambda ours, theirs: (f"{100 * (ours - theirs):+.1f}", "percentage points of test accuracy"),
        meaning="Share of test images classified correctly after the last epoch.",
    ),
    LANGUAGE.name: Metric(
        text=_three_digits,
        exact=_three_digits,
        gap=lambda ours, theirs: percent(abs(ours / theirs - 1)),
        same=lambda ours, theirs: abs(ours / theirs - 1) < SAME_PERPLEXITY,
        signed=lambda ours, theirs: (f"{100 * (ours / theirs - 1):+.1f}%", "test perplexity"),
        meaning="exp of the mean loss in nats of a token of the test set after the last epoch: lower is better.",
    ),
}


def bits(perplexity: float) -> str:
    """A perplexity as bits a token: 4.0 as "2.000"."""
    return _three_digits(math.log2(perplexity))
