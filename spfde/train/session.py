"""Everything a run trains with, built from its recipe, and the state that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from spfde.data import CropFlip
from spfde.train import layout as layouts
from spfde.train import levers as wiring
from spfde.train import randomness
from spfde.train.batches import Source, source
from spfde.train.checkpoint import CheckpointError
from spfde.train.layout import Layout
from spfde.train.levers import Levers
from spfde.train.optimizer import Factory, make, parameter_groups, recipe_optimizer
from spfde.train.recipe import Recipe
from spfde.train.schedule import learning_rate, step_rate, steps_per_epoch


@dataclass(frozen=True)
class Session:
    """The parts of one run; `example` [1, ...] is an input of the network."""

    recipe: Recipe
    model: nn.Module
    optimizer: torch.optim.Optimizer
    levers: Levers
    train: Source
    test: Source
    layout: Layout
    example: Tensor

    def set_learning_rate(self, progress: float) -> float:
        """Set every group's rate for a point of the training in [0, 1]; return that of what never freezes."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(progress, group["horizon"])
        return self._rate(progress, 1.0)

    def _rate(self, progress: float, horizon: float) -> float:
        recipe = self.recipe
        if recipe.schedule == "step":
            return step_rate(progress, recipe.lr, recipe.warmup, recipe.milestones, recipe.gamma)
        return learning_rate(progress, recipe.lr, recipe.warmup, horizon)

    def autocast(self) -> AbstractContextManager:
        """Return the precision that forward passes run in."""
        return autocast(self.recipe)

    def inputs(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Return a training batch as the network gets it: augmented, a pure function of epoch and index."""
        augment = CropFlip(self.recipe.crop, self.recipe.flip, self.recipe.seed)
        return self.layout.images(augment(images, indices, epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": type(self.optimizer).__name__,
            "levers": self.levers.state_dict(),
            "random": randomness.state(),
        }

    @property
    def checkpoint_size(self) -> int:
        """At least the bytes of a checkpoint: weights, optimizer, levers, the file's own, some room for the history."""
        state = self.state_dict()
        held = [*tensors(state)]
        if next(tensors(state["optimizer"]), None) is None:  # before its first step
            held += [*self.model.parameters()] * moments(self.optimizer)
        return sum(tensor.nbytes + 512 for tensor in held) + 2**18

    @property
    def machine(self) -> dict[str, Any]:
        """What else the numbers depend on to the bit: versions, instruction set, kernels that were forced or tuned."""
        from spfde import __version__
        from spfde._native import native
        from spfde.nn import SparseLayer

        layers = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, SparseLayer)}
        kernels = {name: layer.dispatch_key for name, layer in layers.items() if layer.dispatch_key != "auto"}
        isa = native().isa() if layers else None
        return {"spfde": __version__, "torch": str(torch.__version__), "isa": isa, "kernels": kernels}

    def doubts(self, machine: Mapping[str, Any]) -> list[str]:
        """Say for what reasons a run kept on `machine` may not go on to the same bits here."""
        return [
            f"expected {name} {machine.get(name)!r}, as the checkpoint was made with, got {here!r}:"
            " the numbers may differ in their last bits from here on"
            for name, here in self.machine.items()
            if machine.get(name) != here
        ]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s values.

        Raises:
            CheckpointError: they are those of another network or optimizer.
        """
        name = type(self.optimizer).__name__
        if state["optimizer_name"] != name:
            raise CheckpointError(
                f"expected the checkpoint's optimizer, {state['optimizer_name']}, got {name},"
                " try the one it was made with"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.levers.load_state_dict(state["levers"])
            self.optimizer.load_state_dict(state["optimizer"])
            randomness.restore(state["random"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"expected the checkpoint of this network, got another one ({error}), try the model it was made with"
            ) from error


def tensors(value: Any) -> Iterator[Tensor]:
    """List the tensors in a nest of mappings, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(each)


def moments(optimizer: torch.optim.Optimizer) -> int:
    """Count the tensors that an optimizer keeps of each parameter's size: two or three if it is of Adam's kin."""
    return 2 + bool(optimizer.defaults.get("amsgrad")) if "betas" in optimizer.defaults else 1


