"""A task that a small network learns in seconds: a bright band whose height is the class."""

from dataclasses import dataclass

import pytest
import torch

from spfde.data import Images
from spfde.models import ResNet
from spfde.train import Recipe, fit

CLASSES = 4


def images(count: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (count,), generator=generator)
    pixels = torch.randn(count, 1, 12, 12, generator=generator)
    pixels[torch.arange(count), 0, targets * 3] += 3
    return Images(pixels, targets)


@dataclass(frozen=True)
class Task:
    """Data, and fits of fresh networks of three residual blocks."""

    train: Images
    test: Images

    def model(self) -> ResNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return ResNet(8, CLASSES, in_channels=1, width=0.5)

    def recipe(self, **fields) -> Recipe:
        levers = {} if fields.get("method") == "dense" else {"sparsity": 0.6, "freeze": 0.1, "sieve": 0.25}
        return Recipe(**{"epochs": 4, "interval": 1, "batch_size": 16, "layout": "contiguous", **levers, **fields})

    def fit(self, recipe: Recipe, model=None, **options):
        model = self.model() if model is None else model
        return fit(recipe, model=model, train_set=self.train, test_set=self.test, **options)


@pytest.fixture(scope="session")
def task() -> Task:
    return Task(images(90, seed=0), images(64, seed=1))
