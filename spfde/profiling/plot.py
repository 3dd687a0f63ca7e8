"""Draws a profile: the step of each variant by kind of work, and the layers that take longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spfde._figures import STYLE, matplotlib_for
from spfde.profiling.kinds import KINDS
from spfde.profiling.variant import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = dict(
    zip(
        KINDS,
        ("#0a66c2", "#5b9bd5", "#94b8d9", "#c2410c", "#e88b5a", "#f2c14e", "#0f766e", "#be185d", "#7c3aed", "#65a30d",
         "#9aa3b0", "#586173"),
        strict=True,
    )
)  # fmt: skip
LONGEST = 30  # layers drawn


def draw(variants: Sequence[Variant], conditions: str) -> Figure:
    """Two panels: milliseconds by kind stacked, one bar a variant; and by layer, the variants side by side.

    Raises:
        ImportError: matplotlib is not installed.
    """
    matplotlib = matplotlib_for("profile")
    names = _longest(variants)
    with matplotlib.rc_context(STYLE):
        heights = (1.1 + 0.4 * len(variants), 0.6 + 0.2 * len(names))
        figure = matplotlib.figure.Figure(figsize=(8, sum(heights)), dpi=150)
        kinds, layers = figure.subplots(2, 1, gridspec_kw={"height_ratios": heights})
        _kinds(kinds, variants, conditions)
        _layers(layers, variants, names)
    return figure


def _longest(variants: Sequence[Variant]) -> list[str]:
    """Names of the layers that take longest in any variant, in order of execution."""
    seconds: dict[str, float] = {}
    for variant in reversed(variants):
        for layer in variant.layers():
            seconds[layer.name] = max(seconds.get(layer.name, 0.0), layer.seconds)
    chosen = set(sorted(seconds, key=seconds.__getitem__, reverse=True)[:LONGEST])
    return [name for name in seconds if name in chosen]


def _kinds(axes: Axes, variants: Sequence[Variant], conditions: str) -> None:
    rows = range(len(variants))
    left = [0.0] * len(rows)
    for kind in KINDS:
        widths = [variant.kinds().get(kind, 0.0) * 1e3 for variant in variants]
        if any(widths):
            axes.barh(rows, widths, 0.6, left, color=COLOURS[kind], label=kind)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(rows, [f"{variant.name}\n{variant.seconds * 1e3:.1f} ms" for variant in variants])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    faster = "" if len(variants) == 1 else f", {variants[1].seconds / variants[0].seconds:.2f}x as fast as dense"
    axes.set_title(f"one training step, {conditions}{faster}")
    axes.set_xlabel("milliseconds")
    axes.figure.legend(loc="outside upper left", ncols=6, handlelength=1, handleheight=1, columnspacing=1.2, fontsize=8)


def _layers(axes: Axes, variants: Sequence[Variant], names: list[str]) -> None:
    height = 0.8 / len(variants)
    for index, variant in enumerate(variants):
        found = {layer.name: layer for layer in variant.layers()}
        places = [row + index * height for row in range(len(names))]
        forward = [found[name].forward * 1e3 if name in found else 0.0 for name in names]
        backward = [found[name].backward * 1e3 if name in found else 0.0 for name in names]
        colour = ("#0a66c2", "#9aa3b0")[index]
        axes.barh(places, forward, height, color=colour, label=f"{variant.name}, forward")
        axes.barh(places, backward, height, forward, color=colour, alpha=0.55, label=f"{variant.name}, backward")
    axes.set_yticks(
        [row + 0.4 - height / 2 for row in range(len(names))], [name or "(model)" for name in names], fontsize=7
    )
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names), -0.6)
    axes.set_xlabel("milliseconds")
    axes.set_title("by layer" if len(names) < LONGEST else f"by layer, the {LONGEST} that take longest")
    axes.legend(loc="lower right", fontsize=8)
