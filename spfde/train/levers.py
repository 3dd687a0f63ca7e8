"""The three levers wired into a training run, in SpFDE's order at an epoch boundary."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from spfde.train.batches import Source, shuffled
from spfde.train.metrics import Event
from spfde.train.own import TOPOLOGIES
from spfde.train.recipe import Recipe

SHOWN = 256  # images that an init looks at: one batch of the published ones


def sparsified(model: nn.Module, recipe: Recipe, train: Source) -> nn.Module:
    """Return the model with the recipe's sparsity; one that is sparse already, or that imp will prune, stays as it is.

    An init that runs the model is shown some training images, a function of the seed alone, in the recipe's batches and
    with its loss. GMP's layers start with all their weights.
    """
    if not recipe.sparsity or recipe.method == "imp":
        return model
    from spfde import sparsify
    from spfde.nn import SparseLayer
    from spfde.topology import INITS

    if any(isinstance(module, SparseLayer) for module in model.modules()):
        return model
    first = shuffled(torch.arange(len(train)), recipe.seed, 0)[: SHOWN if INITS[recipe.init].needs != "weights" else 1]
    data = [(images, targets) for images, targets, _ in train.batches(first, recipe.batch_size)]
    smoothed = partial(functional.cross_entropy, label_smoothing=recipe.label_smoothing)
    shown = {"data": data, "loss_fn": smoothed} if INITS[recipe.init].needs != "weights" else {}
    return sparsify(
        model,
        sparsity=0.0 if recipe.topology == "gmp" else recipe.sparsity,
        pattern=recipe.pattern,
        distribution=recipe.distribution,
        init=recipe.init,
        seed=recipe.seed,
        example_input=data[0][0][:1],
        **shown,
    )


def freezer(model: nn.Module, recipe: Recipe, example: Tensor) -> Any:
    """Return the recipe's progressive freezing of the model, or None."""
    if not recipe.freeze:
        return None
    from spfde.freezing import Progressive, blocks

    try:
        return Progressive(
            model,
            blocks(model, example),
            epochs=recipe.epochs,
            interval=recipe.interval,
            flops_reduction=recipe.freeze,
            fraction=recipe.freeze_fraction,
        )
    except ValueError as error:
        raise ValueError(
            f"{error} (in a recipe flops_reduction is freeze, 0 = off, and fraction is freeze_fraction)"
        ) from error


def sieve(samples: int, recipe: Recipe) -> Any:
    """Return the recipe's sieve over `samples`, or None."""
    if not recipe.sieve:
        return None
    from spfde.sieving import Circular, Random

    kind = {"forgetting": Circular, "random": Random}[recipe.sieve_by]
    return kind(samples, fraction=recipe.sieve, interval=recipe.interval, seed=recipe.seed)


def topology(model: nn.Module, optimizer: Optimizer, recipe: Recipe, steps: int) -> Any:
    """Return what moves the recipe's masks, `steps` an epoch, or None (no sparse layer, or fixed masks)."""
    if not recipe.sparsity or recipe.topology in (None, "static") or recipe.drop_fraction == 0:
        return None
    options = {
        "mest": {"soft": recipe.soft},
        "itop": {"growth": recipe.growth},
        "dst-ee": {"c": recipe.exploration},
        "gmp": {"sparsity": recipe.sparsity},
    }
    return TOPOLOGIES[recipe.topology](
        model,
        optimizer,
        total_steps=steps * recipe.epochs,
        every=steps * recipe.interval,
        drop_fraction=recipe.drop_fraction,
        seed=recipe.seed,
        **options.get(recipe.topology, {}),
    )


def horizons(freezer: Any, recipe: Recipe) -> dict[str, float]:
    """Map each block that will freeze to the fraction of the training at which it does."""
    if freezer is None or not recipe.block_cosine:
        return {}
    return {name: epoch / recipe.epochs for epoch, name in freezer.plan}


class Levers:
    """Topology, freezer and sieve of one run; any of them may be None.

    Boundary order: prune and grow (on the last step of the epoch before), bring what freezes to its target
    count, freeze, sieve, reset the counters (the paper leaves it open; no block may freeze in mid-mutation).
    """

    def __init__(self, recipe: Recipe, samples: int, topology: Any, freezer: Any, sieve: Any) -> None:
        self.recipe, self.samples = recipe, samples
        self.topology, self.freezer, self.sieve = topology, freezer, sieve

    @property
    def frozen(self) -> tuple[str, ...]:
        """Blocks frozen so far, in freezing order."""
        return () if self.freezer is None else self.freezer.frozen

    @property
    def sieved(self) -> int:
        """Samples that are out now."""
        return 0 if self.sieve is None else len(self.sieve.removed)

    def order(self, epoch: int) -> Tensor:
        """Indices [n] of the epoch's samples, shuffled as a pure function of seed and epoch."""
        if self.sieve is not None:
            return self.sieve.order()
        return shuffled(torch.arange(self.samples), self.recipe.seed, epoch)

    def begin_epoch(self, epoch: int) -> list[Event]:
        """Cross the boundary into `epoch`; return what happened."""
        events = []
        if self.freezer is not None:
            if self.topology is not None:
                for block in self.freezer.due(epoch):
                    for _, module in block.modules:
                        self.topology.settle(module)
            names = self.freezer.begin_epoch(epoch)
            if names:
                events.append(Event("freeze", f"froze {', '.join(names)}", self.freezer.reason))
        if self.sieve is not None and epoch > 0:
            swap = self.sieve.end_epoch()
            if swap is not None:
                events.append(Event("sieve", f"swapped {swap.moved} samples", swap.reason))
        return events

    def observe(self, indices: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Show the sieve a training forward pass: indices [b], logits [b, classes], targets [b]."""
        if self.sieve is not None:
            self.sieve.observe(indices, logits, targets)

    def step(self) -> list[Event]:
        """Follow an optimizer step; return what happened."""
        if self.topology is None or not self.topology.step():
            return []
        return [Event("topology", self.topology.reason, f"due every {self.recipe.interval} epochs")]

    def end_epoch(self) -> None:
        """Close an epoch."""
        if self.freezer is not None:
            self.freezer.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every lever that is on."""
        parts = {"topology": self.topology, "freezer": self.freezer, "sieve": self.sieve}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s values; what was frozen is frozen again."""
        for name, part in (("freezer", self.freezer), ("topology", self.topology), ("sieve", self.sieve)):
            if part is not None:
                part.load_state_dict(state[name])
