"""Reference trainings that SmartFRZ's predictor learns from: small networks of four families on small data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, default_collate

from spfde._names import unknown
from spfde.data import Images, digits, load
from spfde.freezing.smartfrz.recorder import Record, Recorder
from spfde.models import ViT, create
from spfde.train.fit import fit
from spfde.train.recipe import Recipe

CLASSES, BATCH = 10, 32
PROBE, TEST = 256, 512  # test images: those whose representations are compared, and all


@dataclass(frozen=True)
class Family:
    """A network of reference trainings: what makes one, the side of its images, its optimizer and peak rate."""

    make: Callable[[], nn.Module]
    side: int
    optimizer: str
    lr: float


def _zoo(name: str, width: float) -> Callable[[], nn.Module]:
    return lambda: create(name, num_classes=CLASSES, in_channels=1, width=width)


def _vit() -> nn.Module:
    return ViT(64, 4, 4, image_size=16, patch_size=4, num_classes=CLASSES, in_channels=1)


FAMILIES = {
    "resnet": Family(_zoo("resnet20", 1.0), 16, "sgd", 0.1),
    "vgg": Family(_zoo("vgg19_bn_cifar", 0.125), 32, "sgd", 0.05),
    "mobilenet": Family(_zoo("mobilenet_v2_cifar", 0.25), 16, "adamw", 3e-3),
    "vit": Family(_vit, 16, "adamw", 1e-3),
}
# Sparsity (masks move after every epoch), schedule and seed of a training: first all of one kind, then of the next.
KINDS = ((0.0, "cosine", 0), (0.8, "cosine", 1), (0.8, "step", 2), (0.0, "step", 3))


@dataclass(frozen=True)
class Reference:
    """One reference training. dataset: "scans", the digits without clutter, or "fashion", Fashion-MNIST."""

    family: str
    dataset: str
    sparsity: float
    schedule: str
    seed: int

    @property
    def name(self) -> str:
        """What it is called, and its file."""
        return f"{self.family}-{self.dataset}-{self.sparsity:g}-{self.schedule}-{self.seed}"


def references(count: int, datasets: tuple[str, ...]) -> list[Reference]:
    """The first `count` trainings: each kind with every data set and family, before the next kind.

    Raises:
        ValueError: there are not so many.
    """
    every = [Reference(family, dataset, *kind) for kind in KINDS for dataset in datasets for family in FAMILIES]
    if not 1 <= count <= len(every):
        raise ValueError(f"expected runs in [1, {len(every)}], got {count}, try {len(every)}")
    return every[:count]


def record(reference: Reference, data_dir: Path | None, *, images: int, epochs: int) -> Record:
    """Trains one and records it.

    Args:
        reference: which.
        data_dir: of Fashion-MNIST's IDX files.
        images: of Fashion-MNIST's, how many to train on.
        epochs: length of the training.

    Raises:
        ValueError: an unknown data set, or what its files or numbers refuse.
    """
    family = FAMILIES[reference.family]
    train, test = (_resized(half, family.side) for half in _halves(reference.dataset, data_dir, images))
    levers = {"sparsity": reference.sparsity, "freeze": 0.0, "sieve": 0.0} if reference.sparsity else {}
    recipe = Recipe(
        method="spfde" if reference.sparsity else "dense",
        epochs=epochs,
        batch_size=BATCH,
        optimizer=family.optimizer,
        lr=family.lr,
        schedule=reference.schedule,
        seed=reference.seed,
        layout="contiguous",
        **levers,
    )
    recorder = Recorder(test.images[:PROBE], reference.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(reference.seed)
        model = family.make()
    result = fit(recipe, model=model, train_set=train, test_set=test, levers=[recorder])
    return recorder.record(
        **dataclasses.asdict(reference),
        epochs=epochs,
        train_images=len(train),
        test_accuracy=result.test_accuracy,
        seconds=result.training_seconds,
    )


def _halves(dataset: str, data_dir: Path | None, images: int) -> tuple[Dataset, Dataset]:
    if dataset == "scans":
        scans, classes = digits.scans()
        scans, targets = (scans - scans.mean()) / scans.std(), torch.from_numpy(classes)
        train, test = (Images(scans[half, None], targets[half]) for half in digits.split(0))
        return train, test
    if dataset != "fashion":
        raise unknown("a data set", dataset, ("scans", "fashion"))
    loaded = load("idx", data_dir=data_dir, train=images, test=TEST)
    return loaded.train, loaded.test


def _resized(half: Dataset, side: int) -> Images:
    images, targets = default_collate([half[i] for i in range(len(half))])
    return Images(functional.interpolate(images, (side, side), mode="bilinear", antialias=True), targets)
