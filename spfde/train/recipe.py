"""What to train and how: one frozen value, validated when it is made."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rule:
    """The values a field takes: `accepts` decides, `expected` says it in words."""

    expected: str
    accepts: Callable[[Any], bool]

    def or_none(self) -> Rule:
        """Return the same rule with None allowed."""
        return Rule(f"{self.expected} or None", lambda v: v is None or self.accepts(v))


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(minimum: int) -> Rule:
    return Rule(
        f"an integer >= {minimum}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= minimum,
    )


def _real(expected: str, accepts: Callable[[float], bool]) -> Rule:
    return Rule(expected, lambda v: _is_real(v) and accepts(v))


def _one_of(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda v: v in names)


_NAME = Rule("a name", lambda v: isinstance(v, str) and v != "")
_FLAG = Rule("True or False", lambda v: isinstance(v, bool))
_POSITIVE = _real("a number > 0", lambda v: v > 0)
_NOT_NEGATIVE = _real("a number >= 0", lambda v: v >= 0)
_BELOW_ONE = _real("a fraction in [0, 1)", lambda v: 0 <= v < 1)
_FRACTION = _real("a fraction in (0, 1]", lambda v: 0 < v <= 1)

# What a lever is set to when the recipe does not say: the method's own value.
METHODS: dict[str, dict[str, float]] = {
    "spfde": {"sparsity": 0.9, "freeze": 0.2, "sieve": 0.2},
    "dense": {"sparsity": 0.0, "freeze": 0.0, "sieve": 0.0},
}


# Fields that change where and when files are written, or how fast; a resumed run may have others.
WITHOUT_SAY = ("out", "keep_checkpoints", "checkpoint_every_steps", "workers")


def _knob(default: Any, rule: Rule, text: str) -> Any:
    return field(default=default, metadata={"rule": rule, "help": text})


@dataclass(frozen=True)
class Recipe:
    """What to train and how; every field is also a flag of `spfde train`, with the same help text.

    Fractions are in [0, 1]; epochs count from 0; a lever (sparsity, freeze, sieve) left at None takes the
    method's own value and reads as that number afterwards.

    Raises:
        ValueError: a field is out of its range, or asks for a lever that the method does not have.
    """

    dataset: str = _knob("digits", _NAME, "Data set, as spfde.data.load knows it.")
    train_images: int | None = _knob(
        None, _integer(1).or_none(), "Training images to load (the data set's own number)."
    )
    test_images: int | None = _knob(None, _integer(1).or_none(), "Test images to load (the data set's own number).")
    model: str = _knob("resnet20", _NAME, "Network, as spfde.models.create knows it.")
    width: float = _knob(1.0, _POSITIVE, "Factor on the network's channel counts.")
    method: str = _knob("spfde", _one_of(*METHODS), "Method: spfde, or dense (the same training with no lever).")
    epochs: int = _knob(20, _integer(1), "Epochs of training.")
    batch_size: int = _knob(64, _integer(1), "Samples in a step.")
    lr: float = _knob(0.1, _POSITIVE, "Peak learning rate of SGD.")
    momentum: float = _knob(0.9, _BELOW_ONE, "Momentum of SGD.")
    weight_decay: float = _knob(5e-4, _NOT_NEGATIVE, "L2 penalty of SGD, on every parameter.")
    warmup: float = _knob(0.05, _BELOW_ONE, "Fraction of the training with a linear warm-up.")
    seed: int = _knob(0, _integer(0), "Seed of weights, masks, data order and sieve.")
    sparsity: float | None = _knob(None, _BELOW_ONE.or_none(), "Fraction of weights that are zero, 0 = off.")
    distribution: str = _knob("uniform", _one_of("uniform", "erk", "global"), "How sparsity spreads over layers.")
    init: str = _knob("random", _one_of("random", "magnitude"), "How the first mask is chosen.")
    interval: int = _knob(2, _integer(1), "Epochs between changes of masks, frozen set and sieve.")
    drop_fraction: float = _knob(0.2, _BELOW_ONE, "Fraction of kept weights that move at first, 0 = none.")
    freeze: float | None = _knob(None, _BELOW_ONE.or_none(), "Fraction of training FLOPs that freezing saves, 0 = off.")
    freeze_fraction: float = _knob(2 / 3, _FRACTION, "Fraction of the blocks that end up frozen.")
    block_cosine: bool = _knob(
        True, _FLAG, "Anneal each block's learning rate over its own active epochs (SpFDE), not over all."
    )
    sieve: float | None = _knob(None, _BELOW_ONE.or_none(), "Fraction of samples out at any time, 0 = off.")
    layout: str = _knob(
        "auto",
        _one_of("auto", "contiguous", "channels_last"),
        "Memory format; auto: dense takes the faster one, measured before its training.",
    )
    threads: int | None = _knob(None, _integer(1).or_none(), "Threads (torch's current number).")
    workers: int = _knob(0, _integer(0), "Loader processes, for data sets that do not hold tensors.")
    out: str | None = _knob(None, _NAME.or_none(), "Run directory (none: no files are written).")
    keep_checkpoints: int | None = _knob(
        None, _integer(1).or_none(), "How many of the newest checkpoints to keep (every epoch's)."
    )
    checkpoint_every_steps: int | None = _knob(
        None, _integer(1).or_none(), "Steps between checkpoints within an epoch (only at its end)."
    )

    def __post_init__(self) -> None:
        """Check every field, then settle the levers."""
        if isinstance(self.out, os.PathLike):
            object.__setattr__(self, "out", os.fspath(self.out))
        for item in dataclasses.fields(self):
            value, rule = getattr(self, item.name), item.metadata["rule"]
            if not rule.accepts(value):
                hint = "leave it out" if item.default is None else f"the default, {item.default!r}"
                raise ValueError(f"expected {item.name} to be {rule.expected}, got {value!r}, try {hint}")
        for lever, own in METHODS[self.method].items():
            value = getattr(self, lever)
            if self.method == "dense" and value:
                raise ValueError(f"expected {lever} to be 0 with method='dense', got {value!r}, try method='spfde'")
            object.__setattr__(self, lever, float(own if value is None else value))

    def baseline(self) -> Recipe:
        """Return the dense recipe with the same network, data, epochs, seeds and optimizer."""
        return dataclasses.replace(self, method="dense", sparsity=0.0, freeze=0.0, sieve=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, in order."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Build a recipe from `to_dict`'s values.

        Raises:
            ValueError: a name is no field of a recipe, or a value is out of range.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"expected fields of a recipe ({', '.join(known)}), got {', '.join(unknown)}")
        return cls(**values)


def differences(kept: Mapping[str, Any], given: Recipe) -> list[str]:
    """List what separates a kept recipe's values from a given one: `lr: 0.1, got 0.2`.

    What has no say in the numbers does not count: a run directory may be moved, a loader have other workers.
    """
    return [
        f"{name}: {kept.get(name)!r}, got {value!r}"
        for name, value in given.to_dict().items()
        if name not in WITHOUT_SAY and kept.get(name) != value
    ]
