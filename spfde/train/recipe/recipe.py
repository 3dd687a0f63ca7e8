"""What to train and how: one frozen value, validated when it is made."""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from spfde._names import unknown
from spfde.freezing import METHODS as FREEZERS
from spfde.freezing.cache.row import STORED
from spfde.sieving import METHODS as SIEVES
from spfde.sparse.pattern import Pattern
from spfde.topology import METHODS
from spfde.topology.allocation import SPREADS
from spfde.topology.init import INITS
from spfde.topology.lottery import REWINDS
from spfde.train.recipe import defaults, rules
from spfde.train.recipe.defaults import CHOICES, DEFAULTS, DISABLED
from spfde.train.recipe.rules import Rule

# Fields that decide where and when files are written, where it computes, how fast, or what a run is compared with; a
# resumed run may have others.
NON_NUMERIC = ("out", "keep_checkpoints", "checkpoint_every_steps", "workers", "device", "compile", "dense_lr")
OPTIONS = ("topology_options", "freeze_options", "sieve_options")
PRECISIONS = ("float32", "bfloat16", "float16")


def _knob(default: Any, accepts: Rule, text: str) -> Any:
    kept = {"default_factory": dict} if default == {} else {"default": default}
    return field(**kept, metadata={"rule": accepts, "help": text})


