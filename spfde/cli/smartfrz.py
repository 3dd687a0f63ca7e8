"""`spfde smartfrz train`: SmartFRZ's predictor from reference trainings, with all that it was judged by."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from spfde.cli.display import say
from spfde.cli.options import option, refuse
from spfde.cli.terminal import steady
from spfde.freezing.smartfrz.labels import LEVEL
from spfde.freezing.smartfrz.learning import Samples, Scores, baselines, fit_predictor, folds, probabilities
from spfde.freezing.smartfrz.predictor import FORMS, Predictor, load_predictor
from spfde.freezing.smartfrz.recorder import Record
from spfde.train.references import Reference, record, references
from spfde.train.run_dir import locked, write_atomically, write_json

smartfrz = typer.Typer(help="SmartFRZ's predictor of when a layer may freeze.", no_args_is_help=True)
smartfrz.callback()(lambda: None)  # without it, the single command would take the place of the group


@dataclasses.dataclass(frozen=True)
class Settings:
    """What predictors are trained with: form, most layers of a network, epochs, least CKA of a settled layer."""

    form: str
    layers: int
    fit_epochs: int
    level: float


IMAGES = 1536
DataDir = Annotated[
    Path | None,
    typer.Option(help="Directory of Fashion-MNIST's IDX files; without it only the digits are trained on."),
]


@smartfrz.command()
def train(
    out: Annotated[Path, typer.Option(help="Directory of records, fits, predictor.npz and predictor.json.")],
    data_dir: DataDir = None,
    runs: Annotated[int | None, typer.Option(min=4, help="Reference trainings (12 of each data set).")] = None,
    epochs: Annotated[int, typer.Option(min=3, help="Epochs of a reference training.")] = 20,
    images: Annotated[int | None, option("With --data-dir: training images of Fashion-MNIST.", IMAGES, min=960)] = None,
    form: Annotated[str, typer.Option(help=f"What the predictor is shown: {', '.join(FORMS)}.")] = "quantiles",
    layers: Annotated[int, typer.Option(min=1, help="Most layers of a network to learn from.")] = 8,
    fit_epochs: Annotated[int, typer.Option(min=1, help="Epochs of a predictor's training.")] = 6,
    level: Annotated[float, typer.Option(help="Least CKA with the end of a layer that counts as settled.")] = LEVEL,
) -> None:
    """Record reference trainings, train a predictor, judge it on what it has not seen, and write it.

    Each finished training and fit is kept in --out: the same command goes on from there.
    """
    if data_dir is None:
        refuse("with --data-dir", "adding it", images=images)
    console = steady()
    settings = Settings(form, layers, fit_epochs, level)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    (out / "fits").mkdir(exist_ok=True)
    datasets = ("scans",) if data_dir is None else ("scans", "fashion")
    try:
        with locked(out):
            wanted = references(runs or 12 * len(datasets), datasets)
            records = [recorded(console, each, out, data_dir, images or IMAGES, epochs) for each in wanted]
            log = learned(console, records, out, settings)
            command = shlex.join(["spfde", *sys.argv[1:]])
            write_json(out / "predictor.json", {"command": command, **dataclasses.asdict(settings), **log})
            say(console, f"predictor: {out / 'predictor.npz'}, log: {out / 'predictor.json'}")
    except KeyboardInterrupt:
        say(console, "stopped; the same command goes on with what is finished")
        raise typer.Exit(128 + signal.SIGINT) from None


def recorded(
    console: Console, reference: Reference, out: Path, data_dir: Path | None, images: int, epochs: int
) -> Record:
    """Return the record of a reference training, by training it if it is not kept yet.

    Raises:
        ValueError: the kept one is of another length.
    """
    path = out / "runs" / f"{reference.name}.npz"
    if path.exists():
        kept = Record.load(path)
        if kept.about["epochs"] != epochs:
            raise ValueError(f"expected {epochs} epochs in {path}, got {kept.about['epochs']}, try another --out")
        return kept
    made = record(reference, data_dir, images=images, epochs=epochs)
    write_atomically(path, made.write)
    say(console, f"{reference.name}: test accuracy {made.about['test_accuracy']:.1%}")
    return made


def learned(console: Console, records: Sequence[Record], out: Path, settings: Settings) -> dict[str, Any]:
    """Train the predictor and those that judge the method, write the former; return what the log says of them.

    The predictor is judged on trainings held out of its own; how it would fare elsewhere, by others that were trained
    without one family, or without one data set, and judged on that.
    """
    held = [each for i, each in enumerate(records) if (i % 4 + i // 4) % 4 == 0]
    splits = {"other runs": ([each for each in records if each not in held], held)}
    for key in ("family", "dataset"):
        by = folds(records, key)
        splits |= {f"{key} {value}": split for value, split in by.items()} if len(by) > 1 else {}
    scores, losses = {}, {}
    for name, (train_on, judge_on) in splits.items():
        ours, theirs = (Samples.of(each, settings.level, settings.layers) for each in (train_on, judge_on))
        predictor, losses[name] = fitted(out / "fits" / f"{name.replace(' ', '-')}.npz", ours, settings)
        scores[name] = judged(predictor, ours, theirs)
        console.print(table(name, scores[name], theirs))
        if name == "other runs":
            write_atomically(out / "predictor.npz", predictor.write)
    return {
        "references": [{**each.about, "held_out": each in held} for each in records],
        "scores": {name: {rule: written(s) for rule, s in own.items()} for name, own in scores.items()},
        "losses": losses,
    }


def fitted(path: Path, samples: Samples, settings: Settings) -> tuple[Predictor, list[float]]:
    """Return the predictor of these samples and its epochs' losses, by training it if it is not kept yet."""
    log, asked = path.with_suffix(".json"), {**dataclasses.asdict(settings), "windows": len(samples)}
    if path.exists() and log.exists():
        kept = json.loads(log.read_text(encoding="utf-8"))
        if kept["of"] == asked:
            return load_predictor(path), kept["losses"]
    losses: list[float] = []
    made = fit_predictor(samples, settings.form, epochs=settings.fit_epochs, tell=lambda _, loss: losses.append(loss))
    write_atomically(path, made.write)
    write_json(log, {"of": asked, "losses": losses})
    return load_predictor(path), losses  # in half precision, as it is used


def judged(predictor: Predictor, ours: Samples, theirs: Samples) -> dict[str, Scores]:
    """Score a predictor, and simpler rules set up on `ours`, on `theirs`."""
    said = probabilities(predictor, theirs) >= 0.5
    return {"predictor": Scores.of(said, theirs.labels), **baselines(ours, theirs)}


def written(scores: Scores) -> dict[str, float | None]:
    """Scores as the log has them: JSON knows no nan."""
    return {name: None if math.isnan(value) else value for name, value in dataclasses.asdict(scores).items()}


def table(name: str, scores: dict[str, Scores], samples: Samples) -> Table:
    """Lay out the scores of one split."""
    title = f"{name}: {len(samples)} windows, {samples.labels.float().mean():.0%} of settled layers"
    shown = Table("rule", "accuracy", "precision", "recall", title=title)
    for rule, own in scores.items():
        shown.add_row(rule, *(f"{value:.3f}" for value in dataclasses.astuple(own)))
    return shown
