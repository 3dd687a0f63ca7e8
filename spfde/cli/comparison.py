"""A comparison: the dense training, the method's, and dense training in the method's seconds, in one directory."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from spfde._ranks import Ranks
from spfde.cli.display import say
from spfde.train import Recipe
from spfde.train.build import build
from spfde.train.checkpoint import require_same_recipe
from spfde.train.data import isolated
from spfde.train.run_dir import METRICS, RUN, checkpoints, write_json
from spfde.train.session import Inputs

IN_TIME = "dense-in-time"
BASELINES = ("dense", IN_TIME)
Planned = tuple[str, Recipe, bool]  # a run's name, its recipe, whether it goes on from a checkpoint


def plan(given: dict[str, Any], compare: str | None, resume: bool) -> tuple[list[Planned], str | None]:
    """List the runs that flags ask for, and the baseline that they are compared with.

    Raises:
        ValueError: an unknown baseline, no directory where one is needed, or one that holds something else, or a
            field out of range.
    """
    if compare not in (None, *BASELINES):
        raise ValueError(f"expected --compare {' or '.join(BASELINES)}, got --compare {compare}, try dense")
    out = Recipe(out=given.get("out")).out  # a recipe file's may be no path
    if out is None and (compare or resume):
        flag = "--compare" if compare else "--resume"
        raise ValueError(f"expected a run directory with {flag}, got none, try --out runs/first")
    kept = kept_run(Path(out)) if resume else {}
    compare = compare or kept.get("compare")
    recipe = Recipe(**{**kept.get("recipe", {}), **given})
    if not compare:
        return [(recipe.method, recipe, resume)], None
    if recipe.method == "dense":
        raise ValueError("expected a method to compare with dense, got dense itself, try --method spfde")
    directory = Path(out)
    recipes = {"dense": recipe.baseline(), recipe.method: recipe}
    runs = [_within(directory, name, each, resume) for name, each in recipes.items()]
    _require(directory, runs[-1][1], resume)
    return runs, compare


def begin(out: Path, runs: Sequence[Planned], compare: str, ranks: Ranks) -> None:
    """Build what the last run trains with, so that what does not fit is told before a baseline trains; note the plan.

    Raises:
        ValueError: an unknown name, or levers that the network or the number of epochs cannot meet.
    """
    recipe = runs[-1][1]
    with isolated():
        build(Inputs(dataclasses.replace(recipe, train_images=1, test_images=1)))
    ranks.once(lambda: write_json(out / RUN, {"compare": compare, "recipe": recipe.to_dict()}))


def in_time(dense: Planned, dense_seconds: float, seconds: float, resume: bool) -> Planned | None:
    """The dense training of as few epochs as take at least `seconds`, its schedule compressed; None: it takes all."""
    recipe = dense[1]
    epochs = math.ceil(recipe.epochs * seconds / dense_seconds)
    if epochs >= recipe.epochs:
        return None
    return _within(Path(recipe.out).parent, IN_TIME, dataclasses.replace(recipe, epochs=epochs), resume)


def report(console: Console, runs: Sequence[Planned]) -> None:
    """Print the table of the runs and save the page next to them."""
    from spfde.report import compare

    paths = [Path(recipe.out) for _, recipe, _ in runs]
    page = paths[0].parent / "report.html"
    compared = compare(paths)
    compared.save(page)
    console.print(compared.table())
    say(console, f"report: {page}")


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


def _within(directory: Path, name: str, recipe: Recipe, resume: bool) -> Planned:
    out = directory / name
    return name, dataclasses.replace(recipe, out=str(out)), resume and bool(checkpoints(out))


def _require(out: Path, recipe: Recipe, resume: bool) -> None:
    """A directory of a comparison has no run of its own; one that is resumed has this recipe."""
    if checkpoints(out) or (out / METRICS).exists():
        raise ValueError(f"expected a directory for two runs, got {out}, which is a run's own, try another out")
    kept = kept_run(out)["recipe"] if resume else None
    if kept:
        require_same_recipe(kept, recipe, out / RUN)
