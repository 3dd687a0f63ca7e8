"""Why layers cannot become sparse, all told at once, with advice that leads on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from spfde.nn.kinds import has_kind, kinds, sparse_form
from spfde.nn.layer import SparseLayer
from spfde.nn.weighted import Weighted

Rule = str | type[nn.Module]
NAMED = 3  # layers that a sentence names of those with one problem
GROUPS = 8  # problems that a refusal tells apart
UNTYING = "layer.weight = torch.nn.Parameter(layer.weight.detach().clone()) to untie them"


@dataclass(frozen=True)
class Problem:
    """Why a layer cannot be converted.

    subject: the layer or its weights, as they are named. expected, got: the two halves of the sentence. remedy: what
    helps other than to exclude the layer. by_class: whether all layers of its class have the problem.
    """

    name: str
    layer: nn.Module
    subject: str
    expected: str
    got: str
    remedy: str = ""
    by_class: bool = False


def problem_of(entry: Weighted, owners: Mapping[int, Sequence[str]]) -> Problem | None:
    """Why a layer of a kind, or of a subclass of one, cannot be converted; None if it can.

    owners: the names of each Parameter, by its id.
    """
    layer, weight = entry.module, entry.module._parameters.get("weight")

    def problem(expected: str, got: str, remedy: str = "", by_class: bool = False, subject: str = "") -> Problem:
        return Problem(entry.name, layer, subject or repr(entry.name or "the layer"), expected, got, remedy, by_class)

    if weight is not None and is_lazy(weight):
        return problem("data", "with an uninitialized weight", "one forward pass first")
    if weight is not None and not weight.is_floating_point():
        return problem("a floating-point weight", f"of {weight.dtype}")
    if weight is not None and weight.is_meta:
        return problem("data", "on the meta device", "to_empty(device='cpu') and loading its weights first")
    if parametrize.is_parametrized(layer):
        remedy = "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first"
        return problem("a plain weight", "parametrized", remedy)
    if sparse_form(layer) is None:
        got = f"of subclass {type(layer).__name__}, whose behaviour a sparse layer would not keep"
        return problem(f"{names_of_kinds()} itself", got, by_class=True)
    obstacle = getattr(sparse_form(layer), "obstacle", None)
    if obstacle is not None and (got := obstacle(layer)) is not None:
        return problem("a layer that has a sparse form", got)
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        got = "hooked (torch.nn.utils.prune and weight_norm hook too)"
        return problem("a layer without hooks", got, "removing the hooks first")
    if weight is None:
        return problem("a layer that owns its weight Parameter", "with a computed weight")
    names = owners[id(weight)]
    if len(names) > 1:
        return problem("every weight to have one owner", "tied", UNTYING, subject=" and ".join(names))
    return None


def tie_of(entry: Weighted, owners: Mapping[int, Sequence[str]]) -> str | None:
    """What else has the weight of a layer; None if nothing has. owners: the names of each Parameter, by its id."""
    names = [name.removesuffix(".weight") for name in owners.get(id(entry.module._parameters.get("weight")), ())]
    return " and ".join(name for name in names if name != entry.name) or None


def owners_of(model: nn.Module) -> dict[int, list[str]]:
    """The names of each Parameter, by its id: several where it is tied."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():  # a shared module is one owner
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{name}.{key}".lstrip("."))
    return owners


def refusal(
    problems: Sequence[Problem],
    entries: Sequence[Weighted],
    candidates: Sequence[Weighted],
    ends: Sequence[Weighted],
    exclude: Sequence[Rule],
    named: bool,
    bare: bool,
) -> ValueError:
    """All problems by class, each with its first layers, and what to exclude, ready to be pasted.

    entries: all weights of the model. candidates: the layers that may be converted. ends: those that distribution
    "erk" would convert as well. exclude: what is excluded already. named: whether a distribution names the layers.
    bare: whether the model is the layer.
    """
    groups: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        kind = type(problem.layer).__name__
        groups.setdefault((problem.expected, problem.got, kind), []).append(problem)
    if bare:
        kind = path_of(type(problems[0].layer))
        instead = f"a plain layer with its weights, or spfde.convert.register({kind}, ...)"
    elif named:
        instead = f"a distribution without {', '.join(repr(p.name) for p in problems)}"
    elif len(problems) < len(candidates):
        instead = excluding(problems, candidates, exclude)
    elif ends:
        instead = f"distribution='erk' with {excluding(problems, ends, exclude)}"
    else:  # without them nothing would be left
        instead = _registering(problems, entries) or "a layer with a weight Parameter of its own"
    remedies = any(problem.remedy for problem in problems)
    last = bare or not (named or ends or len(problems) < len(candidates))  # what there is to say but for a remedy
    instead = "" if last and remedies else instead
    if len(groups) == 1:
        expected, remedy = problems[0].expected, problems[0].remedy
        advice = ", or ".join(part for part in (remedy, instead) if part)
        return ValueError(f"expected {expected}, got {_group(problems)}, try {advice}")
    shown = list(groups.values())[:GROUPS]
    lines = [f"  {_group(group)}{f': {group[0].remedy}' if group[0].remedy else ''}" for group in shown]
    if len(groups) > GROUPS:
        lines.append(f"  and {len(problems) - sum(map(len, shown))} others")
    what = f"expected layers that sparse ones can stand for, got {len(problems)} that they cannot:"
    advice = ", or ".join(part for part in ("that" if remedies else "", instead) if part)
    return ValueError("\n".join([what, *lines, f"try {advice}"]))


