"""Which layers of a model can become sparse, why others cannot, and how they are swapped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spfde._modules import as_args, eval_mode
from spfde._names import unknown
from spfde.nn.kinds import has_kind, sparse_form
from spfde.nn.layer import SparseLayer


def select(
    model: nn.Module,
    exclude: Iterable[str | type[nn.Module]] = (),
    named: Iterable[str] | None = None,
    ends_dense: bool = False,
    example_input: Any = None,
) -> dict[str, nn.Module]:
    """The layers to convert, by name ("" for a bare one), in registration order.

    named: just these. ends_dense: without the first weighted layer and the last nn.Linear (a bare layer is both, and
    stays in).

    Raises:
        TypeError: model is not a torch.nn.Module.
        ValueError: a name is unknown, a layer cannot be converted (says why), or none is left.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    bare = sparse_form(model) is not None
    layers = {"": model} if bare else _convertible(model, excluded(model, exclude))
    if named is not None:
        for name in named:
            if name not in layers:
                raise unknown("a layer in distribution", name, layers)
        layers = {name: layer for name, layer in layers.items() if name in named}
    elif ends_dense and not bare:
        for name in _ends(model, layers, example_input):
            del layers[name]
    if not layers:
        raise ValueError(
            "expected at least one nn.Linear or nn.Conv2d to convert, got none, try fewer exclusions, "
            "distribution='erk' (which converts the first and last layers too) or a bare layer"
        )
    for name, layer in layers.items():
        _check_layer(name or "the layer", layer)
    _check_tied(model, layers)
    return layers


def store(
    model: nn.Module, layers: Mapping[str, nn.Module], positions: Mapping[str, Tensor], pattern: str
) -> nn.Module:
    """Swaps `layers` for sparse ones that hold the blocks at `positions`, ascending and as the pattern allows.

    Returns the model (a bare layer's successor).
    """
    converted = {layer: sparse_form(layer).at(layer, positions[name], pattern) for name, layer in layers.items()}
    return converted[model] if model in converted else swap(model, converted)


def excluded(model: nn.Module, exclude: Iterable[str | type[nn.Module]]) -> set[nn.Module]:
    """The modules that names, fnmatch patterns or classes exclude, with everything inside them.

    Raises:
        ValueError: a name matches no module.
    """
    names = [name for name, _ in model.named_modules()]
    exclude = tuple(exclude)
    for rule in exclude:
        if isinstance(rule, str) and not any(fnmatchcase(name, rule) for name in names):
            raise unknown("exclude", rule, [name for name in names if name])
    out: set[nn.Module] = set()
    for name, module in model.named_modules():
        hit = any(fnmatchcase(name, rule) if isinstance(rule, str) else isinstance(module, rule) for rule in exclude)
        if hit:
            out.update(module.modules())
    return out


def _convertible(model: nn.Module, skipped: set[nn.Module]) -> dict[str, nn.Module]:
    """Layers that may be converted, by name, in registration order; shared modules once."""
    sparse = [name for name, m in model.named_modules() if isinstance(m, SparseLayer) and m not in skipped]
    if sparse:
        raise ValueError(
            f"expected a dense model, got {sparse[0]!r} already sparse, try spfde.densify(model) first or exclude it"
        )
    return {name: m for name, m in model.named_modules() if has_kind(m) and m not in skipped}


def _check_layer(name: str, layer: nn.Module) -> None:
    advice = f"try exclude=({name!r},)"
    if parametrize.is_parametrized(layer):
        raise ValueError(
            f"expected a plain weight, got {name!r} parametrized, try torch.nn.utils.parametrize."
            f"remove_parametrizations first, or exclude=({name!r},)"
        )
    if sparse_form(layer) is None:
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


def _ends(model: nn.Module, layers: Mapping[str, nn.Module], example_input: Any) -> set[str]:
    """The first weighted layer and the last nn.Linear."""
    weighted = [m for m in model.modules() if has_kind(m)]
    if example_input is not None:
        weighted = _execution_order(model, weighted, example_input)
    linears = [m for m in weighted if isinstance(m, nn.Linear)]
    dense = {*weighted[:1], *linears[-1:]}
    return {name for name, layer in layers.items() if layer in dense}


@torch.no_grad()
def _execution_order(model: nn.Module, modules: list[nn.Module], example_input: Any) -> list[nn.Module]:
    order: list[nn.Module] = []
    hooks = [m.register_forward_pre_hook(lambda m, _: order.append(m)) for m in modules]
    try:
        with eval_mode(model):
            model(*as_args(example_input))
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(order))


def swap(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replaces modules wherever they are registered: a shared module stays shared."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return model


def densify(model: nn.Module) -> nn.Module:
    """Swaps sparse layers for nn.Linear / nn.Conv2d in place, zeros exact, same outputs; returns the model.

    A bare sparse layer is returned as a new module.
    """
    if isinstance(model, SparseLayer):
        return model.to_dense()
    return swap(model, {m: m.to_dense() for m in model.modules() if isinstance(m, SparseLayer)})
