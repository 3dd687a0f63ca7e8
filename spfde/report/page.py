"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence

from spfde._version import __version__
from spfde._words import count, duration, percent, ratio, work
from spfde.report import parts
from spfde.report.markup import Html, join, tag, tiles
from spfde.report.measures import Section
from spfde.report.run import Run
from spfde.report.theme import stylesheet
from spfde.report.verdict import Verdict, judged

# Nothing is fetched and nothing runs, whatever a run directory holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

NOTHING = Html()


def page(
    runs: Sequence[Run],
    labels: Sequence[str],
    verdicts: Sequence[Verdict],
    sections: Sequence[Section],
    measured: Html = NOTHING,
) -> str:
    """The whole page; the first run is the baseline. measured: what files of measurements add."""
    recipe, samples = runs[0].recipe, runs[0].samples
    title = f"spfde report: {recipe['dataset']}, {recipe['model']}, {count(recipe['epochs'], 'epoch')}"
    facts = (
        f"{title}, {count(samples['train'], 'training sample')}, {count(samples['test'], 'test sample')}, "
        f"{runs[0].started[:10]}"
    )
    heads = (
        _verdict(verdict, _tiles(run, runs[0], labels[0]), len(verdicts) > 1)
        for run, verdict in zip(judged(runs) or runs, verdicts, strict=True)
    )
    body = tag(
        "main",
        tag("header", tag("p", facts, class_="over"), *heads),
        parts.figures(runs, labels),
        measured,
        parts.table(labels, sections),
        parts.layers(runs, labels),
        parts.freezing(runs, labels),
        parts.never_learned(runs, labels),
        parts.events(runs, labels),
        parts.recipes(runs, labels),
        parts.environments(runs, labels),
        parts.definitions(sections),
        tag("footer", f"Written by spfde {runs[0].version} from {', '.join(str(run.path) for run in runs)}"),
    )
    return _document(title, body)


def measured_page(measured: Html, names: Sequence[str], headline: str) -> str:
    """A page of files of measurements alone."""
    title = f"spfde report: {', '.join(names)}"
    head = tag("header", tag("p", title, class_="over"), tag("h1", headline))
    return _document(title, tag("main", head, measured, tag("footer", f"Written by spfde {__version__}")))


def _document(title: str, body: Html) -> str:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Html(stylesheet())),
    )
    return join(Html("<!doctype html>\n"), tag("html", head, tag("body", body), lang="en"), Html("\n"))


def _verdict(verdict: Verdict, tiles: Html, many: bool) -> Html:
    lines = [tag("li", text, class_="warn") for text in verdict.warnings]
    lines += [tag("li", text) for text in verdict.notes]
    notes = tag("ul", *lines, class_="notes")
    return tag("section", tag("h1", verdict.headline), tiles, notes, class_="many" if many else None)


def _tiles(run: Run, baseline: Run, label: str) -> Html:
    """The figures to remember: of the run against the baseline, or its own where there is no other."""
    if run is baseline:
        figures = [
            (run.metric.text(run.last.figure), run.task.metric),
            (duration(run.training_seconds), "of training"),
            (work(run.work[-1]), "of training"),
        ]
    else:
        gain, of = run.metric.signed(run.last.figure, baseline.last.figure)
        figures = [
            (ratio(baseline.training_seconds / run.training_seconds), f"the training speed of {label}"),
            (gain, f"{of} against {label}"),
            (ratio(baseline.work[-1] / run.work[-1]), f"fewer training FLOPs than {label}"),
            (percent(run.last.sparsity), "of the weights in sparse layers are zero"),
        ]
    return tiles(figures)
