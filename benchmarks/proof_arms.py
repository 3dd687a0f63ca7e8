"""What the proof trains: its setting, its arms as recipes, and the samples that they see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from spfde.data import DataSets, Images, Pixels, Sequences
from spfde.train import Recipe
from spfde.train.build import datasets, network

DENSE = "dense"


@dataclass(frozen=True)
class Setting:
    """What all arms share.

    data_dir: "" where the data set needs none. train, held_out: samples of its training half that are trained on and
    judged by, 0 of the first: all; 0 of the latter: the test half judges. lr, sparse_lr: of dense and of sparse
    networks, tuned alike. fuse: whether the network has norms that can be fused.
    """

    dataset: str = "idx"
    data_dir: str = "/usr/share/datasets/fashion-mnist"
    model: str = "resnet20"
    width: float = 1.0
    optimizer: str = "sgd"
    train: int = 12_000
    held_out: int = 5_000
    epochs: int = 12
    batch_size: int = 64
    lr: float = 0.1
    sparse_lr: float = 0.1
    crop: int = 2
    flip: bool = True
    fuse: bool = True


@dataclass(frozen=True)
class Arm:
    """One way to train: fields of a recipe, its share of the epochs, a factor on the setting's learning rate.

    same_as: the arm from which it differs in nothing but time.
    """

    fields: Mapping[str, Any]
    share: float = 1.0
    rate: float = 1.0
    same_as: str | None = None


# Shares of the dense training's epochs that SpFDE gets where it still is so much faster; not tried in screens.
LONGER = {f"SpFDE 10% + 10%, {share:.0%} of the epochs": share for share in (4 / 3, 3 / 2, 5 / 3, 11 / 6, 2)}
# Every arm but the dense ones runs its norms fused, as it would be used.
OFF = {"method": "spfde", "sparsity": 0.0, "topology": "static", "freeze": 0.0, "sieve": 0.0, "fuse": True}
SPARSE = {**OFF, "sparsity": 0.9, "topology": "dst-ee"}


def _dense(**fields: Any) -> Arm:
    return Arm({"method": "dense", **fields}, same_as=DENSE)


ARMS: Mapping[str, Arm] = {
    DENSE: Arm({"method": "dense"}),
    **{
        f"dense, {share:.0%} of the epochs": Arm({"method": "dense"}, share)
        for share in (1 / 6, 0.25, 1 / 3, 0.5, 2 / 3)
    },
    "dense, fused": _dense(fuse=True),
    "dense, channels_last": _dense(layout="channels_last"),
    "dense, fused, channels_last": _dense(fuse=True, layout="channels_last"),
    "dense, compiled": _dense(compile=True),
    "dense, compiled, channels_last": _dense(compile=True, layout="channels_last"),
    **{
        f"{name} {sparsity:.0%}": Arm({**SPARSE, "sparsity": sparsity, **masks})
        for sparsity in (0.9, 0.95)
        for name, masks in {
            "static": {"topology": "static"},
            "RigL": {"topology": "rigl"},
            "DST-EE": {"topology": "dst-ee"},
            "MEST EM&S": {"topology": "mest", "soft": True},
        }.items()
    },
    "DST-EE 90%, ERK": Arm({**SPARSE, "distribution": "erk"}),
    "DST-EE 90%, blocks 4x1": Arm({**SPARSE, "pattern": "block:4x1"}),
    "channels 50%": Arm({**SPARSE, "sparsity": 0.5, "pattern": "channel"}),
    "freeze 20%": Arm({**OFF, "freeze": 0.2}),
    "sieve 20%": Arm({**OFF, "sieve": 0.2}),
    "random sieve 20%": Arm({**OFF, "sieve": 0.2, "sieve_by": "random"}),
    "InfoBatch": Arm({**OFF, "sieve": 0.5, "sieve_by": "infobatch"}),  # the share of the easy ones, as published
    "freeze 20%, sieve 20%": Arm({**OFF, "freeze": 0.2, "sieve": 0.2}),
    "DST-EE 90%, freeze 20%": Arm({**SPARSE, "freeze": 0.2}),
    "DST-EE 90%, sieve 20%": Arm({**SPARSE, "sieve": 0.2}),
    **{
        f"SpFDE {share:.0%} + {share:.0%}": Arm({**SPARSE, "freeze": share, "sieve": share})
        for share in (0.1, 0.15, 0.2, 0.25)
    },
    **{name: Arm({**SPARSE, "freeze": 0.1, "sieve": 0.1}, share) for name, share in LONGER.items()},
    **{
        f"SpFDE {share:.0%} + {share:.0%}, random sieve": Arm(
            {**SPARSE, "freeze": share, "sieve": share, "sieve_by": "random"}
        )
        for share in (0.1, 0.2)
    },
}
# The same learning rates tried for dense as for sparse training, and no other thing.
TUNED = tuple(f"{name}, rate x {rate:g}" for name in (DENSE, "DST-EE 90%", "SpFDE 10% + 10%") for rate in (0.5, 2.0))
ARMS = {**ARMS, **{name: replace(ARMS[name.split(", rate")[0]], rate=float(name.split()[-1])) for name in TUNED}}
# Those that decide: on the full set, with several seeds.
FINAL = (
    *(name for name, arm in ARMS.items() if arm.fields["method"] == "dense" and arm.rate == 1),
    "DST-EE 90%",
    "SpFDE 10% + 10%",
    "SpFDE 10% + 10%, random sieve",
    "InfoBatch",
)
# What a GPT of 4 blocks has not: fused norms, image layouts, an untied head, enough blocks to save a fifth by freezing.
IMAGES_ONLY = ("fused", "channels", "ERK", "freeze 20%", "SpFDE 20%", "SpFDE 25%")


def recipe(name: str, setting: Setting, seed: int, **more: Any) -> Recipe:
    """The recipe of an arm; `more` are fields that have no say in its numbers, such as its directory."""
    arm = ARMS[name]
    fused = {} if setting.fuse else {"fuse": False}
    shared = {
        "dataset": setting.dataset,
        "data_dir": setting.data_dir or None,
        "model": setting.model,
        "width": setting.width,
        "optimizer": setting.optimizer,
        "epochs": max(1, round(setting.epochs * arm.share)),
        "batch_size": setting.batch_size,
        "lr": arm.rate * (setting.sparse_lr if arm.fields.get("sparsity") else setting.lr),
        "crop": setting.crop,
        "flip": setting.flip,
        "layout": "contiguous",
        "threads": 1,
        "seed": seed,
    }
    return Recipe(**{**shared, **arm.fields, **fused, **more})


@cache
def halves(setting: Setting) -> DataSets:
    """What is trained on and what judges: never the test half while samples are held out of the training half."""
    whole = datasets(Recipe(dataset=setting.dataset, data_dir=setting.data_dir or None))
    available = len(whole.train)
    wanted = setting.train + setting.held_out if setting.train else available
    if not setting.held_out < wanted <= available:
        raise ValueError(
            f"expected train + held_out of {available} samples at most, got {setting.train} and {setting.held_out},"
            " try fewer"
        )
    chosen = np.arange(wanted) * available // wanted
    held_out = np.zeros(wanted, bool)
    if setting.held_out:
        held_out[np.arange(setting.held_out) * wanted // setting.held_out] = True
    test = part(whole.train, chosen[held_out]) if setting.held_out else whole.test
    return DataSets(whole.name, part(whole.train, chosen[~held_out]), test, whole.num_classes, whole.shape)


def part(dataset: Dataset, chosen: np.ndarray) -> Dataset:
    """Some samples of a data set that holds tensors."""
    index = torch.from_numpy(chosen)
    if isinstance(dataset, Sequences):
        return Sequences(dataset.tokens[index])
    if isinstance(dataset, Pixels):
        return Pixels(dataset.images[index], dataset.targets[index], dataset.normalise)
    assert isinstance(dataset, Images)
    return Images(dataset.images[index], dataset.targets[index])


def fresh(wanted: Recipe, sets: DataSets) -> nn.Module:
    """The network of a recipe, its weights a function of the seed alone."""
    torch.manual_seed(wanted.seed)
    return network(wanted, sets.num_classes, sets.shape)