@dataclass(frozen=True)
class Recipe:
    """What to train and how; every field is also a flag of `spfde train`, with the same help text.

    Fractions are in [0, 1]; epochs count from 0; a field left at None that method, topology, optimizer or
    schedule has a value of its own for takes that, and reads so afterwards.

    Raises:
        ValueError: a field is out of its range, or asks for what another choice does not have, such as the method.
    """

    dataset: str = _knob("digits", rules.NAME, "Data set, as spfde.data.load knows it.")
    data_dir: str | None = _knob(None, rules.PATH.or_none(), "Directory of a data set that is not embedded.")
    train_images: int | None = _knob(
        None, rules.integer(1).or_none(), "Training samples, images or sequences, to load (the data set's own number)."
    )
    test_images: int | None = _knob(
        None, rules.integer(1).or_none(), "Test samples to load (the data set's own number)."
    )
    image_size: int | None = _knob(None, rules.integer(1, 4096).or_none(), "Side of an image folder's images (32).")
    context: int | None = _knob(None, rules.integer(1, 2**16).or_none(), "Tokens of a text's sequences (128).")
    bad_images: str | None = _knob(
        None, rules.one_of("raise", "skip").or_none(), "What to do about a file that cannot be decoded (raise)."
    )
    crop: int = _knob(0, rules.integer(0, 256), "Pixels of padding for random crops of training images, 0 = none.")
    flip: bool = _knob(False, rules.FLAG, "Mirror training images at random.")
    variants: int | None = _knob(
        None,
        rules.integer(1).or_none(),
        "Different crops and mirrorings of an image, which come in turn (new ones every epoch).",
    )
    model: str = _knob("resnet20", rules.NAME, "Network, as spfde.models.create knows it.")
    width: float = _knob(
        1.0, rules.real("a number in (0, 64]", lambda v: 0 < v <= 64), "Factor on the network's channel counts."
    )
    fuse: bool = _knob(False, rules.FLAG, "Run each norm, addition and activation as one (spfde.fuse).")
    method: str = _knob(
        "spfde",
        rules.one_of(*DEFAULTS["method"]),
        "Method: spfde, dense (the same training with no lever), or imp (lottery tickets).",
    )
    epochs: int = _knob(20, rules.integer(1), "Epochs of training.")
    batch_size: int = _knob(64, rules.integer(1), "Samples in a step.")
    accumulate: int = _knob(
        1, rules.integer(1), "Parts of 2 or more samples that a batch is computed in, one after the other."
    )
    optimizer: str = _knob("sgd", rules.one_of(*DEFAULTS["optimizer"]), "Optimizer: sgd or adamw.")
    lr: float | None = _knob(None, rules.POSITIVE.or_none(), "Peak learning rate.")
    dense_lr: float | None = _knob(
        None, rules.POSITIVE.or_none(), "Peak learning rate of the dense training it is compared with, if another."
    )
    momentum: float = _knob(0.9, rules.BELOW_ONE, "Momentum of SGD, first beta of AdamW.")
    beta2: float | None = _knob(None, rules.BELOW_ONE.or_none(), "Second beta of AdamW.")
    nesterov: bool | None = _knob(None, rules.FLAG.or_none(), "Nesterov's momentum.")
    weight_decay: float | None = _knob(
        None, rules.NOT_NEGATIVE.or_none(), "L2 penalty of SGD, decoupled decay of AdamW, on every parameter."
    )
    clip: float = _knob(0.0, rules.NOT_NEGATIVE, "Largest norm of the whole gradient, 0 = any.")
    label_smoothing: float = _knob(0.0, rules.BELOW_ONE, "Share of each target spread over all classes.")
    schedule: str = _knob("cosine", rules.one_of(*DEFAULTS["schedule"]), "Learning-rate schedule: cosine or step.")
    warmup: float = _knob(0.05, rules.BELOW_ONE, "Fraction of the training with a linear warm-up.")
    block_cosine: bool | None = _knob(
        None,
        rules.FLAG.or_none(),
        "Anneal each block's learning rate over its own active epochs (SpFDE), not over all.",
    )
    milestones: tuple[float, ...] | None = _knob(
        None,
        rules.increasing(rules.INSIDE, "increasing fractions in (0, 1)").or_none(),
        "Fractions of the training at which the rate drops.",
    )
    gamma: float | None = _knob(None, rules.FRACTION.or_none(), "Factor on the rate at each milestone.")
    precision: str = _knob(
        "float32",
        rules.one_of(*PRECISIONS),
        "Precision of the passes: float32, or by autocast bfloat16 or, on a GPU, float16.",
    )
    seed: int = _knob(0, rules.integer(0), "Seed of weights, masks, data order, augmentation and sieve.")
    sparsity: float | None = _knob(None, rules.BELOW_ONE.or_none(), "Fraction of weights that are zero, 0 = off.")
    pattern: str = _knob("unstructured", rules.PATTERN, "What is stored together: single weights, block:RxC, n:m, ...")
    distribution: str = _knob("uniform", rules.one_of(*SPREADS), "How sparsity spreads over layers.")
    init: str | None = _knob(
        None,
        rules.registered(INITS).or_none(),
        "How the first mask is chosen, if need be by a batch.",
    )
    topology: str | None = _knob(
        None, rules.registered(METHODS, "static").or_none(), "How masks move: a method's name, or static."
    )
    interval: int = _knob(1, rules.integer(1), "Epochs between changes of masks, frozen set and sieve.")
    drop_fraction: float | None = _knob(
        None, rules.BELOW_ONE.or_none(), "Fraction of kept weights that move at first, 0 = none."
    )
    soft: bool | None = _knob(
        None, rules.FLAG.or_none(), "MEST's soft memory bound (EM&S): layers train above their target."
    )
    growth: str | None = _knob(
        None, rules.one_of("random", "gradient").or_none(), "Where ITOP grows: at random (SET) or by gradient (RigL)."
    )
    exploration: float | None = _knob(
        None, rules.NOT_NEGATIVE.or_none(), "DST-EE's c, the bonus of weights seldom stored (chosen at every update)."
    )
    topology_options: Mapping[str, Any] = _knob(
        {}, rules.OPTIONS, "Other options of the topology method, by its own names for them."
    )
    rounds: int | None = _knob(
        None, rules.integer(1, 1000).or_none(), "Trainings of imp after the dense one, each pruned further."
    )
    rewind: str | None = _knob(
        None,
        rules.one_of(*REWINDS).or_none(),
        "What goes back to rewind_epoch in each round of imp, and the rate with it.",
    )
    rewind_epoch: int | None = _knob(
        None, rules.integer(0).or_none(), "Epoch that each round of imp starts again from."
    )
    freeze: float | None = _knob(
        None,
        rules.BELOW_ONE.or_none(),
        "Fraction of training FLOPs to save by freezing, if the freezer has a budget; 0 = off.",
    )
    freeze_fraction: float = _knob(2 / 3, rules.FRACTION, "Fraction of the blocks that end up frozen.")
    freeze_by: str = _knob("progressive", rules.registered(FREEZERS), "What decides which blocks freeze, and when.")
    freeze_options: Mapping[str, Any] = _knob({}, rules.OPTIONS, "Other options of the freezer, by its own names.")
    prefix: bool = _knob(True, rules.FLAG, "Run what is frozen from the first block on as one inference call.")
    cache: str = _knob(
        "off",
        rules.PATH,
        "What that returns for each sample, kept: off, auto (for a run with a directory there, else in memory), or in"
        " a directory.",
    )
    cache_dtype: str = _knob("float32", rules.one_of(*STORED), "Precision in which the cache keeps it.")
    cache_budget: int | None = _knob(
        None, rules.integer(1, 2**63 - 1).or_none(), "Bytes that the cache takes at most (half of what is free)."
    )
    sieve: float | None = _knob(None, rules.BELOW_ONE.or_none(), "Fraction of samples out at any time, 0 = off.")
    sieve_by: str = _knob(
        "circular",
        rules.registered(SIEVES),
        "What the sieve takes out: the easiest in turn (SpFDE), any (the control), or by another method.",
    )
    sieve_options: Mapping[str, Any] = _knob({}, rules.OPTIONS, "Other options of the sieve, by its own names.")
    layout: str = _knob(
        "auto",
        rules.one_of("auto", "contiguous", "channels_last"),
        "Memory format; auto: dense takes the faster one, measured before its training.",
    )
    device: str = _knob("cpu", rules.DEVICE, "Where it computes: cpu, cuda, or cuda:1 and so on.")
    compile: bool = _knob(False, rules.FLAG, "Run training passes through torch.compile.")
    threads: int | None = _knob(None, rules.integer(1, 2**16).or_none(), "Threads (torch's current number).")
    workers: int = _knob(0, rules.integer(0, 1024), "Loader processes, for data sets that do not hold tensors.")
    out: str | None = _knob(None, rules.PATH.or_none(), "Run directory (none: no files are written).")
    keep_checkpoints: int | None = _knob(
        None, rules.integer(1).or_none(), "How many of the newest checkpoints to keep (every epoch's)."
    )
    checkpoint_every_steps: int | None = _knob(
        None, rules.integer(1).or_none(), "Steps between checkpoints within an epoch (only at its end)."
    )

    def __post_init__(self) -> None:
        """Check every field, then settle those that a choice has values of its own for."""
        for name in ("out", "data_dir", "cache"):
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        if isinstance(self.milestones, list):  # as TOML and JSON have it
            object.__setattr__(self, "milestones", tuple(self.milestones))
        for item in dataclasses.fields(self):
            rules.check(item.name, item.metadata["rule"], getattr(self, item.name), defaults.field_default(item))
        for name in OPTIONS:
            object.__setattr__(self, name, dict(getattr(self, name)))
        if self.sparsity is None and self.method != "dense":
            object.__setattr__(self, "sparsity", Pattern.parse(self.pattern).sparsity)
        for choice in CHOICES:
            for name in defaults.fields_of(choice):
                value = defaults.resolve(choice, getattr(self, choice), name, getattr(self, name))
                object.__setattr__(self, name, value)
        if self.variants and not (self.crop or self.flip):
            raise ValueError(f"expected crop or flip with variants={self.variants}, got neither, try crop=4")
        if self.accumulate > max(1, self.batch_size // 2):
            raise ValueError(
                f"expected accumulate to be an integer in [1, {max(1, self.batch_size // 2)}] with"
                f" batch_size={self.batch_size}, got {self.accumulate}, try a larger batch_size"
            )
        self._check_cache()
        if self.nesterov and not self.momentum:
            raise ValueError("expected momentum > 0 with nesterov=True, got 0, try momentum=0.9")
        for name, allowed in (("init", ("random",)), ("distribution", ("uniform", "erk"))):
            if self.topology == "gmp" and getattr(self, name) not in allowed:
                raise ValueError(
                    f"expected {name} {' or '.join(map(repr, allowed))} with topology='gmp', which starts dense and has"
                    f" no ranking to go by, got {getattr(self, name)!r}, try leaving it out"
                )
        if self.method == "dense" and self.dense_lr is not None:
            raise ValueError(
                f"expected no dense_lr with method='dense', got {self.dense_lr:g}, try lr={self.dense_lr:g}"
            )
        if self.precision == "float16" and self.device == "cpu":
            raise ValueError("expected a GPU with precision='float16', got device='cpu', try precision='bfloat16'")
        self._check_options()
        if self.method == "imp":
            self._check_rounds()

    def _check_cache(self) -> None:
        if self.cache == "off":
            return
        what = f"with cache={self.cache!r}"
        if (self.crop or self.flip) and not self.variants:
            raise ValueError(f"expected variants {what} and crop or flip, got new images every epoch, try variants=4")
        for name, wanted in (("prefix", True), ("compile", False)):
            if getattr(self, name) is not wanted:
                raise ValueError(f"expected {name}={wanted} {what}, got {not wanted}, try cache='off'")

    def _check_options(self) -> None:
        known = {
            "topology_options": defaults.topology_options(self.topology),
            "freeze_options": defaults.lever_options(FREEZERS[self.freeze_by]) if self.freeze else {},
            "sieve_options": defaults.lever_options(SIEVES[self.sieve_by]) if self.sieve else {},
        }
        for options, names in known.items():
            for name, value in getattr(self, options).items():
                if name not in names:
                    raise unknown(options, name, names)
                if options == "topology_options":
                    names[name].check(name, value)

    def _check_rounds(self) -> None:
        if self.rewind_epoch >= self.epochs:
            raise ValueError(
                f"expected rewind_epoch to be an integer in [0, {self.epochs}) with epochs={self.epochs},"
                f" got {self.rewind_epoch}, try more epochs"
            )
        if not self.sparsity:
            raise ValueError(f"expected sparsity > 0 with method='imp', got {self.sparsity:g}, try method='dense'")
        if self.cache != "off":
            raise ValueError(
                f"expected cache='off' with method='imp', which freezes nothing, got {self.cache!r}, try leaving it out"
            )
        if self.checkpoint_every_steps:
            raise ValueError(
                "expected checkpoint_every_steps to be left out with method='imp', which is kept after every round,"
                f" got {self.checkpoint_every_steps}, try leaving it out"
            )

    @property
    def all_epochs(self) -> int:
        """Epochs of the whole run: `epochs`, and under imp those of every round after the dense one."""
        return all_epochs(vars(self))

    def passed(self, epochs: float) -> float:
        """Return which fraction of its training a run has behind it after `epochs` of all; imp's rounds start again."""
        if epochs > self.epochs:
            again = self.epochs - self.rewind_epoch
            epochs = self.rewind_epoch + (epochs - self.epochs) % again
        return epochs / self.epochs

    def baseline(self) -> Recipe:
        """Return the dense recipe with the same network, data, epochs, seeds and optimizer, and its own peak rate."""
        left = [*defaults.fields_of("method"), *defaults.fields_of("topology")]
        off = {name: DISABLED.get(name) for name in left} | {name: {} for name in OPTIONS}
        lr = self.lr if self.dense_lr is None else self.dense_lr
        return dataclasses.replace(self, method="dense", lr=lr, dense_lr=None, **off)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, in order."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Build a recipe from `to_dict`'s values.

        Raises:
            ValueError: a name is no field of a recipe, or a value is out of range.
        """
        require_fields(values, "a recipe")
        return cls(**values)


def all_epochs(recipe: Mapping[str, Any]) -> int:
    """Return the epochs of a recipe's whole run, from its values; an older version's have no rounds."""
    return recipe["epochs"] + (recipe.get("rounds") or 0) * (recipe["epochs"] - (recipe.get("rewind_epoch") or 0))


def require_fields(names: Iterable[str], where: str) -> None:
    """Check that every name is a field of a recipe.

    Raises:
        ValueError: one is not; the nearest field is named.
    """
    known = [item.name for item in dataclasses.fields(Recipe)]
    for name in names:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = repr(near[0]) if near else "one that spfde train --help lists"
            raise ValueError(f"expected only a recipe's fields in {where}, got {reprlib.repr(name)}, try {hint}")


def differences(kept: Mapping[str, Any], given: Recipe) -> list[str]:
    """List what separates a kept recipe's values from a given one: `lr: 0.1, got 0.2`.

    What has no say in the numbers does not count: a run directory may be moved, a loader have other workers.
    """
    kept = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}  # JSON's tuples
    return [
        f"{name}: {kept.get(name)!r}, got {value!r}"
        for name, value in given.to_dict().items()
        if name not in NON_NUMERIC and kept.get(name) != value
    ]
