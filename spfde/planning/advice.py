"""What to do about a plan, in words."""

from __future__ import annotations

from collections.abc import Iterator

from spfde._words import count, percent, ratio
from spfde.planning.values import LayerPlan, Plan

MANY = 0.10  # share of a step that is worth a word
CLOSE = 0.97  # of the dense seconds: a layer above it gains nothing
SHOWN = 3  # layers of one kind of advice that are named


def advice(plan: Plan) -> tuple[str, ...]:
    """Sentences, the most telling first."""
    return tuple([*_whole(plan), *_layers(plan), *_rest(plan), *_doubt(plan)])


def _whole(plan: Plan) -> Iterator[str]:
    if plan.recipe.get("sparsity") and plan.sparse > CLOSE * plan.dense:
        yield (
            f"the sparse step is not faster than the dense one ({ratio(plan.dense / plan.sparse)}): "
            "raise the sparsity, or train dense"
        )
    for lever in plan.levers:
        if lever.seconds is not None and lever.flops > 0.02 and lever.seconds < lever.flops / 2:
            yield (
                f"{lever.name} saves {percent(lever.flops, 0)} of the FLOPs but only "
                f"{percent(lever.seconds, 0)} of the seconds"
            )


def _layers(plan: Plan) -> Iterator[str]:
    sparse = [row for row in plan.layers if row.sparsity]
    useless = [row for row in sparse if row.planned > CLOSE * row.dense]
    for row in useless[:SHOWN]:
        if row.break_even is not None and row.break_even > row.sparsity:
            yield f"{row.name} gains nothing below {row.break_even:.0%}: leave it dense, or make it sparser"
        else:
            yield f"{row.name} gains nothing at {row.sparsity:.0%}: leave it dense (exclude={row.name!r})"
    if len(useless) > SHOWN:
        yield f"so do {count(len(useless) - SHOWN, 'more layer')}; the table says which"
    dense = [row for row in plan.layers if not row.sparsity and row.planned > MANY * plan.sparse]
    for row in dense[:SHOWN]:
        yield f"{row.name} stays dense and takes {percent(row.planned / plan.sparse, 0)} of the sparse step"


def _rest(plan: Plan) -> Iterator[str]:
    around = plan.parts.get("norms", 0.0) + plan.parts.get("activations", 0.0)
    if around > MANY * plan.sparse and not plan.recipe.get("fuse"):
        yield f"norms and activations are {percent(around / plan.sparse, 0)} of the sparse step: try fuse"
    name, seconds = next(iter(plan.parts.items()), ("", 0.0))
    if name and name != "sparse layers":
        yield f"most of the time will be in {name} ({percent(seconds / plan.sparse, 0)}): sparsity does not shrink that"
    if not plan.recipe.get("freeze") and plan.frozen is not None and plan.frozen < 0.8 * plan.sparse:
        yield f"with half of its blocks frozen a step takes {percent(plan.frozen / plan.sparse, 0)} of that: try freeze"


def _doubt(plan: Plan) -> Iterator[str]:
    guessed = [row for row in plan.layers if row.source == "roofline"]
    if plan.guessed > MANY or guessed:
        named = f", among them {', '.join(row.name for row in guessed[:SHOWN])}" if guessed else ""
        yield (
            f"{percent(plan.guessed, 0)} of the sparse step is a guess by the roofline{named}: "
            "spfde bench --device-profile measures this device"
        )


def gains(row: LayerPlan) -> float:
    """How many times as fast as its dense form a layer is."""
    return row.dense / row.planned if row.planned else 1.0
