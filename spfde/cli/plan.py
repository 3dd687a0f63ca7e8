"""`spfde plan`: what a training will take, before it begins."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from spfde._files import check_writable
from spfde.bench.workload import USUAL, workload
from spfde.cli.display import say
from spfde.cli.options import option, refuse
from spfde.cli.terminal import steady
from spfde.convert import sparsify
from spfde.planning import StepsToLoss, steps_to_loss
from spfde.planning import plan as planned
from spfde.planning.check import ALLOWED, check
from spfde.train import Recipe
from spfde.train.recipe.toml import read

REPEATS, CLOCK = 5, "wall"


def plan(
    model: Annotated[str, typer.Option(help="Network of the zoo, or module:callable that returns one.")] = "resnet32",
    batch: Annotated[int | None, option("Samples in a step.", USUAL, min=1)] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels a side, or tokens, of a network of the zoo.")] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input", help="Of a sample of module:callable: 3x224x224.", metavar="SHAPE")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A TOML file of a recipe, as spfde train takes it.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Fraction of weights that are zero; the recipe's.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Pattern of the zeros; the recipe's.")] = None,
    freeze: Annotated[float | None, typer.Option(help="Share of FLOPs to save by freezing; the recipe's.")] = None,
    sieve: Annotated[float | None, typer.Option(help="Share of samples that are out; the recipe's.")] = None,
    fused: Annotated[bool | None, typer.Option("--fuse/--no-fuse", help="Norms as one op; the recipe's.")] = None,
    device: Annotated[
        str | None, typer.Option(help="A device profile's file, or the name of one that is shipped; this machine.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (torch's current number).")] = None,
    measured: Annotated[
        bool, typer.Option("--check", help="Also measure the steps, and say how far off it is.")
    ] = False,
    repeats: Annotated[int | None, option("With --check: steps that are timed, in turn.", REPEATS, min=1)] = None,
    clock: Annotated[str | None, option("With --check: wall, or processor (of one thread).", CLOCK)] = None,
    to_loss: Annotated[
        float | None, typer.Option(help="Also predict the steps of SGD in which fine-tuning gets to this loss.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="With --to-loss: state_dict to start from (torch.save).")] = None,
    samples: Annotated[
        Path | None, typer.Option(help="With --to-loss: a pair (inputs, classes) to fine-tune on (torch.save).")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="With --to-loss: constant learning rate; the recipe's.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the plan to this file.")] = None,
) -> None:
    """Predict a training before it begins: kernels, seconds of a step, what each lever saves, what to do about it."""
    if not measured:
        refuse("with --check", "adding it", repeats=repeats, clock=clock)
    if json is not None:
        check_writable(json)
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    given = {"sparsity": sparsity, "pattern": pattern, "freeze": freeze, "sieve": sieve, "fuse": fused, "lr": lr}
    fields = read(recipe) if recipe else {}
    chosen = Recipe(**{**fields, **{name: value for name, value in given.items() if value is not None}})
    if to_loss is None:
        refuse("with --to-loss", "--to-loss 0.1", weights=weights, samples=samples, lr=lr)
    else:
        _check_fine_tuning(weights, samples, chosen, lr is not None or "lr" in fields)
    load = workload(model, batch, size, input_shape)
    made = planned(load.model, load.inputs, chosen, device=device)
    console = steady()
    say(console, str(made))
    if json is not None:
        say(console, f"plan: {made.save(json)}")
    if to_loss is not None:
        found = _fine_tuning(load.model, to_loss, weights, samples, chosen)
        seconds = "" if found.steps is None else f", {found.steps * made.mean:.3g} s at {load.batch} samples a step"
        rule = f"SGD at {chosen.lr:g} all along, momentum {chosen.momentum:g}, no weight decay"
        say(console, f"to a loss of {to_loss:g}, {found}{seconds} ({rule})")
    if measured:
        misses = check(made, load, repeats or REPEATS, clock or CLOCK)
        for miss in misses:
            verdict = "" if abs(miss.off) <= ALLOWED else f", beyond {ALLOWED:.0%}"
            say(console, f"{miss.name}: planned {miss.planned * 1e3:.3g} ms, measured {miss.measured * 1e3:.3g} ms, "
                         f"{miss.off:+.0%}{verdict}")  # fmt: skip
        if any(abs(miss.off) > ALLOWED for miss in misses):
            raise typer.Exit(1)


def _check_fine_tuning(weights: Path | None, samples: Path | None, recipe: Recipe, has_rate: bool) -> None:
    """What a prediction of steps needs.

    Raises:
        ValueError: something is missing, or the steps are no plain SGD's.
    """
    if weights is None or samples is None or not has_rate:
        raise ValueError(
            "expected --weights, --samples and --lr with --to-loss, got fewer: steps are predicted from pretrained "
            "weights on the samples themselves, not from scratch"
        )
    if recipe.optimizer != "sgd":
        raise ValueError(f"expected optimizer sgd with --to-loss, got {recipe.optimizer}, whose steps are not linear")
    for name in ("nesterov", "clip", "label_smoothing"):
        if getattr(recipe, name):
            raise ValueError(
                f"expected no {name} with --to-loss, which predicts plain SGD, got {getattr(recipe, name)}, try a "
                "recipe without"
            )


def _fine_tuning(model: nn.Module, to_loss: float, weights: Path, samples: Path, recipe: Recipe) -> StepsToLoss:
    """The steps in which a model that begins with these weights gets to a loss, in eval mode."""
    model = copy.deepcopy(model)
    if recipe.sparsity:
        model = sparsify(model, recipe.sparsity, pattern=recipe.pattern, distribution=recipe.distribution)
    model.load_state_dict(torch.load(weights, weights_only=True))
    x, y = torch.load(samples, weights_only=True)
    return steps_to_loss(model.eval(), x, y, to_loss, recipe.lr, momentum=recipe.momentum)