def datasets(recipe: Recipe) -> Any:
    """Load the recipe's data set: an object with train, test, num_classes and shape."""
    from spfde.data import load

    options = {
        "train": recipe.train_images,
        "test": recipe.test_images,
        "data_dir": recipe.data_dir,
        "image_size": recipe.image_size,
        "bad_images": recipe.bad_images,
    }
    return load(recipe.dataset, **{name: value for name, value in options.items() if value is not None})


def autocast(recipe: Recipe) -> AbstractContextManager:
    """Return the context that forward passes of a recipe run in."""
    return torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16")


def network(recipe: Recipe, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Create the recipe's network for images of `shape` (c, h, w).

    Raises:
        ValueError: an unknown name, a network that does not take images, or a width that it does not have.
    """
    from spfde.models import create, options

    known = options(recipe.model)
    if "num_classes" not in known:
        raise ValueError(f"expected a network for images, got {recipe.model!r}, try 'resnet20'")
    given = {"num_classes": num_classes, "in_channels": shape[0]}
    if "image_size" in known:
        given["image_size"] = shape[1]
    return create(recipe.model, **given, **({"width": recipe.width} if recipe.width != 1 else {}))


def build(
    recipe: Recipe,
    model: nn.Module | None = None,
    train_set: Dataset | None = None,
    test_set: Dataset | None = None,
    layout: Layout | None = None,
    optimizer: Factory | None = None,
) -> Session:
    """Build a run from its recipe; a model or data sets that are given take the place of the recipe's.

    Seeds every generator. A `layout` that is given (a resumed run's) is not measured again; a given `optimizer`
    makes one from the parameter groups, whose learning rates stay the recipe's.

    Raises:
        ValueError: only one data set is given, data sets without a model, or what the recipe asks does not fit them.
    """
    if (train_set is None) != (test_set is None):
        raise ValueError("expected both train_set and test_set, got one of them, try passing both or none")
    if train_set is not None and model is None:
        raise ValueError("expected a model for your data set, got none, try model=spfde.models.create(...)")
    torch.manual_seed(recipe.seed)
    if train_set is None:
        data = datasets(recipe)
        train_set, test_set = data.train, data.test
        if model is None:
            model = network(recipe, data.num_classes, data.shape)
    train, test = source(train_set, recipe.workers), source(test_set, recipe.workers)
    first, _, _ = next(train.batches(torch.zeros(1, dtype=torch.long), 1))
    if (recipe.crop or recipe.flip) and first.ndim != 4:
        raise ValueError(
            f"expected images [n, c, h, w] for crop and flip, got inputs of shape {list(first.shape)}, try crop=0"
        )
    model = fused(wiring.sparsified(model, recipe, train), recipe)
    if layout is None:
        shape = (min(recipe.batch_size, len(train)), *first.shape[1:])
        with autocast(recipe):
            layout = layouts.choose(recipe.layout, model, shape, measure=recipe.method == "dense")
    model, example = layout.model(model), layout.images(first)
    freezer, sieve = wiring.freezer(model, recipe, example), wiring.sieve(len(train), recipe)
    groups = parameter_groups(model, freezer, wiring.horizons(freezer, recipe))
    optimizer = make(optimizer or recipe_optimizer(recipe), groups)
    active = len(train) if sieve is None else len(sieve.active)
    topology = wiring.topology(model, optimizer, recipe, steps_per_epoch(active, recipe.batch_size))
    levers = Levers(recipe, len(train), topology, freezer, sieve)
    randomness.seed(recipe.seed)  # only now: imports on the way here draw from Python's generator, once a process
    return Session(recipe, model, optimizer, levers, train, test, layout, example)


def fused(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Return the model, its norms fused with what follows them if the recipe says so.

    Raises:
        ValueError: it has no norm that can be fused.
    """
    if not recipe.fuse:
        return model
    from spfde import fuse

    rows = fuse.report(model).rows
    if not any(row.chain for row in rows):
        why = rows[0].reason if rows else "no normalisation layer"
        raise ValueError(f"expected a network with norms to fuse, got {type(model).__name__} ({why}), try fuse=False")
    return fuse(model)
