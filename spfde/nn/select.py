"""Which layers of a model become sparse, and how they are swapped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spfde._modules import eval_mode, run
from spfde._names import unknown
from spfde.nn.kinds import has_kind, sparse_form
from spfde.nn.layer import SparseLayer
from spfde.nn.refusals import Rule, nothing_to_convert, owners_of, problem_of, refusal, tie_of
from spfde.nn.retired import retire
from spfde.nn.weighted import Weighted, is_trained, note_dense, weighted

EXCLUDED, UNTRAINED, UNNAMED = "excluded", "its weight is not trained", "not named in distribution"
# What of these kinds has a problem is no reason to refuse a model: audio models have weight norm on a few of them.
LEFT_DENSE = (nn.Conv1d, nn.ConvTranspose2d)
FIRST, LAST = "the first weighted layer stays dense", "the last nn.Linear stays dense"


@dataclass(frozen=True)
class Selection:
    """The layers to convert, by name ("" for a bare one), in registration order; why each other one stays dense."""

    layers: dict[str, nn.Module]
    dense: dict[nn.Module, str]


def select(
    model: nn.Module,
    exclude: Rule | Iterable[Rule] = (),
    named: Collection[str] | None = None,
    ends_dense: bool = False,
    example_input: Any = None,
    fixed: bool = False,
) -> Selection:
    """The layers of a model that become sparse: of a kind that has a sparse form, trained, not excluded.

    named: just these. ends_dense: without the first weighted layer, of whatever kind, and the last nn.Linear (a bare
    layer is both, and stays in). fixed: also those whose weight has requires_grad False.

    Raises:
        TypeError: model is not a torch.nn.Module.
        ValueError: a name is unknown, layers cannot be converted (says why), or none is left.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            "expected a model before it is wrapped, got a DistributedDataParallel, which would not average the "
            "gradients of new layers, try spfde.sparsify before wrapping"
        )
    exclude, bare = as_rules(exclude), has_kind(model)
    entries = weighted(model)
    skipped = set() if bare else excluded(model, exclude)
    _check_dense(entries, skipped)
    candidates = [entry for entry in entries if not entry.bare and has_kind(entry.module)]
    dense = {e.module: EXCLUDED for e in candidates if e.module in skipped}
    if not fixed:
        dense.update({e.module: UNTRAINED for e in candidates if e.module not in dense and not is_trained(e.module)})
    if bare and model in dense:
        raise ValueError(
            f"expected a layer that is trained, got {type(model).__name__} whose weight has requires_grad False "
            "(what is fixed is not thinned), try layer.weight.requires_grad_() first, or from_dense(layer, mask) of "
            "spfde.nn.SparseLinear or SparseConv2d"
        )
    if named is not None:
        _check_named(named, candidates, dense)
        dense.update({e.module: UNNAMED for e in candidates if e.module not in dense and e.name not in named})
    elif ends_dense and not bare:
        for module, reason in _ends(model, entries, example_input).items():
            if has_kind(module):
                dense.setdefault(module, reason)
    owners = owners_of(model)
    ties = {e.module: f"tied to {tie}" for e in candidates if (tie := tie_of(e, owners)) is not None}
    if named is None and not bare:
        dense = ties | dense
    chosen = [entry for entry in candidates if entry.module not in dense]
    whole = [e for e in candidates if problem_of(e, owners) is None]
    ends = [e for e in whole if dense.get(e.module) in (FIRST, LAST)]
    if not chosen:
        convertible = {
            f"distribution='erk' (or {{{ends[0].name!r}: sparsity}})" if ends else "": ends,
            "requires_grad_() on the weights that are to be sparse": [e for e in whole if dense[e.module] is UNTRAINED],
            "fewer exclusions": [e for e in whole if dense[e.module] is EXCLUDED],
        }
        tied = [e for e in candidates if dense[e.module] == ties.get(e.module)]
        raise nothing_to_convert(entries, dense, convertible, tied)
    problems = [problem for entry in chosen if (problem := problem_of(entry, owners)) is not None]
    if named is None and not bare and len(problems) < len(chosen):
        left = {problem.layer: problem.got for problem in problems if isinstance(problem.layer, LEFT_DENSE)}
        dense.update(left)
        chosen = [entry for entry in chosen if entry.module not in left]
        problems = [problem for problem in problems if problem.layer not in left]
    if problems:
        raise refusal(problems, entries, chosen, ends, exclude, named is not None, bare)
    return Selection({entry.name: entry.module for entry in chosen}, dense)


