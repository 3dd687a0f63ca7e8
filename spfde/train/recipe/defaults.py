"""What some fields of a recipe are when it does not say, by the choice that has them: method, topology and so on."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from spfde.topology import METHODS, Option

# Options of a topology method that have a field of their own in a recipe; all others go through topology_options.
OPTION_FIELDS = {"soft": "soft", "growth": "growth", "exploration": "c"}
# Defaults of such fields, and a share of moving weights that is not the method's own.
_TOPOLOGY = {
    "mest": {"drop_fraction": 0.2, "soft": False},
    "dst-ee": {"exploration": None},
    "itop": {"growth": "random"},
}

# Sparsity, freeze and sieve are the strongest that kept the dense accuracy in the README's measurement, with MEST's
# share of moving weights; freezing a tenth fits into 4 epochs or more. A choice's fields may be choices themselves.
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "method": {
        "spfde": {"sparsity": 0.75, "init": "random", "topology": "mest", "freeze": 0.1, "sieve": 0.1},
        "dense": {},
        "imp": {"sparsity": 0.75, "rounds": 5, "rewind": "weights", "rewind_epoch": 0},
    },
    "optimizer": {
        "sgd": {"lr": 0.1, "weight_decay": 5e-4, "nesterov": False},
        "adamw": {"lr": 1e-3, "weight_decay": 0.01, "beta2": 0.999},
    },
    "schedule": {"cosine": {"block_cosine": True}, "step": {"milestones": (0.5, 0.75), "gamma": 0.1}},
}
DISABLED = {"sparsity": 0.0, "freeze": 0.0, "sieve": 0.0}  # what is not had reads so, all else as None


CHOICES = ("method", "topology", "optimizer", "schedule")


def choices(choice: str) -> dict[str, dict[str, Any]]:
    """Map each value of a choice to the fields that it has, with their defaults; registered methods included."""
    if choice != "topology":
        return DEFAULTS[choice]
    return {
        **{
            name: {**({"drop_fraction": method.default_drop} if method.default_drop else {}), **_TOPOLOGY.get(name, {})}
            for name, method in METHODS.items()
        },
        "static": {},
    }


def topology_options(name: str | None) -> dict[str, Option]:
    """Map the options of a topology method that have no field of their own in a recipe."""
    if name not in METHODS:
        return {}
    shown = ("sparsity", "distribution", *OPTION_FIELDS.values())
    return {option: each for option, each in METHODS[name].options().items() if option not in shown}


# What a freezer or a sieve is called with, if it takes it: model and blocks, or the number of samples, come first.
LEVER_ARGUMENTS = (
    *("model", "blocks", "epochs", "interval", "flops_reduction", "fraction", "seconds"),
    *("num_samples", "fraction", "interval", "epochs", "seed", "ranks"),
)


def lever_options(method: Callable[..., Any]) -> list[str]:
    """List the options of a freezer or a sieve: the parameters that a recipe's fields do not give."""
    return [name for name in inspect.signature(method).parameters if name not in LEVER_ARGUMENTS]


def fields_of(choice: str) -> list[str]:
    """List the fields that some value of a choice has values of its own for."""
    return list(dict.fromkeys(name for own in choices(choice).values() for name in own))


def resolve(choice: str, chosen: str | None, name: str, value: Any) -> Any:
    """Return what a field reads under a choice: as given, or the choice's own value.

    Raises:
        ValueError: the choice has no use for what was given.
    """
    own = choices(choice).get(chosen or "", {})
    if name in own:
        default = own[name]
        value = default if value is None else value
        return float(value) if isinstance(default, float) else value
    if value:
        owner = next(other for other, fields in choices(choice).items() if name in fields)
        left = f"{DISABLED[name]:g}" if name in DISABLED else "left out"
        raise ValueError(
            f"expected {name} to be {left} with {choice}={chosen!r}, got {value!r}, try {choice}={owner!r}"
        )
    return DISABLED.get(name)


def default_of(item: dataclasses.Field[Any], recipe: Mapping[str, Any]) -> Any:
    """Return what a field is in a recipe of these choices (method, topology and so on) that does not say."""
    for choice in CHOICES:
        if item.name in fields_of(choice):
            return choices(choice).get(recipe.get(choice) or "", {}).get(item.name, DISABLED.get(item.name))
    return field_default(item)


def field_default(item: dataclasses.Field[Any]) -> Any:
    """Return the default of a field by itself."""
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def default_text(item: dataclasses.Field[Any]) -> str:
    """Say a field's default as help and guide have it: `0.9`, `sgd: 0.1, adamw: 0.001`, or - for none."""
    owned = [
        f"{owner}: {_text(own[item.name])}"
        for choice in CHOICES
        for owner, own in choices(choice).items()
        if own.get(item.name) is not None
    ]
    return ", ".join(owned) or _text(field_default(item))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    return "-" if value in (None, {}) else f"{value:.3g}" if isinstance(value, float) else str(value)
