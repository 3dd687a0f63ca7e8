"""What some fields of a recipe are when it does not say, by the choice that has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from spfde import topology

TOPOLOGIES = topology.METHODS  # by the name that a recipe has; "static" never moves masks
_DROPS = {name: {"drop_fraction": kind.default_drop} for name, kind in TOPOLOGIES.items() if kind.default_drop}

# Sparsity, freeze and sieve are the strongest that kept the dense accuracy in the README's measurement, with MEST's
# share of moving weights; freezing a tenth fits into 4 epochs or more. A choice's fields may be choices themselves.
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "method": {
        "spfde": {"sparsity": 0.75, "init": "random", "topology": "mest", "freeze": 0.1, "sieve": 0.1},
        "dense": {},
        "imp": {"sparsity": 0.75, "rounds": 5, "rewind": "weights", "rewind_epoch": 0},
    },
    "topology": {
        **{name: {} for name in (*TOPOLOGIES, "static")},
        **_DROPS,
        "mest": {"drop_fraction": 0.2, "soft": False},
        "dst-ee": {**_DROPS["dst-ee"], "exploration": None},
        "itop": {**_DROPS["itop"], "growth": "random"},
    },
    "optimizer": {
        "sgd": {"lr": 0.1, "weight_decay": 5e-4, "nesterov": False},
        "adamw": {"lr": 1e-3, "weight_decay": 0.01, "beta2": 0.999},
    },
    "schedule": {"cosine": {"block_cosine": True}, "step": {"milestones": (0.5, 0.75), "gamma": 0.1}},
}
OFF = {"sparsity": 0.0, "freeze": 0.0, "sieve": 0.0}  # what is not had reads so, all else as None


def fields_of(choice: str) -> list[str]:
    """List the fields that some value of a choice has values of its own for."""
    return list(dict.fromkeys(name for own in OWN[choice].values() for name in own))


def settled(choice: str, chosen: str | None, name: str, value: Any) -> Any:
    """Return what a field reads under a choice: as given, or the choice's own value.

    Raises:
        ValueError: the choice has no use for what was given.
    """
    own = OWN[choice].get(chosen or "", {})
    if name in own:
        default = own[name]
        value = default if value is None else value
        return float(value) if isinstance(default, float) else value
    if value:
        owner = next(other for other, fields in OWN[choice].items() if name in fields)
        left = f"{OFF[name]:g}" if name in OFF else "left out"
        raise ValueError(
            f"expected {name} to be {left} with {choice}={chosen!r}, got {value!r}, try {choice}={owner!r}"
        )
    return OFF.get(name)


def own_default(item: dataclasses.Field[Any], recipe: Mapping[str, Any]) -> Any:
    """Return what a field is in a recipe of these choices (method, topology and so on) that does not say."""
    for choice in OWN:
        if item.name in fields_of(choice):
            return OWN[choice].get(recipe.get(choice) or "", {}).get(item.name, OFF.get(item.name))
    return item.default


def default_text(item: dataclasses.Field[Any]) -> str:
    """Say a field's default as help and guide have it: `0.9`, `sgd: 0.1, adamw: 0.001`, or - for none."""
    owned = [
        f"{owner}: {_text(own[item.name])}"
        for owners in OWN.values()
        for owner, own in owners.items()
        if own.get(item.name) is not None
    ]
    return ", ".join(owned) or _text(item.default)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
