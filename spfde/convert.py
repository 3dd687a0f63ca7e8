"""Whole models: swap dense layers for sparse ones in place, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from math import isclose
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from spfde._names import unknown
from spfde.nn import SparseConv2d, SparseLayer, SparseLinear
from spfde.structure import Grid, Pattern
from spfde.topology import birth
from spfde.topology import distribution as distributions

# NonDynamicallyQuantizableLinear is nn.MultiheadAttention's out_proj: a Linear under another name.
_CONVERTERS: dict[type, Callable[..., SparseLayer]] = {
    nn.Linear: SparseLinear.from_dense,
    NonDynamicallyQuantizableLinear: SparseLinear.from_dense,
    nn.Conv2d: SparseConv2d.from_dense,
}
_DISTRIBUTIONS = ("uniform", "erk", "global")
_DATA_INITS = ("snip", "grasp", "synflow", "force")


def sparsify(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    pattern: str = "unstructured",
    distribution: str | Mapping[str, float] = "uniform",
    init: str = "random",
    exclude: Iterable[str | type[nn.Module]] = (),
    seed: int = 0,
    data: tuple[Tensor, Tensor] | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    example_input: Any = None,
) -> nn.Module:
    """Swaps nn.Linear and nn.Conv2d for sparse layers in place and returns the model.

    Biases stay the same Parameters; weights become `values`, so build the optimizer afterwards. A bare layer is always
    converted and returned as a new module.

    Args:
        model: the model, or a bare nn.Linear / nn.Conv2d.
        sparsity: fraction of the converted layers' weights that is zero, in [0, 1]. None: 0.9, or what the pattern
            itself gives. A layer keeps round((1 - sparsity) * size) of its blocks (single weights, unless the pattern
            says otherwise), at least 1 unless sparsity is 1.
        pattern: "unstructured", "block:RxC" (R outputs x C inputs), "n:m" such as "2:4", "fan-in" (as many weights for
            every output) or "channel" (whole outputs).
        distribution: "uniform" (the first weighted layer and the last nn.Linear stay dense, in registration order, or
            in execution order if example_input is given), "erk", "global", or {layer name: sparsity}, which converts
            just those layers.
        init: which weights are kept: "random" or "magnitude".
        exclude: module names, fnmatch patterns or module classes that stay dense, with everything inside them.
        seed: of the random masks.
        data: reserved for inits that look at data, refused by those that do not.
        loss_fn: like data.
        example_input: an input (or tuple of inputs) of the model, to find the order of execution.

    Raises:
        ValueError: an argument is out of range or contradicts the pattern; a layer is a subclass, parametrized, hooked,
            tied or already sparse (named, with what to do); nothing is left to convert. The model is unchanged then.
        TypeError: model is not a torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    rule = Pattern.parse(pattern)
    sparsity = _sparsity(sparsity, rule, distribution)
    _check_init(init, data, loss_fn)
    bare = type(model) in _CONVERTERS
    layers = {"": model} if bare else _convertible(model, tuple(exclude))
    if isinstance(distribution, Mapping):
        _check_names(layers, distribution)
        layers = {name: layer for name, layer in layers.items() if name in distribution}
    elif distribution == "uniform" and not bare:
        for name in _kept_dense(model, layers, example_input):
            del layers[name]
    if not layers:
        raise ValueError(
            "expected at least one nn.Linear or nn.Conv2d to convert, got none, try fewer exclusions, "
            "distribution='erk' (which converts the first and last layers too) or a bare layer"
        )
    for name, layer in layers.items():
        _check_layer(name or "the layer", layer)
    _check_tied(model, layers)
    weights = {name: layer.weight for name, layer in layers.items()}
    grids = {name: _grid(rule, name or "the layer", layer) for name, layer in layers.items()}
    layer_scores = birth.scores(weights, grids, init, seed)
    counts = _counts(weights, grids, distribution, sparsity, layer_scores)
    masks = birth.masks(weights, grids, rule, counts, layer_scores)
    converted = {layer: _CONVERTERS[type(layer)](layer, masks[name], pattern) for name, layer in layers.items()}
    return converted[model] if bare else _swap(model, converted)


def densify(model: nn.Module) -> nn.Module:
    """Swaps sparse layers for nn.Linear / nn.Conv2d in place, zeros exact, same outputs; returns the model.

    A bare sparse layer is returned as a new module.
    """
    if isinstance(model, SparseLayer):
        return model.to_dense()
    return _swap(model, {m: m.to_dense() for m in model.modules() if isinstance(m, SparseLayer)})


def _swap(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replaces modules wherever they are registered: a shared module stays shared."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return model


def _convertible(model: nn.Module, exclude: tuple[str | type[nn.Module], ...]) -> dict[str, nn.Module]:
    """Layers that may be converted, by name, in registration order; shared modules once."""
    names = [name for name, _ in model.named_modules()]
    for rule in exclude:
        if isinstance(rule, str) and not any(fnmatchcase(name, rule) for name in names):
            raise unknown("exclude", rule, [name for name in names if name])
    skipped: set[nn.Module] = set()
    for name, module in model.named_modules():
        hit = any(fnmatchcase(name, rule) if isinstance(rule, str) else isinstance(module, rule) for rule in exclude)
        if hit:
            skipped.update(module.modules())
    sparse = [name for name, m in model.named_modules() if isinstance(m, SparseLayer) and m not in skipped]
    if sparse:
        raise ValueError(
            f"expected a dense model, got {sparse[0]!r} already sparse, try spfde.densify(model) first or exclude it"
        )
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and m not in skipped}