def _registering(problems: Iterable[Problem], entries: Iterable[Weighted]) -> str:
    """The kind of layer, of a subclass that has a problem or without a sparse form, that has most of the weights."""
    sizes: Counter[type[nn.Module]] = Counter()
    subclasses = {problem.layer for problem in problems if problem.by_class}
    for entry in entries:
        layer = entry.module
        if layer in subclasses or (entry.is_layer and not has_kind(layer) and not isinstance(layer, SparseLayer)):
            sizes[type(layer)] += entry.size
    kind = next((path_of(kind) for kind, _ in sizes.most_common(1)), "")
    return f"spfde.convert.register({kind}, a SparseLayer class of your own)" if kind else ""


def _group(problems: Sequence[Problem]) -> str:
    first = problems[0]
    subjects = list(dict.fromkeys(p.subject for p in problems))
    if len(subjects) == 1:
        return f"{first.subject} {first.got}"
    more = f" and {len(subjects) - NAMED} more" if len(subjects) > NAMED else ""
    kind = type(first.layer).__name__
    return f"{len(problems)} {kind} {first.got} ({', '.join(subjects[:NAMED])}{more})"


def excluding(problems: Iterable[Problem], candidates: Iterable[Weighted], exclude: Sequence[Rule]) -> str:
    """`exclude=(...)` with what is excluded already: classes where all of a class go, else names or patterns."""
    problems = list(problems)
    gone = {problem.name for problem in problems}
    stay = {entry.name for entry in candidates} - gone
    rules: list[str] = [rule_text(rule) for rule in exclude]
    for problem in problems:
        kind = type(problem.layer)
        if problem.by_class and _importable(kind):
            rules.append(path_of(kind))
        else:
            rules.append(repr(pattern_of(problem.name, stay)))
    rules = list(dict.fromkeys(rules))
    return f"exclude=({', '.join(rules)}{',' if len(rules) == 1 else ''})"


def pattern_of(name: str, stay: Iterable[str]) -> str:
    """The name with * for its numbers, if none that is to stay is like it."""
    pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
    around = {other[:end] for other in stay for end in [*(m.start() for m in re.finditer(r"\.", other)), len(other)]}
    return name if any(fnmatchcase(other, pattern) for other in around) else pattern


def nothing_to_convert(
    entries: Sequence[Weighted],
    why: Mapping[nn.Module, str],
    convertible: Mapping[str, Sequence[Weighted]],
    tied: Sequence[Weighted],
) -> ValueError:
    """What the model has, why none of it is taken, and what of all advice leads on.

    why: the reason of each layer that has a sparse form. convertible: by advice, the layers that it would convert.
    tied: the layers that untying would convert.
    """
    counts = Counter(f"{e.kind} ({why.get(e.module) or _no_form(e)})" for e in entries)
    has = ", ".join(f"{count} {what}" for what, count in counts.most_common())
    got = f"got none: the model has {has or 'no weights'}"
    ways = [f"{way}, which converts {_counted(found)}" for way, found in convertible.items() if found]
    ways = ways or [way for way in [_registering((), entries), UNTYING if tied else ""] if way]
    advice = f"try {', or '.join(ways)}" if ways else f"try a model with a trained {names_of_kinds()} of its own"
    return ValueError(f"expected at least one {names_of_kinds()} to convert, {got}, {advice}")


def _no_form(entry: Weighted) -> str:
    return "already sparse" if isinstance(entry.module, SparseLayer) else "no sparse form"


def _counted(entries: Iterable[Weighted]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(e.kind for e in entries).most_common())


def names_of_kinds() -> str:
    """The kinds that are converted, in words."""
    *most, last = [path_of(kind).replace("torch.nn.", "nn.") for kind in kinds()]
    return f"{', '.join(most)} or {last}" if most else last


def path_of(kind: type) -> str:
    """How a class is written in a program that has imported its module."""
    if getattr(nn, kind.__name__, None) is kind:
        return f"torch.nn.{kind.__name__}"
    local = kind.__module__ == "__main__" or not _importable(kind)
    return kind.__name__ if local else f"{kind.__module__}.{kind.__qualname__}"


def rule_text(rule: Rule) -> str:
    """How an exclusion is written."""
    return repr(rule) if isinstance(rule, str) else path_of(rule)


def _importable(kind: type) -> bool:
    return "<locals>" not in kind.__qualname__
