"""The settings of runs: which differ between two of them, and the command that trains one again."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from typing import Any

from spfde.report.run import Run
from spfde.train.recipe import Recipe
from spfde.train.recipe.defaults import default_of, fields_of
from spfde.train.recipe.recipe import NON_NUMERIC

# What is compared: the method, its levers with their options, and how it computes the same numbers.
LEVERS = ("topology", "freeze", "sieve")
COMPARED = {
    *("method", "pattern", "distribution", "interval", "fuse", "layout", "accumulate", "block_cosine", "compile"),
    *fields_of("method"),
    *fields_of("topology"),
}
ELSEWHERE = {*NON_NUMERIC, "data_dir", "bad_images"} - {"device"}  # another device is another machine
MACHINE = ("cpu", "torch")


def alike(kind: type = Recipe) -> tuple[str, ...]:
    """The fields of a recipe that have to agree between two runs whose times and accuracies are compared."""
    names = [item.name for item in dataclasses.fields(kind)]
    return tuple(n for n in names if n.split("_")[0] not in LEVERS and n not in COMPARED | ELSEWHERE)


def differences(run: Run, baseline: Run) -> list[str]:
    """What makes two runs unlike beside what is compared: settings, machine and data, as `lr (0.1 against 0.2)`."""
    defaults = {item.name: item.default for item in dataclasses.fields(Recipe)}  # what an older run did not know
    pairs = [(n, *(each.recipe.get(n, defaults[n]) for each in (run, baseline))) for n in alike()]
    pairs += [(name, run.environment.get(name), baseline.environment.get(name)) for name in MACHINE]
    pairs += [(f"{half} samples", run.samples[half], baseline.samples[half]) for half in ("train", "test")]
    return [f"{name} ({ours} against {theirs})" for name, ours, theirs in pairs if ours != theirs]


def shortened(run: Run, baseline: Run) -> bool:
    """Tell whether a run trained as the baseline did, but for fewer epochs."""
    own = [item.name for item in dataclasses.fields(Recipe) if item.name not in (*NON_NUMERIC, "epochs")]
    same = all(run.recipe.get(name) == baseline.recipe.get(name) for name in own)
    return same and len(run.epochs) < len(baseline.epochs)


def command(recipe: Mapping[str, Any]) -> str:
    """The `spfde train` command line of a recipe: every setting that is not the default."""
    words = ["spfde", "train"]
    for field in dataclasses.fields(Recipe):
        default = default_of(field, recipe)
        value = recipe.get(field.name, default)
        value = tuple(value) if isinstance(value, list) else value
        flag = field.name.replace("_", "-")
        if value == default:
            continue
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", _word(value)]
    return shlex.join(words)


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}={_plain(each)}" for name, each in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _plain(value: Any) -> str:
    """As the command line reads it: true, false and null as JSON has them."""
    return value if isinstance(value, str) else json.dumps(value)