def _check_layer(name: str, layer: nn.Module) -> None:
    advice = f"try exclude=({name!r},)"
    if parametrize.is_parametrized(layer):
        raise ValueError(
            f"expected a plain weight, got {name!r} parametrized, try torch.nn.utils.parametrize."
            f"remove_parametrizations first, or exclude=({name!r},)"
        )
    if type(layer) not in _CONVERTERS:
        raise ValueError(
            f"expected nn.Linear or nn.Conv2d itself, got {name!r} of subclass {type(layer).__name__}, whose behaviour "
            f"a sparse layer would not keep, {advice}"
        )
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    if hooks:
        raise ValueError(
            f"expected a layer without hooks, got {name!r} hooked (torch.nn.utils.prune and weight_norm hook too), "
            f"try removing the hooks first, or exclude=({name!r},)"
        )
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        raise ValueError(f"expected {name!r} to own its weight Parameter, got a computed weight, {advice}")
    if isinstance(layer.weight, nn.UninitializedParameter) or layer.weight.is_meta:
        raise ValueError(f"expected {name!r} to hold data, got an uninitialized weight, try one forward pass first")


def _check_tied(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Refuses a weight that another module uses too: converting one side would silently untie it."""
    owners: dict[int, list[str]] = {}
    for module_name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{module_name}.{key}".lstrip("."))
    for name, layer in layers.items():
        tied = owners[id(layer.weight)]
        if len(tied) > 1:
            raise ValueError(
                f"expected every weight to have one owner, got {' and '.join(tied)} tied, try exclude=({name!r},)"
            )


def _check_init(init: str, data: Any, loss_fn: Any) -> None:
    if init in _DATA_INITS:
        raise ValueError(f"expected init 'random' or 'magnitude', got {init!r}, which this version does not have")
    if init not in birth.INITS:
        raise unknown("init", init, birth.INITS)
    if data is not None or loss_fn is not None:
        raise ValueError(f"expected no data and no loss_fn for init {init!r}, which does not look at them")


def _sparsity(sparsity: float | None, rule: Pattern, distribution: str | Mapping[str, float]) -> float:
    """The sparsity that is meant; refuses what contradicts the pattern or is out of range."""
    named = distribution if isinstance(distribution, Mapping) else {}
    if not named and distribution not in _DISTRIBUTIONS:
        raise unknown("distribution (or a mapping)", distribution, _DISTRIBUTIONS)
    own = rule.sparsity
    for name, given in {"": sparsity, **named}.items():
        what = f"sparsity of {name!r}" if name else "sparsity"
        if given is not None and not 0 <= given <= 1:
            raise ValueError(f"expected {what} in [0, 1], got {given} (it is the fraction of zeros)")
        if given is not None and own is not None and not isclose(given, own, abs_tol=1e-3):
            raise ValueError(
                f"expected {what} {own:.4g}, which pattern {str(rule)!r} fixes, got {given}, try leaving it out"
            )
    if own is not None and not named and distribution != "uniform":
        raise ValueError(
            f"expected distribution 'uniform', as pattern {str(rule)!r} fixes every layer's sparsity, got "
            f"{distribution!r}"
        )
    return sparsity if sparsity is not None else 0.9 if own is None else own


def _check_names(layers: Mapping[str, nn.Module], wanted: Mapping[str, float]) -> None:
    for name in wanted:
        if name not in layers:
            raise unknown("a layer in distribution", name, layers)


def _grid(rule: Pattern, name: str, layer: nn.Module) -> Grid:
    try:
        return rule.grid(tuple(layer.weight.shape), getattr(layer, "groups", 1))
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error


def _counts(
    weights: Mapping[str, Tensor],
    grids: Mapping[str, Grid],
    distribution: str | Mapping[str, float],
    sparsity: float,
    layer_scores: Mapping[str, Tensor],
) -> dict[str, int]:
    """How many blocks each layer keeps."""
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    blocks = {name: grid.size for name, grid in grids.items()}
    if isinstance(distribution, Mapping):
        return {name: distributions.stored_count(distribution[name], size) for name, size in blocks.items()}
    if distribution == "uniform":
        return distributions.uniform(shapes, sparsity, blocks)
    if distribution == "erk":
        return distributions.erk(shapes, sparsity, blocks)
    return birth.keep_globally(layer_scores, distributions.stored_count(sparsity, sum(blocks.values())))


def _kept_dense(model: nn.Module, layers: Mapping[str, nn.Module], example_input: Any) -> set[str]:
    """The first weighted layer and the last nn.Linear."""
    weighted = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if example_input is not None:
        weighted = _execution_order(model, weighted, example_input)
    linears = [m for m in weighted if isinstance(m, nn.Linear)]
    dense = {*weighted[:1], *linears[-1:]}
    return {name for name, layer in layers.items() if layer in dense}


@torch.no_grad()
def _execution_order(model: nn.Module, modules: list[nn.Module], example_input: Any) -> list[nn.Module]:
    order: list[nn.Module] = []
    modes = {m: m.training for m in model.modules()}
    hooks = [m.register_forward_pre_hook(lambda m, _: order.append(m)) for m in modules]
    try:
        model.eval()
        model(*(example_input if isinstance(example_input, tuple) else (example_input,)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return list(dict.fromkeys(order))
