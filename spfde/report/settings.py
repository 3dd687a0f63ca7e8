"""The settings of runs: which differ between two of them, and the command that trains one again."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from spfde.report.run import Run
from spfde.train.own import fields_of, own_default
from spfde.train.recipe import WITHOUT_SAY, Recipe

# What is compared: the method, its levers, and how it computes the same numbers. All other settings have to agree.
COMPARED = {
    *("method", "pattern", "distribution", "interval", "freeze_fraction", "sieve_by"),
    *("fuse", "layout", "accumulate", "block_cosine"),
    *fields_of("method"),
    *fields_of("topology"),
}
ELSEWHERE = {*WITHOUT_SAY, "data_dir", "bad_images"}
MACHINE = ("cpu", "torch")


def alike(kind: type = Recipe) -> tuple[str, ...]:
    """The fields of a recipe that have to agree between two runs whose times and accuracies are compared."""
    return tuple(item.name for item in dataclasses.fields(kind) if item.name not in COMPARED | ELSEWHERE)


def differences(run: Run, baseline: Run) -> list[str]:
    """What makes two runs unlike beside what is compared: settings, machine and data, as `lr (0.1 against 0.2)`."""
    defaults = {item.name: item.default for item in dataclasses.fields(Recipe)}  # what an older run did not know
    pairs = [(n, *(each.recipe.get(n, defaults[n]) for each in (run, baseline))) for n in alike()]
    pairs += [(name, run.environment.get(name), baseline.environment.get(name)) for name in MACHINE]
    pairs += [(f"{half} samples", run.samples[half], baseline.samples[half]) for half in ("train", "test")]
    return [f"{name} ({ours} against {theirs})" for name, ours, theirs in pairs if ours != theirs]


def command(recipe: Mapping[str, Any]) -> str:
    """The `spfde train` command line of a recipe: every setting that is not the default."""
    words = ["spfde", "train"]
    for field in dataclasses.fields(Recipe):
        default = own_default(field, recipe)
        value = recipe.get(field.name, default)
        value = tuple(value) if isinstance(value, list) else value
        flag = field.name.replace("_", "-")
        if value == default:
            continue
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", _word(value)]
    return shlex.join(words)


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
