"""The part of the page that draws files of `spfde bench`, `spfde plan` and `spfde profile`."""

from __future__ import annotations

from collections.abc import Sequence

from spfde._words import NONE, percent, ratio, size
from spfde.bench import Record, Row
from spfde.planning import Plan
from spfde.report import measured_plots as plots
from spfde.report.files import Measured, ProfileFile
from spfde.report.markup import Html, join, tag, tiles
from spfde.report.parts import figure, table_of


def sections(found: Sequence[tuple[str, Measured]]) -> Html:
    """A section for each file, in the order given; (name, content)."""
    return join(*(_section(name, content, index) for index, (name, content) in enumerate(found)))


def headline(found: Sequence[tuple[str, Measured]]) -> str:
    """What the files say first: what the first network gained where one was measured, else what is planned."""
    for record in (content for _, content in found if isinstance(content, Record)):
        rows = _networks(record)
        rows = sorted((row for row in rows if row.subject == rows[0].subject), key=lambda row: row.sparsity)
        if rows:
            gains, zeros = zip(*((record.speedup(row).value, row.sparsity) for row in rows), strict=True)
            least, most = (ratio(each(gains)) for each in (min, max))
            first, last = (percent(each, 0) for each in (zeros[0], zeros[-1]))
            gain, zero = (a if a == b else f"{a} to {b}" for a, b in ((least, most), (first, last)))
            return f"A step of {rows[0].subject}, measured: {gain} as fast as dense, {zero} of the weights zero"
    plan = next((content for _, content in found if isinstance(content, Plan)), None)
    return ", ".join(name for name, _ in found) if plan is None else f"Planned: {_gain(plan)}"


def _gain(plan: Plan) -> str:
    return f"{ratio(plan.speedup)} as fast as dense training"


def _networks(record: Record) -> list[Row]:
    """Its sparse networks as dispatch runs them."""
    rows = (row for row in record.rows if row.kind == "network" and row.variant == "auto" and not row.dense)
    return [row for row in rows if record.speedup(row)]


def _section(name: str, content: Measured, index: int) -> Html:
    if isinstance(content, Record):
        return _bench(name, content, index)
    return _plan(name, content, index) if isinstance(content, Plan) else _profile(name, content, index)


def _bench(name: str, record: Record, index: int) -> Html:
    where = record.machine.get("gpu") or record.machine.get("cpu")
    done = "" if record.finished else " Unfinished: this is what was done before it was stopped."
    facts = f"{where}, {record.date[:10]}, {record.repeats} rounds, {record.command}.{done}"
    warning = record.noise()
    sparse = [row for row in record.rows if not row.dense and row.seconds]
    networks, layers = ([row for row in sparse if row.kind == kind] for kind in ("network", "layer"))
    drawn = []
    if networks or layers:
        text = "Over the fastest dense variant of the same rounds; the band is the 95% interval of the median."
        drawn.append(figure("Speed-up against sparsity", plots.speedups(record, networks or layers, f"s{index}"), text))
    if layers:
        text = "A step of each layer as dispatch runs it, over its fastest dense variant."
        drawn.append(figure("Layers and sparsity", plots.heat_map(record, layers, f"h{index}"), text))
    if networks:
        bars = {_bar(row): _phases(row) for row in record.rows if row.kind == "network" and row.seconds.get("step")}
        drawn.append(figure("A training step", plots.steps(bars, f"t{index}"), "Medians; forward holds the loss."))
    heads = ("subject", "variant", "sparsity", "step ms", "over dense", "efficiency", "frozen", "MB", "peak")
    rows = [tag("tr", *(tag("td", cell) for cell in _cells(record, row))) for row in record.rows]
    return join(
        tag("h2", f"Bench: {name}"),
        tag("p", facts, class_="lead"),
        tiles(
            (ratio(record.speedup(row).value), f"as fast a step of {row.subject}, {percent(row.sparsity, 0)} zero")
            for row in _networks(record)
        ),
        tag("ul", tag("li", warning, class_="warn"), class_="notes") if warning else Html(),
        tag("div", *drawn, class_="figures"),
        tag("details", tag("summary", "Every row"), table_of(tag("tr", *(tag("th", h) for h in heads)), rows)),
    )


def _bar(row: Row) -> str:
    return row.variant if row.dense else f"{percent(row.sparsity, 0)} {row.pattern}"


def _phases(row: Row) -> dict[str, float]:
    return {part: row.median(part) or 0.0 for part in ("forward", "backward", "optimizer") if row.seconds.get(part)}


def _cells(record: Record, row: Row) -> tuple[str, ...]:
    step, speedup = row.median("step"), record.speedup(row)
    frozen = record.speedup(row, "frozen")
    return (
        row.subject, row.variant, NONE if row.dense else percent(row.sparsity),
        f"{1e3 * step:.3g}" if step else "; ".join(row.absent.values()) or NONE,
        ratio(speedup.value) if speedup else NONE,
        f"{speedup.value * row.density:.2f}" if speedup and not row.dense else NONE,
        ratio(frozen.value) if frozen else NONE, NONE if row.size is None else f"{row.size / 1e6:.3g}",
        NONE if row.peak is None else size(row.peak),
    )  # fmt: skip


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _plan(name: str, plan: Plan, index: int) -> Html:
    bars = {"dense": {"all": plan.dense}, "sparse": dict(plan.parts)}
    heads = ("layer", "shape", "sparsity", "kernel", "dense ms", "planned ms", "gain", "break-even", "from")
    rows = [
        tag("tr", *(tag("td", cell) for cell in (
            row.name, "x".join(map(str, row.shape)), percent(row.sparsity), row.kernel, f"{1e3 * row.dense:.3g}",
            f"{1e3 * row.planned:.3g}", ratio(row.dense / row.planned),
            NONE if not row.sparsity else "above 99%" if row.break_even is None else percent(row.break_even, 0),
            row.source,
        )))
        for row in plan.layers
    ]  # fmt: skip
    levers = [
        f"{lever.name} saves {percent(lever.flops)} of the FLOPs and "
        f"{NONE if lever.seconds is None else percent(lever.seconds)} of the seconds {lever.note.partition(';')[0]}"
        for lever in plan.levers
    ]
    return join(
        tag("h2", f"Plan: {name}"),
        tag(
            "p",
            f"Planned, not measured: {plan.device}, batch {plan.batch}, from figures of {plan.measured}.",
            class_="lead",
        ),
        tiles(
            [
                (_ms(plan.dense), "a dense step"),
                (_ms(plan.sparse), f"a sparse step, {ratio(plan.dense / plan.sparse)}"),
                (_ms(plan.mean), "on average, with what is frozen"),
                (ratio(plan.speedup), "as fast as dense training, with all levers"),
            ]
        ),
        tag("ul", *(tag("li", line) for line in (*levers, *plan.advice)), class_="notes"),
        tag("div", figure("A planned step", plots.steps(bars, f"p{index}"), "By kind of work."), class_="figures"),
        tag("details", tag("summary", "Every layer"), table_of(tag("tr", *(tag("th", h) for h in heads)), rows)),
    )


def _profile(name: str, profile: ProfileFile, index: int) -> Html:
    text = f"A step of {profile.batch} samples on {profile.threads} threads, by kind of work."
    return join(
        tag("h2", f"Profile: {name}"),
        tag("div", figure("A profiled step", plots.steps(profile.kinds, f"k{index}"), text), class_="figures"),
    )
