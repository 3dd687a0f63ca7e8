"""The parts of the page below its verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spfde._words import NONE, count, duration, percent
from spfde.report import plots
from spfde.report.markup import Html, join, tag
from spfde.report.measures import Section
from spfde.report.run import Run
from spfde.report.settings import command
from spfde.sieving.record import NeverLearned
from spfde.train.task import CLASSIFICATION


def figures(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """The plots that hold every run."""
    drawings = (
        (
            plots.outcome(runs, labels),
            f"{runs[0].task.metric.capitalize()} against training time",
            "Measured after every epoch."
            + (
                " The vertical axis is stretched towards 100%: every halving of the errors is equally high."
                if runs[0].task is CLASSIFICATION
                else " Lower is better."
            ),
        ),
        (
            plots.epochs(runs, labels),
            "Seconds per epoch",
            "Grey tops are evaluation and checkpoint. A square marks an epoch in which blocks were frozen (freeze), "
            "samples swapped (sieve), or weights pruned and regrown (topology). Epochs count from 0.",
        ),
        (
            plots.flops(runs, labels),
            "Training FLOPs against training time",
            "2 per multiply-add, stored weights only. The slope is the rate: a flatter line does its FLOPs slower, and "
            "still wins if it ends further left.",
        ),
        (
            plots.attribution(runs, labels),
            "Where the time went",
            "Kernels are spfde's own, which multiply by sparse weights; step is the rest of forward, backward and "
            "optimizer; levers decide what to prune, freeze and leave out. Evaluation and checkpoint do not count "
            "as training.",
        ),
    )
    if any(run.memory for run in runs):
        drawings += (
            (
                plots.memory(runs, labels),
                "Peak memory",
                "Most that the process held at once in each epoch's training, data set and PyTorch included.",
            ),
        )
    items = (figure(head, svg, text) for svg, head, text in drawings)
    return join(tag("h2", "How it went"), tag("div", *items, class_="figures"))


def table(labels: Sequence[str], sections: Sequence[Section]) -> Html:
    """Every figure, one column per run."""
    rows = []
    for section in sections:
        rows.append(tag("tr", tag("th", section.title, colspan=str(len(labels) + 1), class_="group")))
        for row in section.rows:
            cells = (tag("td", value) for value in row.values)
            sum_ = "sum" if row.name == "sum" else None
            rows.append(tag("tr", tag("th", row.name, scope="row"), *cells, class_=sum_))
    return join(
        tag("h2", "Side by side"),
        tag("p", "What each figure means is at the end of this page.", class_="lead"),
        table_of(tag("tr", tag("th", ""), *_heads(labels)), rows),
    )


def layers(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """Sparsity, kernel and the reason for the kernel of every layer of the runs that have sparse ones."""
    drawings, listings = [], []
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        if not any(layer.converted for layer in run.layers):
            continue
        heads = ("layer", "sparsity", "kernel", "why this kernel", "shape", "stored", "pattern")
        rows = [
            tag(
                "tr",
                tag("th", layer.name, scope="row"),
                tag("td", percent(layer.sparsity)),
                tag("td", layer.kernel),
                tag("td", layer.reason, class_="why"),
                tag("td", "x".join(map(str, layer.shape))),
                tag("td", f"{layer.nnz:,}"),
                tag("td", layer.pattern),
            )
            for layer in run.layers
        ]
        listing = table_of(tag("tr", *(tag("th", head) for head in heads)), rows, "layers")
        drawings.append(figure(f"{label}: sparsity and kernel", plots.layers(run, index), _stored(run)))
        if run.last.layers:
            text = "One row per layer; the denser the colour, the more of its weights are zero."
            drawings.append(figure(f"{label}: sparsity by epoch", plots.sparsity(run, index), text))
        listings.append(tag("details", tag("summary", f"{label}: every layer"), listing, open=""))
    if not drawings:
        return Html()
    lead = "At the end of the run, in network order. A layer made sparse that ran a dense kernel saved no time."
    return join(
        tag("h2", "Layer by layer"),
        tag("p", lead, class_="lead"),
        tag("div", *drawings, class_="figures"),
        *listings,
    )


def freezing(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """When which block was frozen in the runs that froze any, and what that saved."""
    drawings = []
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        if (report := run.freezes) is not None:
            text = f"{report.method}. {report.savings}." if report.savings else f"{report.method}."
            drawings.append(figure(f"{label}: frozen blocks", plots.freezing(report, index, label), text))
    lead = (
        "A bar is a block that was frozen, an outline where that was planned; the front of the network is at the top. "
        "Planned is the share of the whole training that the plan saves, at the densities of its start. Saved are the "
        "FLOPs that the frozen front's layers did not compute, and the seconds that an epoch with frozen blocks took "
        "less, for each sample, than those with none."
    )
    if not drawings:
        return Html()
    return join(tag("h2", "What froze when"), tag("p", lead, class_="lead"), tag("div", *drawings, class_="figures"))


def never_learned(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """What the runs with a sieve left out, and the samples that they never predicted right."""
    blocks = []
    for run, label in zip(runs, labels, strict=True):
        sieve = run.sieve
        if sieve is None:
            continue
        text = f"{label}, {sieve.method}: {percent(sieve.saved)} of the presentations left out. "
        extra = f"{duration(sieve.extra_seconds)} of passes of its own. " if sieve.extra_seconds else ""
        number = f"{sieve.never_learned:,} of {sieve.num_samples:,} samples presented and never predicted right"
        pictures = (_sample(each) for each in sieve.first)
        blocks.append(tag("p", text + extra + f"{number}." if sieve.never_learned else text + extra))
        blocks.append(tag("div", *pictures, class_="samples"))
    lead = (
        "Samples that were presented and never predicted right, those presented most first: number, label and how "
        "often. Wrong labels are among them."
    )
    if not blocks:
        return Html()
    return join(tag("h2", "What was left out, and what was never learnt"), tag("p", lead, class_="lead"), *blocks)


def _sample(each: NeverLearned) -> Html:
    # A picture is a PNG whatever the file holds: the browser reads nothing else from this address.
    source = f"data:image/png;base64,{each.png}"
    drawn = (tag("img", src=source, alt=f"sample {each.sample}"),) if each.png else ()
    return tag("figure", *drawn, tag("figcaption", f"{each.sample}: {each.label} ({each.presentations}x)"))


def events(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """What the levers did, epoch by epoch, and why."""
    blocks = []
    for run, label in zip(runs, labels, strict=True):
        rows, told = [], {}
        for epoch, event in ((each, event) for each in run.epochs for event in each.events):
            why = "as before" if told.get(event.kind) == event.reason else event.reason
            told[event.kind] = event.reason
            cells = (str(epoch.epoch), event.kind, event.text, why)
            rows.append(tag("tr", *(tag("td", cell) for cell in cells)))
        if rows:
            heads = tag("tr", *(tag("th", head) for head in ("epoch", "lever", "what it did", "why")))
            blocks.append(
                tag("details", tag("summary", f"{label}: {count(len(rows), 'event')}"), table_of(heads, rows))
            )
    lead = (
        "What makes a run cheaper: topology moves the few weights that are kept, freeze ends the training of blocks "
        "that have settled, sieve leaves easy samples out for a while."
    )
    return join(tag("h2", "What the levers did"), tag("p", lead, class_="lead"), *blocks) if blocks else Html()


def recipes(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """The command that trains each run again, and the recipes side by side."""
    commands = "\n\n".join(f"# {label}\n{command(run.recipe)}" for run, label in zip(runs, labels, strict=True))
    return join(
        tag("h2", "Recipe"),
        tag(
            "p",
            "These commands train the runs again; a model or data set of your own has to be passed again, "
            "through the Python API.",
            class_="lead",
        ),
        tag("pre", commands),
        *(
            tag("p", f"{label}, memory format: {run.layout['name']} ({run.layout['reason']})", class_="lead")
            for run, label in zip(runs, labels, strict=True)
            if {"name", "reason"} <= set(run.layout)
        ),
        tag(
            "details",
            tag("summary", "All settings; what differs is bold"),
            _compared([run.recipe for run in runs], labels),
        ),
    )


def environments(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """What the runs ran on."""
    first = runs[0].environment
    return join(
        tag("h2", "Environment"),
        tag("p", f"{first.get('cpu', NONE)}, torch {first.get('torch', NONE)}", class_="lead"),
        tag(
            "details",
            tag("summary", "Everything that was recorded"),
            _compared([dict(_flat(run.environment)) for run in runs], labels),
        ),
    )


def definitions(sections: Sequence[Section]) -> Html:
    """What each figure means."""
    terms = []
    for row in (row for section in sections for row in section.rows):
        terms += [tag("dt", row.name), tag("dd", row.meaning)]
    return join(tag("h2", "What each figure means"), tag("dl", *terms))


def figure(head: str, svg: Html, caption: str) -> Html:
    """A drawing with its title and what it shows."""
    return tag("figure", tag("h3", head), svg, tag("figcaption", caption))


def _stored(run: Run) -> str:
    sparse = [layer for layer in run.layers if layer.converted]
    ran = sum(layer.runs_sparse for layer in sparse)
    weights, stored = (
        sum(layer.weights for layer in run.layers),
        sum(layer.nnz for layer in run.layers if not layer.tied),
    )
    return (
        f"{ran} of {len(sparse)} sparse layers ran a sparse kernel. Of the network's {weights:,} weights "
        f"{stored:,} are stored."
    )


def _heads(labels: Sequence[str]) -> list[Html]:
    return [
        tag(
            "th",
            tag("i", style=f"background:var(--{plots.series_name(i)})"),
            label,
            class_="run",
            scope="col",
        )
        for i, label in enumerate(labels)
    ]


def table_of(head: Html, rows: Sequence[Html], class_: str | None = None) -> Html:
    """A table that scrolls by itself on a narrow screen."""
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_=class_), class_="scroll")


def _compared(values: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Html:
    """Mappings side by side, one column for all where they agree throughout."""
    names = list(dict.fromkeys(name for each in values for name in each))
    texts = {name: [_text(each.get(name)) for each in values] for name in names}
    alike = all(len(set(row)) == 1 for row in texts.values())
    rows = []
    for name, row in texts.items():
        cells = (tag("td", text) for text in (row[:1] if alike else row))
        differs = "differs" if len(set(row)) > 1 else None
        rows.append(tag("tr", tag("th", name, scope="row"), *cells, class_=differs))
    heads = [tag("th", "all runs")] if alike else _heads(labels)
    return table_of(tag("tr", tag("th", ""), *heads), rows, "wrap")


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def _text(value: Any) -> str:
    if value is None or value == []:
        return NONE
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
