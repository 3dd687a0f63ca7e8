"""`spfde train`: the fields of a recipe as flags, a run or two, and the report."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
import signal
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from spfde.cli.display import Display, say
from spfde.cli.terminal import steady
from spfde.train import Diverged, Recipe, Result, fit
from spfde.train.build import build
from spfde.train.checkpoint import require_same_recipe
from spfde.train.data import isolated
from spfde.train.progress import MultiProgress, Progress, TensorBoard
from spfde.train.recipe.defaults import default_text, field_default
from spfde.train.recipe.toml import read
from spfde.train.run_dir import METRICS, RUN, check_directory, checkpoints, locked, write_json
from spfde.train.session import Inputs

Compare = Annotated[
    str | None,
    typer.Option(help="Train a baseline first, then report both; the baseline is: dense.", metavar="dense"),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="A TOML file of fields, named as the flags below are; flags win.", metavar="FILE"),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue from the last checkpoint in --out; flags left out are its own."),
]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Write event files for TensorBoard too, in each run's folder of --out.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that --out holds.")]


def _with_recipe_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag per recipe field, in place of its keyword arguments."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    hints = get_type_hints(Recipe)
    flags = [_flag(item, hints[item.name]) for item in dataclasses.fields(Recipe)]
    own = [p.replace(annotation=get_type_hints(command, include_extras=True)[p.name]) for p in own]
    command.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *flags)}
    return command


def _flag(item: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    """Make the flag of a recipe's field; a tuple of numbers is one word, 0.5,0.75, a mapping too, end=0.5,c=1."""
    # What is None by default may still have a value that depends on method, optimizer or schedule.
    text, default = default_text(item), field_default(item)
    shown = default not in (None, {}) if text in ("-", str(default)) else text
    options: dict[str, Any] = {"help": item.metadata["help"], "show_default": shown}
    if hint == tuple[float, ...] | None:
        hint, options = str | None, {**options, "callback": _numbers, "metavar": "NUMBERS"}
    elif hint == Mapping[str, Any]:
        hint, options, default = str | None, {**options, "callback": _options, "metavar": "NAME=VALUE,..."}, None
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[hint, typer.Option(**options)],
    )


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(map(float, text.split(",")))
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers, got {text!r}, try 0.5,0.75") from error


def _options(text: str | None) -> dict[str, Any]:
    """Read NAME=VALUE,...: numbers, true and false as TOML and JSON have them, all else as text."""
    parts = [part.split("=", 1) for part in text.split(",")] if text else []
    if any(len(part) < 2 for part in parts):
        raise typer.BadParameter(f"expected names and values, got {text!r}, try end=0.5,c=1")
    return {name.strip(): _plain(value.strip()) for name, value in parts}


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


@_with_recipe_flags
def train(
    invocation: typer.Context,
    recipe: RecipeFile = None,
    compare: Compare = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    tensorboard: Tensorboard = False,
    **fields: Any,
) -> None:
    """Train a network: sparse, frozen and sieved (spfde), dense, or one after the other (--compare dense)."""
    console = steady(lost=went_dark)
    given = {name: value for name, value in fields.items() if typed(invocation, name)}
    try:
        given = {**(read(recipe) if recipe else {}), **given}
        if resume and overwrite:
            raise ValueError("expected --resume or --overwrite, got both, try one of them")
        runs = plan(given, compare, resume)
        if len(runs) > 1:
            require_comparison(Path(given["out"]), runs[-1][1], resume)
        watched = [watcher(console, name, each, tensorboard) for name, each, _ in runs]
        for _, each, goes_on in runs:
            # Before the first of them trains for minutes.
            if each.out is not None:
                check_directory(Path(each.out), resume=goes_on, overwrite=overwrite)
        # A run holds its own directory; a comparison the one above, too.
        with locked(Path(given["out"])) if len(runs) > 1 else nullcontext():
            if len(runs) > 1:
                dry_run(runs[-1][1])
                write_json(Path(given["out"]) / RUN, {"compare": "dense", "recipe": runs[-1][1].to_dict()})
            for (name, each, goes_on), progress in zip(runs, watched, strict=True):
                result = fit(each, resume=goes_on, overwrite=overwrite, progress=progress)
                say(console, outcome(name, result))
            if len(runs) > 1:
                report(console, Path(given["out"]), [name for name, _, _ in runs])
    except KeyboardInterrupt as stop:
        say(steady(lambda error: None, stderr=True), stopped(given.get("out")))
        raise typer.Exit(128 + getattr(stop, "signal", signal.SIGINT)) from None  # as a shell reports it
    except (TypeError, Diverged) as error:
        raise ValueError(str(error)) from error


