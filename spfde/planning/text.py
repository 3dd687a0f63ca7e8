"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from spfde._names import printable
from spfde._words import NONE, percent, ratio, size

if TYPE_CHECKING:
    from spfde.planning.values import LayerPlan, Lever, Plan

LEAST = 0.5  # the least sparsity that a break-even is looked for at


def page(plan: Plan) -> str:
    """The whole plan: the step, the levers, the layers, where the time will be, and what to do about it."""
    return "\n".join(printable(line) for line in _lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    yield f"{plan.device}, batch {plan.batch}, from figures of {plan.measured[:10]}"
    yield ""
    yield f"a dense step     {_ms(plan.dense)}"
    yield f"a sparse step    {_ms(plan.sparse)}  {ratio(plan.dense / plan.sparse)}"
    if plan.frozen is not None:
        yield f"the most frozen  {_ms(plan.frozen)}  {ratio(plan.dense / plan.frozen)}"
    if plan.mean != plan.sparse:
        yield f"on average       {_ms(plan.mean)}  {ratio(plan.dense / plan.mean)}"
    if plan.kept_share < 1:
        yield f"sieved           {percent(plan.kept_share, 0)} of the steps of an epoch"
    yield f"the training     {ratio(plan.speedup)} as fast as dense training of as many epochs"
    if plan.levers:
        yield ""
        yield from aligned([("lever saves", "FLOPs", "seconds", "memory", ""), *map(_lever, plan.levers)])
    yield ""
    yield from aligned([("layer", "shape", "sparsity", "kernel", "dense", "planned", "", "break-even", "from", "why"),
                        *map(_layer, plan.layers)])  # fmt: skip
    yield ""
    yield "where the time of a sparse step will be: " + ", ".join(
        f"{name} {percent(seconds / plan.sparse, 0)}" for name, seconds in plan.parts.items()
    )
    for sentence in plan.advice:
        yield f"- {sentence}"


def _lever(lever: Lever) -> tuple[str, ...]:
    seconds = NONE if lever.seconds is None else percent(lever.seconds)
    return lever.name, percent(lever.flops), seconds, size(lever.memory) if lever.memory else NONE, lever.note


def _layer(row: LayerPlan) -> tuple[str, ...]:
    even = "above 99%" if row.break_even is None else f"{row.break_even:.0%}"
    even = f"up to {even}" if row.break_even == LEAST else even
    return (
        row.name, "x".join(map(str, row.shape)), f"{row.sparsity:.0%}", row.kernel, _ms(row.dense), _ms(row.planned),
        ratio(row.dense / row.planned), even if row.sparsity else NONE, row.source, row.reason,
    )  # fmt: skip


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of words in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
