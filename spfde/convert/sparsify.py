"""Whole models: swap dense layers for sparse ones in place, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from spfde.nn.packed import pack, unpack
from spfde.nn.refusals import Rule
from spfde.nn.select import made_dense, select, store
from spfde.sparse.pattern import Pattern
from spfde.topology.allocation import Budget, check_sparsity
from spfde.topology.init import Init, block_scores, resolve

__all__ = ["densify", "sparsify"]


def sparsify(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    pattern: str = "unstructured",
    distribution: str | Mapping[str, float] = "uniform",
    init: str | Init | Mapping[str, Tensor] = "random",
    exclude: Rule | Iterable[Rule] = (),
    seed: int = 0,
    data: tuple[Any, Any] | list[tuple[Any, Any]] | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    example_input: Any = None,
) -> nn.Module:
    """Swaps linear layers and convolutions for sparse layers in place and returns the model.

    Those are nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, the projections of nn.MultiheadAttention,
    transformers' Conv1D and packed experts, timm's Conv2dSame and standardised convolutions, torch_geometric's Linear,
    and what `spfde.convert.register` made known.

    Biases stay the same Parameters; weights become `values`, so build the optimizer afterwards. A layer whose weight
    has requires_grad False (fixed, or frozen) stays dense, and so does one that shares its weight with something else
    (a head tied to its embedding); they stay tied. A bare layer is converted whatever `distribution` and
    `exclude` say, and returned as a new module; one that is not trained is refused.

    Args:
        model: the model, or a bare layer.
        sparsity: fraction of the converted layers' weights that is zero, in [0, 1]. None: 0.9, or what the pattern
            itself gives. A layer keeps round((1 - sparsity) * size) of its blocks (single weights, unless the pattern
            says otherwise), at least 1 unless sparsity is 1.
        pattern: "unstructured", "block:RxC" (R outputs x C inputs), "n:m" such as "2:4", "fan-in" (as many weights for
            every output) or "channel" (whole outputs).
        distribution: "uniform" (the first weighted layer, of whatever kind, and the last nn.Linear stay dense, in
            registration order, or in execution order if example_input is given), "erk", "global", or {layer name:
            sparsity}, which converts just those layers.
        init: which weights are kept: "random", "magnitude", or by running the model: "snip", "grasp", "synflow",
            "force", "iter-snip", or one of these with options, such as spfde.topology.GraSP(temperature=1). Or scores
            of your own, {layer name: tensor of the weight's shape}, of which the highest are kept.
        exclude: module names, fnmatch patterns or module classes (or one of them) that stay dense, with everything
            inside them.
        seed: of the random masks, and of dropout while the model is scored.
        data: for inits that run the model: a batch (x, y), or a list of batches, whose gradients are averaged with one
            batch in memory at a time; x may be a tuple (positional arguments) or a mapping (keywords). "synflow" looks
            at the shape of x alone.
        loss_fn: for inits that run the model: loss_fn(model(x), y) gives a scalar. "synflow" does not call it.
        example_input: an input of the model (a tuple: positional arguments, a mapping: keywords), to find the order of
            execution ("uniform"), or instead of data ("synflow").

    Raises:
        ValueError: an argument is out of range or contradicts the pattern; layers are subclasses, parametrized, hooked
            or already sparse (all named, with what to do); nothing is left to convert; the distribution names a layer
            that is tied or not trained; data and loss_fn are missing, in vain, or give no finite scores. The model is
            unchanged then.
        TypeError: model is not a torch.nn.Module, sparsity no number, or `exclude` holds something else.
    """
    rule = Pattern.parse(pattern)
    sparsity = check_sparsity(sparsity, rule, distribution)
    method = resolve(init, data, loss_fn, example_input)
    named = distribution if isinstance(distribution, Mapping) else None
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    unpacked = unpack(model)
    try:
        model = unpacked.model
        chosen = select(model, exclude, named, distribution == "uniform", example_input)
        budget = Budget.of(chosen.layers, rule, distribution, sparsity)
        positions = budget.positions(block_scores(method, model, budget, seed, data, loss_fn, example_input))
    except BaseException:
        unpacked.undo()
        raise
    model = store(model, chosen.layers, positions, pattern, chosen.dense)
    return unpacked.keep_sparse(model, "spfde.sparsify")


def densify(model: nn.Module) -> nn.Module:
    """Swaps sparse layers for dense ones of the kinds they were, in place, zeros exact; returns the model.

    Outputs are the same. What is frozen stays frozen, and `spfde.freezing.unfreeze` gives it back. A bare sparse layer
    is returned as a new module. An optimizer that still holds the sparse layers' values raises ValueError when it
    steps: build it anew.
    """
    return pack(made_dense(model))
