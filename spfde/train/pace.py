"""What a run's own step takes with the front of its network frozen, for a freezer that plans by seconds."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spfde._modules import random_state_restored
from spfde._ranks import Ranks
from spfde.freezing import FreezeBlock
from spfde.freezing.schemes import to_freeze
from spfde.freezing.seconds import stage_seconds
from spfde.train.data import Batch, Source
from spfde.train.device import Device, Layout
from spfde.train.optimizer import Factory, make, parameter_groups
from spfde.train.recipe import Recipe
from spfde.train.session import Session
from spfde.train.stats import Stopwatch
from spfde.train.step import forward_backward, update


def front_seconds(
    recipe: Recipe,
    model: nn.Module,
    blocks: tuple[FreezeBlock, ...],
    train: Source,
    *,
    optimizer: Factory,
    layout: Layout,
    device: Device,
    example: Tensor,
) -> tuple[float, ...]:
    """Time the run's step with the first 0, 1, ... blocks frozen, up to the recipe's fraction of them.

    A whole step: batch, augmentation, forward, backward and optimizer, on a copy of the network that is not compiled,
    without a cache, and whose weights a learning rate of 0 keeps. Model and torch's random state stay as they are.
    """
    copied, parts = copy.deepcopy((model, blocks))
    own = make(optimizer, parameter_groups(copied, parts, {}))
    for group in own.param_groups:
        group["lr"] = 0.0
    plain = dataclasses.replace(recipe, compile=False, cache="off")
    session = Session(plain, copied, own, train, train, layout=layout, device=device, example=example, blocks=parts)
    names, supply = [block.name for block in parts], _whole_batches(train, recipe)

    def freeze(count: int) -> None:
        session.unfreeze(session.frozen[count:])
        session.freeze(names[:count])

    def step() -> None:
        watch = Stopwatch()
        images, targets, indices = next(supply)
        own.zero_grad(set_to_none=True)
        with session.graph():
            forward_backward(session, session.inputs(images, indices, 0), device.put(targets), indices, watch)
        update(session, watch)

    copied.train()
    with random_state_restored(model):
        return stage_seconds(step, freeze, to_freeze(len(parts), recipe.freeze_fraction), device.where)


def _whole_batches(train: Source, recipe: Recipe) -> Iterator[Batch]:
    """Yield batches of the training set again and again, all of one size."""
    size = max(1, min(recipe.batch_size, len(train)) // Ranks().count)
    order = torch.arange(len(train) // size * size)
    while True:
        yield from train.batches(order, size, key=(recipe.seed, 0))