def store(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    positions: Mapping[str, Tensor],
    pattern: str,
    dense: Mapping[nn.Module, str] | None = None,
) -> nn.Module:
    """Swaps `layers` for sparse ones that hold the blocks at `positions`, ascending and as the pattern allows.

    dense: why others are not among them, noted for `spfde.summary`. Returns the model (a bare layer's successor).
    """
    converted = {layer: sparse_form(layer).at(layer, positions[name], pattern) for name, layer in layers.items()}
    note_dense(model, dense or {})
    retire(model, converted, "weight", "spfde.sparsify")
    return swap(model, converted)


def excluded(model: nn.Module, exclude: Rule | Iterable[Rule]) -> set[nn.Module]:
    """The modules that names, fnmatch patterns or classes exclude, with everything inside them.

    Raises:
        ValueError: a name matches no module.
    """
    names = [name for name, _ in model.named_modules()]
    exclude = as_rules(exclude)
    for rule in exclude:
        if isinstance(rule, str) and not any(_matches(name, rule) for name in names):
            raise unknown("exclude", rule, [name for name in names if name])
    out: set[nn.Module] = set()
    for name, module in model.named_modules():
        hit = any(_matches(name, rule) if isinstance(rule, str) else isinstance(module, rule) for rule in exclude)
        if hit:
            out.update(module.modules())
    return out


def as_rules(exclude: Rule | Iterable[Rule]) -> tuple[Rule, ...]:
    """What `exclude` means: one name, pattern or class is a rule by itself.

    Raises:
        TypeError: one is neither.
    """
    rules = (exclude,) if isinstance(exclude, str | type) else tuple(exclude)
    for rule in rules:
        if not isinstance(rule, str | type):
            kind = type(rule).__name__
            raise TypeError(f"expected names, patterns or classes in exclude, got a {kind}, try its name, or {kind}")
    return rules


def _matches(name: str, rule: str) -> bool:
    return name == rule or fnmatchcase(name, rule)


def _check_dense(entries: Iterable[Weighted], skipped: Collection[nn.Module]) -> None:
    sparse = [e for e in entries if isinstance(e.module, SparseLayer) and e.module not in skipped]
    if sparse:
        first, *others = [repr(e.name or "the layer") for e in sparse]
        rest = [*others[:2], *([f"{len(others) - 2} more"] if len(others) > 2 else [])]
        more = f" (and {', '.join(rest)})" if rest else ""
        raise ValueError(
            f"expected a dense model, got {first} already sparse{more}, try spfde.densify(model) first"
            + (", or exclude=(spfde.nn.SparseLayer,)" if sparse[0].name else "")
        )


def _check_named(named: Iterable[str], candidates: Iterable[Weighted], dense: Mapping[nn.Module, str]) -> None:
    reasons = {entry.name: dense.get(entry.module) for entry in candidates}
    known = [name for name, reason in reasons.items() if reason is None]
    for name in named:
        if name not in reasons:
            raise unknown("a layer in distribution", name, known or reasons)
        if reasons[name] is UNTRAINED:
            raise ValueError(
                f"expected layers in distribution to be trained, got {name!r} whose weight has requires_grad False "
                "(what is fixed is not thinned), try requires_grad_() on its weight first, or a distribution without "
                f"{name!r}"
            )
        if reasons[name] is not None:
            raise ValueError(
                f"expected a layer in distribution or in exclude, got {name!r} in both, try it in one of them"
            )


def _ends(model: nn.Module, entries: Iterable[Weighted], example_input: Any) -> dict[nn.Module, str]:
    """The first weighted layer and the last nn.Linear, with what to say of them."""
    layers = [entry.module for entry in entries if entry.is_layer]
    if example_input is not None:
        layers = _execution_order(model, layers, example_input)
    linears = [m for m in layers if isinstance(m, nn.Linear)]
    return {**{m: FIRST for m in layers[:1]}, **{m: LAST for m in linears[-1:]}}


@torch.no_grad()
def _execution_order(model: nn.Module, modules: list[nn.Module], example_input: Any) -> list[nn.Module]:
    order: list[nn.Module] = []
    hooks = [m.register_forward_pre_hook(lambda m, _: order.append(m)) for m in modules]
    try:
        with eval_mode(model):
            run(model, example_input)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(order))


def swap(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replaces modules wherever they are registered: a shared module stays shared, and what is frozen stays so.

    Returns the model, or what takes its place.
    """
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    for old, successor in new.items():
        hand_over = getattr(old.__dict__.get("train"), "hand_over", None)  # `spfde.freezing.freeze` left it there
        if hand_over is not None:
            hand_over(successor)
    return new.get(model, model)


def made_dense(model: nn.Module) -> nn.Module:
    """Swaps sparse layers for dense ones in place; returns the model (a bare layer's successor)."""
    note_dense(model, {})
    converted = {m: m.to_dense() for m in model.modules() if isinstance(m, SparseLayer)}
    retire(model, converted, "values", "spfde.densify")
    return swap(model, converted)