def watcher(console: Console, name: str, recipe: Recipe, tensorboard: bool) -> Progress:
    """Make what watches a run: the terminal, and TensorBoard's event files where they are wanted.

    Raises:
        ValueError: event files without a run directory.
        ImportError: tensorboard is missing.
    """
    display = Display(console, name)
    if not tensorboard:
        return display
    if recipe.out is None:
        raise ValueError("expected a run directory with --tensorboard, got none, try --out runs/first")
    return MultiProgress(display, TensorBoard(Path(recipe.out) / "tensorboard"))


def went_dark(error: OSError) -> None:
    """Say on standard error, if that is there, why nothing more is shown."""
    text = f"spfde: the display ended ({error.strerror}); training goes on"
    say(steady(lambda error: None, stderr=True), text)


def stopped(out: str | None) -> str:
    """Say what is left of a command that was interrupted."""
    if out is None:
        return "stopped; nothing is kept without --out"
    directory = Path(out)
    if not any(map(checkpoints, (directory, *directory.glob("*/")))):
        return "stopped before the first checkpoint; start again with the same flags"
    return f"stopped, and kept; continue with: spfde train --resume --out {shlex.quote(out)}"


def typed(invocation: typer.Context, name: str) -> bool:
    """Tell whether a flag was typed, or only has its default."""
    source = invocation.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def plan(given: dict[str, Any], compare: str | None, resume: bool) -> list[tuple[str, Recipe, bool]]:
    """List the runs that flags ask for: name, recipe, whether it goes on from a checkpoint.

    Raises:
        ValueError: an unknown baseline, no directory where one is needed, or a field out of range.
    """
    if compare not in (None, "dense"):
        raise ValueError(f"expected --compare dense, got --compare {compare}, try dense")
    out = Recipe(out=given.get("out")).out  # a recipe file's may be no path
    if out is None and (compare or resume):
        flag = "--compare" if compare else "--resume"
        raise ValueError(f"expected a run directory with {flag}, got none, try --out runs/first")
    kept = kept_run(Path(out)) if resume else {}
    recipe = Recipe(**{**kept.get("recipe", {}), **given})
    if not (compare or kept.get("compare")):
        return [(recipe.method, recipe, resume)]
    if recipe.method == "dense":
        raise ValueError("expected a method to compare with dense, got dense itself, try --method spfde")
    directory = Path(out)
    return [
        (name, dataclasses.replace(each, out=str(directory / name)), resume and bool(checkpoints(directory / name)))
        for name, each in (("dense", recipe.baseline()), (recipe.method, recipe))
    ]


def require_comparison(out: Path, recipe: Recipe, resume: bool) -> None:
    """Check that a directory has no run of its own, and that a comparison that is resumed has this recipe.

    Raises:
        ValueError: it has one, or another recipe; nothing is changed then.
    """
    if checkpoints(out) or (out / METRICS).exists():
        raise ValueError(f"expected a directory for two runs, got {out}, which is a run's own, try another out")
    kept = kept_run(out)["recipe"] if resume else None
    if kept:
        require_same_recipe(kept, recipe, out / RUN)


def dry_run(recipe: Recipe) -> None:
    """Build what a run trains with, on one image, so that what does not fit is told before a baseline trains.

    Raises:
        ValueError: an unknown name, or levers that the network or the number of epochs cannot meet.
    """
    with isolated():
        build(Inputs(dataclasses.replace(recipe, train_images=1, test_images=1)))


def kept_run(out: Path) -> dict[str, Any]:
    """Read the run.json of a directory, {} if it has none.

    Raises:
        ValueError: it is no run's.
    """
    path = out / RUN
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"recipe": {}}
        Recipe.from_dict(kept["recipe"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"expected a run's recipe in {path}, got {error}, try without --resume") from error
    return kept


def outcome(name: str, result: Result) -> str:
    """Say in one line what a run came to, and in one more what each round of imp did."""
    lines = [
        f"{name}: {result.task.metric} {result.task.text(result.figure)}, {result.training_seconds:.1f} s of training"
        f" ({result.total_seconds:.1f} s with evaluation and checkpoints), {result.flops:.3g} FLOPs",
        *(
            f"  round {row['round']}: {row['sparsity']:.1%} sparsity, test accuracy {row['test_accuracy']:.2%},"
            f" {row['training_seconds']:.1f} s of training, {row['flops']:.3g} FLOPs"
            for row in result.rounds
        ),
    ]
    return "\n".join(lines)


def report(console: Console, out: Path, names: list[str]) -> None:
    """Print the table of the runs in `out` and save the page next to them."""
    from spfde.report import compare

    page = out / "report.html"
    compared = compare([out / name for name in names])
    compared.save(page)
    console.print(compared.table())
    say(console, f"report: {page}")
