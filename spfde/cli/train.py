"""`spfde train`: the fields of a recipe as flags, a run or two, and the report."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from spfde._ranks import Ranks
from spfde.cli.comparison import BASELINES, IN_TIME, begin, in_time, plan, report
from spfde.cli.display import Display, say
from spfde.cli.terminal import steady
from spfde.train import Diverged, Recipe, Result, fit
from spfde.train.distributed import joined, restarted
from spfde.train.progress import MultiProgress, Progress, TensorBoard
from spfde.train.recipe import presets
from spfde.train.recipe.defaults import default_text, field_default
from spfde.train.recipe.toml import read
from spfde.train.run_dir import RUN, check_directory, checkpoints, locked

Compare = Annotated[
    str | None,
    typer.Option(
        help="Train a baseline first, then report both. dense: the same epochs; dense-in-time: that, and at last dense"
        " for as few epochs as take the run's own seconds.",
        metavar="|".join(BASELINES),
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(help=f"A recipe that was found to pay: {', '.join(presets.NAMES)}; --recipe and flags win."),
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
    preset: Preset = None,
    compare: Compare = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    tensorboard: Tensorboard = False,
    **fields: Any,
) -> None:
    """Train a network: sparse, frozen and sieved (spfde), dense, or one after the other (--compare)."""
    given = {name: value for name, value in fields.items() if typed(invocation, name)}
    try:
        given = {**(presets.read(preset) if preset else {}), **(read(recipe) if recipe else {}), **given}
        if resume and overwrite:
            raise ValueError("expected --resume or --overwrite, got both, try one of them")
        with joined() as ranks:
            train_all(given, compare, resume, overwrite, tensorboard, ranks)
    except KeyboardInterrupt as stop:
        say(steady(lambda error: None, stderr=True), stopped(given.get("out")))
        raise typer.Exit(128 + getattr(stop, "signal", signal.SIGINT)) from None  # as a shell reports it
    except (TypeError, Diverged) as error:
        raise ValueError(str(error)) from error


def train_all(
    given: dict[str, Any], compare: str | None, resume: bool, overwrite: bool, tensorboard: bool, ranks: Ranks
) -> None:
    """Train the runs that flags ask for, on all ranks; the first one shows and reports them."""
    console = steady(lost=went_dark, quiet=ranks.rank > 0)
    again = restarted(ranks)
    if again and given.get("out"):
        resume, overwrite = ranks.once(lambda: (Path(given["out"]) / RUN).exists()), False
    runs, compare = ranks.once(lambda: plan(given, compare, resume))
    tensorboard = tensorboard and ranks.rank == 0
    watched = {name: watcher(console, name, each, tensorboard) for name, each, _ in runs}
    for _, each, goes_on in runs:
        # Before the first of them trains for minutes.
        if each.out is not None and not again:
            ranks.once(partial(check_directory, Path(each.out), resume=goes_on, overwrite=overwrite))

    def run(name: str, each: Recipe, goes_on: bool) -> Result:
        progress = watched.get(name) or watcher(console, name, each, tensorboard)
        result = fit(each, resume=goes_on, overwrite=overwrite, progress=progress)
        say(console, outcome(name, result))
        return result

    with ExitStack() as stack:
        if compare:  # a run holds its own directory; a comparison the one above, too
            ranks.once(lambda: stack.enter_context(locked(Path(given["out"]))))
            begin(Path(given["out"]), runs, compare, ranks)
        results = [run(*each) for each in runs]
        if compare == IN_TIME:
            dense, own = (result.training_seconds for result in results)
            if control := ranks.once(lambda: in_time(runs[0], dense, own, resume)):
                run(*control)
                runs.insert(1, control)
        if compare:
            ranks.once(lambda: report(console, runs))


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
