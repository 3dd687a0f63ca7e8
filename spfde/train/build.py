"""A session from its inputs: data, network, masks, device, optimizer and levers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spfde._ranks import ALONE, Ranks
from spfde.freezing import METHODS as FREEZERS
from spfde.freezing import FreezeBlock, blocks
from spfde.levers import Lever, LeverFactory, Levers
from spfde.sieving import METHODS as SIEVES
from spfde.sieving import Sieve
from spfde.sieving.shuffle import shuffled
from spfde.topology import INITS, Topology, create
from spfde.train import data
from spfde.train.data import Source, epoch_seed, source
from spfde.train.device import Device, Layout, choose
from spfde.train.optimizer import make, parameter_groups, recipe_optimizer, steps_per_epoch
from spfde.train.pace import front_seconds
from spfde.train.recipe import Recipe
from spfde.train.recipe.defaults import OPTION_FIELDS
from spfde.train.session import Inputs, Session
from spfde.train.step import batch_loss

SHOWN = 256  # images that an init looks at: one batch of the published ones


def build(inputs: Inputs, layout: Layout | None = None) -> Session:
    """Build a session; a model or data sets that are given take the place of the recipe's.

    Seeds every generator. Masks are made on the CPU, so that they are the same on every device. A `layout` that is
    given (a resumed run's) is not measured again. Levers are told in this order: the recipe's topology, its freezer,
    its sieve, then the given ones.

    Raises:
        ValueError: only one data set is given, data sets without a model, or what the recipe asks does not fit them.
        TypeError: a given lever is none, or inputs are not of the model's precision.
    """
    recipe, model = inputs.recipe, inputs.model
    if (inputs.train_set is None) != (inputs.test_set is None):
        raise ValueError("expected both train_set and test_set, got one of them, try passing both or none")
    if inputs.train_set is not None and model is None:
        raise ValueError("expected a model for your data set, got none, try model=spfde.models.create(...)")
    empty = next((name for name, p in model.named_parameters() if p.is_meta), None) if model is not None else None
    if empty is not None:
        raise ValueError(
            f"expected a model with data, got {empty!r} on the meta device, try"
            " model.load_state_dict(state, assign=True) first"
        )
    device = Device.of(recipe.device, recipe.precision)
    torch.manual_seed(recipe.seed)
    train_set, test_set = inputs.train_set, inputs.test_set
    if train_set is None:
        loaded = datasets(recipe)
        train_set, test_set = loaded.train, loaded.test
        if model is None:
            model = network(recipe, loaded.num_classes, loaded.shape)
    train, test = source(train_set, recipe.workers), source(test_set, recipe.workers)
    first, target, _ = next(train.batches(torch.zeros(1, dtype=torch.long), 1))
    _check_precision(first, model)
    _check_ranks(inputs, len(train))
    inputs.ranks.follow_first(model.state_dict().values())
    if (recipe.crop or recipe.flip) and first.ndim != 4:
        raise ValueError(
            f"expected images [n, c, h, w] for crop and flip, got inputs of shape {list(first.shape)}, try crop=0"
        )
    if recipe.sieve and target.ndim > 1 and getattr(SIEVES[recipe.sieve_by], "by_logits", False):
        raise ValueError(
            f"expected a sieve by losses for sequences, got sieve_by={recipe.sieve_by!r}, which looks at classes,"
            " try 'circular' or 'infobatch'"
        )
    model = fused(sparsified(model, recipe, train), recipe).to(device.where)
    if layout is None:
        shape = (min(recipe.batch_size, len(train)), *first.shape[1:])
        layout = choose(recipe.layout, model, shape, device, measure=recipe.method == "dense")
        layout = inputs.ranks.once(lambda: layout)  # it may be measured
    model, example = layout.model(model), device.put(layout.images(first))
    session = with_levers(inputs, model, train, test, layout, device, example)
    # Only now: imports on the way here draw from Python's generator, once a process. Ranks drop out at random each.
    data.seed(recipe.seed, *filter(None, [inputs.ranks.rank]))
    return session


def with_levers(
    inputs: Inputs, model: nn.Module, train: Source, test: Source, layout: Layout, device: Device, example: Tensor
) -> Session:
    """Make optimizer and levers of a model, and the session of all."""
    recipe = inputs.recipe
    given = [each for each in inputs.levers if _is_lever(each)]
    parts = tuple(blocks(model, example)) if recipe.freeze else None
    seconds = inputs.seconds
    if seconds is None and recipe.freeze_options.get("target") == "seconds":
        factory = inputs.optimizer or recipe_optimizer(recipe)
        options = {"optimizer": factory, "layout": layout, "device": device, "example": example}
        seconds = front_seconds(recipe, model, parts, train, **options)
    freeze, sift = freezer(model, parts, recipe, seconds), sieve(len(train), recipe, inputs.ranks)
    known = Levers(lever for lever in (freeze, *given) if lever is not None)
    horizons = known.horizons if recipe.block_cosine else {}
    if horizons and parts is None:
        parts = tuple(blocks(model, example))
    groups = parameter_groups(model, parts or (), horizons, known.lr_factors)
    optimizer = make(inputs.optimizer or recipe_optimizer(recipe), groups)
    session = Session(
        recipe,
        model,
        optimizer,
        train,
        test,
        layout=layout,
        device=device,
        example=example,
        blocks=parts,
        ranks=inputs.ranks,
    )
    active = len(train) if sift is None else len(sift.order())
    masks = topology(model, optimizer, recipe, steps_per_epoch(active, recipe.batch_size, inputs.ranks.count))
    own = [lever for lever in (masks, freeze, sift) if lever is not None]
    session.use(own)  # what a factory sees
    session.use([*own, *(each if _is_lever(each) else _made(each, session) for each in inputs.levers)])
    sift = session.levers.sampler
    if isinstance(sift, Sieve) and sift.num_samples != len(train):
        raise ValueError(
            f"expected a {type(sift).__name__} over the {len(train)} training samples, got one over"
            f" {sift.num_samples}, try {type(sift).__name__}({len(train)})"
        )
    return session


def _check_precision(inputs: Tensor, model: nn.Module) -> None:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), inputs.dtype)
    if inputs.dtype != dtype and (inputs.is_floating_point() or inputs.ndim == 4):
        scaled = f".to({dtype})" if inputs.is_floating_point() else f".to({dtype}) / 255"
        raise TypeError(
            f"expected inputs of {dtype} as the model's weights, got {inputs.dtype}, try a transform: inputs{scaled}"
        )


def _check_ranks(inputs: Inputs, samples: int) -> None:
    """Refuse what many ranks cannot share."""
    recipe, count = inputs.recipe, inputs.ranks.count
    if count == 1:
        return
    least = 2 * count * recipe.accumulate
    if min(recipe.batch_size, samples) < least:
        raise ValueError(
            f"expected 2 samples or more in each part of a batch on each of {count} ranks, got batch_size="
            f"{recipe.batch_size} of {samples} samples with accumulate={recipe.accumulate}, try batch_size={least}"
        )
    if recipe.cache != "off":
        raise ValueError(
            f"expected cache='off' on {count} ranks, each of which meets other samples in every epoch, got "
            f"{recipe.cache!r}, try cache='off'"
        )
    if ":" in recipe.device:
        raise ValueError(f"expected each of {count} ranks to have a GPU, got {recipe.device!r}, try device='cuda'")
    sharing = next((type(each).__name__ for each in inputs.levers if getattr(each, "world", 1) > 1), None)
    if sharing is not None:
        raise ValueError(
            f"expected a sieve of the whole order, which fit shares out, got {sharing} with world={count}, try "
            f"{sharing}(..., rank=0, world=1)"
        )


def _is_lever(given: Lever | LeverFactory) -> bool:
    return isinstance(given, Lever) and not isinstance(given, type)


def _made(factory: LeverFactory, session: Session) -> Lever:
    if not callable(factory):
        raise TypeError(
            f"expected levers (spfde.levers.Lever) or what makes one of a run, got {type(factory).__name__},"
            " try an object with needs, on, state_dict and load_state_dict"
        )
    lever = factory(session)
    if getattr(lever, "horizons", {}):
        raise ValueError(
            f"expected a lever with horizons itself, got a factory of {type(lever).__name__}: the optimizer is made"
            " before it, try making the lever of your own model before fit"
        )
    return lever


def datasets(recipe: Recipe) -> Any:
    """Load the recipe's data set: an object with train, test, num_classes and shape."""
    from spfde.data import load

    options = {
        "train": recipe.train_images,
        "test": recipe.test_images,
        "data_dir": recipe.data_dir,
        "image_size": recipe.image_size,
        "context": recipe.context,
        "bad_images": recipe.bad_images,
    }
    return load(recipe.dataset, **{name: value for name, value in options.items() if value is not None})


def network(recipe: Recipe, num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    """Create the recipe's network for images of `shape` (c, h, w), or for (t,) tokens of `num_classes`.

    Raises:
        ValueError: an unknown name, a network that does not take such inputs, or a width that it does not have.
    """
    from spfde.models import create, options

    known = options(recipe.model)
    tokens = len(shape) == 1
    if ("vocab_size" if tokens else "num_classes") not in known:
        what, example = ("tokens", "gpt_micro") if tokens else ("images", "resnet20")
        raise ValueError(f"expected a network for {what}, got {recipe.model!r}, try {example!r}")
    if tokens:
        given = {"vocab_size": num_classes, "context": shape[0]}
    else:
        given = {"num_classes": num_classes, "in_channels": shape[0]}
    if "image_size" in known:
        given["image_size"] = shape[1]
    return create(recipe.model, **given, **({"width": recipe.width} if recipe.width != 1 else {}))


def sparsified(model: nn.Module, recipe: Recipe, train: Source) -> nn.Module:
    """Return the model with the recipe's sparsity; one that is sparse already, or that imp will prune, stays as it is.

    An init that runs the model is shown some training images, a function of the seed alone, in the recipe's batches and
    with its loss. GMP's layers start with all their weights.
    """
    if not recipe.sparsity or recipe.method == "imp":
        return model
    from spfde import sparsify
    from spfde.nn import SparseLayer

    if any(isinstance(module, SparseLayer) for module in model.modules()):
        return model
    order = shuffled(torch.arange(len(train)), epoch_seed(recipe.seed, 0))
    looks = INITS[recipe.init].needs != "weights"
    first = order[: SHOWN if looks else 1]
    batches = [(images, targets) for images, targets, _ in train.batches(first, recipe.batch_size)]
    smoothed = partial(batch_loss, smoothing=recipe.label_smoothing)
    shown = {"data": batches, "loss_fn": smoothed} if looks else {}
    return sparsify(
        model,
        sparsity=0.0 if recipe.topology == "gmp" else recipe.sparsity,
        pattern=recipe.pattern,
        distribution=recipe.distribution,
        init=recipe.init,
        seed=recipe.seed,
        example_input=batches[0][0][:1],
        **shown,
    )


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


def freezer(
    model: nn.Module,
    parts: tuple[FreezeBlock, ...] | None,
    recipe: Recipe,
    seconds: Sequence[float] | None = None,
) -> Lever | None:
    """Return the recipe's freezer of the model, or None. seconds: by which it plans if the recipe says so."""
    if not recipe.freeze:
        return None
    shared = {
        "epochs": recipe.epochs,
        "interval": recipe.interval,
        "flops_reduction": recipe.freeze,
        "fraction": recipe.freeze_fraction,
        "seconds": seconds,
    }
    method = FREEZERS[recipe.freeze_by]
    try:
        return method(model, parts, **_taken(method, shared), **recipe.freeze_options)
    except ValueError as error:
        raise ValueError(
            f"{error} (in a recipe flops_reduction is freeze, 0 = off, and fraction is freeze_fraction)"
        ) from error


def sieve(samples: int, recipe: Recipe, ranks: Ranks = ALONE) -> Lever | None:
    """Return the recipe's sieve over `samples`, or None; the loop shares out among ranks what it chooses."""
    if not recipe.sieve:
        return None
    shared = {
        "fraction": recipe.sieve,
        "interval": recipe.interval,
        "epochs": recipe.epochs,
        "seed": recipe.seed,
    }
    method, whole = SIEVES[recipe.sieve_by], {"rank": 0, "world": 1} if ranks.count > 1 else {}
    return method(samples, **_taken(method, shared), **whole, **recipe.sieve_options)


def _taken(method: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep those of `values` that a method has a parameter for."""
    parameters = inspect.signature(method).parameters
    return {name: value for name, value in values.items() if name in parameters}


def topology(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Topology | None:
    """Return what moves the recipe's masks, `steps` an epoch, or None (no sparse layer, or fixed masks)."""
    if not recipe.sparsity or recipe.topology in (None, "static") or recipe.drop_fraction == 0:
        return None
    options = {own: getattr(recipe, name) for name, own in OPTION_FIELDS.items() if getattr(recipe, name) is not None}
    if recipe.topology == "gmp":
        options |= {"sparsity": recipe.sparsity, "distribution": recipe.distribution}
    return create(
        recipe.topology,
        model,
        optimizer,
        total_steps=steps * recipe.epochs,
        every_epochs=recipe.interval,
        drop_fraction=recipe.drop_fraction,
        seed=recipe.seed,
        **options,
        **recipe.topology_options,
    )
