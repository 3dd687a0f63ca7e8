"""Where a model can be cut: the last module of the frozen front, and those whose work is not needed behind it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spfde._modules import eval_mode, map_tensors, random_state_restored, tensors
from spfde.freezing.block import FreezeBlock
from spfde.freezing.prefix import forms
from spfde.freezing.prefix.steps import Chain
from spfde.fusing.epilogue import hooked

FEW = 2  # samples that it is tried with

Args = tuple[tuple[Any, ...], dict[str, Any]]
Forwards = Mapping[nn.Module, Callable[..., Any] | None]  # None: the class's own


class NoCut(Exception):
    """A model that cannot be cut at its frozen front; the message says why."""


@dataclass(frozen=True)
class Cut:
    """The module `at` whose output is all that the rest of the model needs of the front, and the modules before it.

    forms: for each number of samples what those return, tensors as (shape, dtype, device).
    """

    at: nn.Module
    skipped: tuple[nn.Module, ...]
    forms: dict[int, dict[nn.Module, Any]] = field(default_factory=dict, repr=False)

    def front(self, model: nn.Module, given: Args, forwards: Forwards) -> Tensor:
        """The output of the front for the arguments `given`, by these forwards; nothing behind it runs."""
        with replaced({**forwards, self.at: _Stop(self.at, forwards.get(self.at))}):
            try:
                call(model, given)
            except _Reached as reached:
                return reached.value
        raise RuntimeError(
            "expected the forward to reach the end of the frozen front as it did before, got a return, try cache='off'"
        )

    def onward(
        self, model: nn.Module, given: Args, boundary: Tensor, to: Cut, forwards: Forwards, chains: Sequence[Chain]
    ) -> Tensor:
        """The output of a longer front, cut at `to`, if this one returns `boundary`: only what lies between runs.

        chains: those that the forwards call; of modules before the cut they do not run.
        """
        found = self._forms(model, given, len(boundary))
        held: dict[nn.Module, Callable[..., Any]] = {m: _Returns(form, poison=False) for m, form in found.items()}
        idle = [chain for chain in chains if all(step.folded.layer in held for step in chain.steps)]
        for chain in idle:
            chain.instead = held[chain.steps[-1].folded.layer]
        try:
            return to.front(model, given, {**forwards, **held, self.at: lambda *args, **kwargs: boundary})
        finally:
            for chain in idle:
                chain.instead = None

    def rest(self, model: nn.Module, given: Args, boundary: Tensor, poison: bool = False) -> Any:
        """What the model returns if its front returns `boundary`: nothing in front of it runs.

        poison: modules of the front return NaN, not just anything.
        """
        forms = self._forms(model, given, len(boundary))
        held: dict[nn.Module, Callable[..., Any]] = {m: _Returns(form, poison) for m, form in forms.items()}
        with replaced({**held, self.at: lambda *args, **kwargs: boundary}):
            return call(model, given)

    def _forms(self, model: nn.Module, given: Args, samples: int) -> dict[nn.Module, Any]:
        """What the modules before the cut return for so many samples, told from what they do for two and three."""
        if samples not in self.forms:
            two, three = (self._recorded(model, _first(given, n)) for n in (2, 3))
            try:
                self.forms[samples] = {m: forms.at(form, three[m], samples) for m, form in two.items()}
            except forms.Irregular:
                self.forms[samples] = self._recorded(model, given)
        return self.forms[samples]

    def _recorded(self, model: nn.Module, given: Args) -> dict[nn.Module, Any]:
        """What the modules before the cut return for these arguments."""
        samples = count(given)
        if samples not in self.forms:
            with (
                eval_mode(model),
                random_state_restored(model, given),
                torch.no_grad(),
                _outputs(self.skipped) as found,
            ):
                self.front(model, given, {})
            self.forms[samples] = {m: map_tensors(forms.form_of, output) for m, output in found.items()}
        return self.forms[samples]


def find_cut(model: nn.Module, front: Sequence[FreezeBlock], given: Args) -> Cut:
    """The cut behind the blocks `front`, tried with the first samples of the arguments `given`.

    Raises:
        NoCut: the rest of the model needs more of the front, the front is no function of the sample, or someone looks.
    """
    units = [module for block in front for _, module in block.modules]
    members = {m for block in front for m in block.members}
    for name, module in model.named_modules():
        if any(module in unit.modules() for unit in units) and hooked(module):
            raise NoCut(f"{name} has hooks, which would see nothing")
    few = _first(given, FEW)
    with eval_mode(model), random_state_restored(model, few), _order(model) as calls, torch.enable_grad():
        expected = call(model, few)
    cut, before = _last(calls, units)
    names = {module: name or "the model" for name, module in model.named_modules()}
    for module in before - members:
        own = [*(p for p in module.parameters(recurse=False) if p.requires_grad), *module.buffers(recurse=False)]
        if own:
            raise NoCut(f"{names[module]} runs in front of the boundary and is not frozen")
    output = calls[-1 - [call.module for call in reversed(calls)].index(cut.at)].output
    if not isinstance(output, Tensor) or output.shape[:1] != (FEW,):
        raise NoCut(f"{names[cut.at]} does not return one tensor [samples, ...]")
    if output.requires_grad:
        raise NoCut(f"what {names[cut.at]} returns depends on something that trains")
    with random_state_restored(model, few), torch.no_grad():
        once = cut.front(model, few, {})
        again = cut.front(model, few, {})
    if not torch.equal(once, again):
        raise NoCut("the front draws random numbers")
    with eval_mode(model), random_state_restored(model, few), torch.no_grad():
        try:
            got = cut.rest(model, few, cut.front(model, few, {}), poison=True)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise NoCut(f"the forward fails without its front: {error}") from error
    if not _alike(got, expected):
        raise NoCut(f"the rest of the model needs more of the front than what {names[cut.at]} returns")
    return cut


def agree(cut: Cut, model: nn.Module, given: Args, forwards: Forwards) -> bool:
    """Whether the front returns the same by these forwards as by the modules' own, to rounding of any precision."""
    few = _first(given, FEW)
    with random_state_restored(model, few), torch.no_grad():
        got, expected = (cut.front(model, few, each).float() for each in (forwards, {}))
    return bool((got - expected).abs().max() <= 0.05 * expected.abs().max())


def count(given: Args) -> int:
    """The number of samples in the arguments: the length of the first tensor."""
    return next((len(t) for t in tensors(given) if t.dim()), 0)


def select(given: Args, which: Tensor, samples: int) -> Args:
    """The arguments for some of the samples: those rows of every tensor that has one for each."""
    return map_tensors(lambda t: t[which.to(t.device)] if t.dim() and len(t) == samples else t, given)


def _first(given: Args, few: int) -> Args:
    """The arguments for the first samples, over again where there are not so many."""
    return select(given, torch.arange(few) % count(given), count(given))


@contextmanager
def replaced(forwards: Forwards) -> Iterator[None]:
    """Inside of it the modules have these forwards, afterwards those of before."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        _set(forwards)
        yield
    finally:
        _set(before)


def _set(forwards: Forwards) -> None:
    for module, forward in forwards.items():
        if forward is None:
            vars(module).pop("forward", None)
        else:
            vars(module)["forward"] = forward


def _forward_of(module: nn.Module) -> Callable[..., Any]:
    return vars(module).get("forward") or type(module).forward.__get__(module)


def call(model: nn.Module, given: Args) -> Any:
    """What the model's forward returns: past its hooks, which see the one call that is the user's."""
    return _forward_of(model)(*given[0], **given[1])


class _Reached(BaseException):  # so that no forward's `except Exception` takes it for an error
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class _Stop:
    """A forward behind which nothing runs."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any] | None) -> None:
        self.forward = forward or _forward_of(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise _Reached(self.forward(*args, **kwargs))


class _Returns:
    """A forward that returns tensors of a form, whatever they hold."""

    def __init__(self, form: Any, poison: bool) -> None:
        self.form, self.poison = form, poison

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return forms.filled(self.form, self.poison)


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    output: Any


@contextmanager
def _order(model: nn.Module) -> Iterator[list[_Call]]:
    """Calls of modules in the order in which they end."""
    calls: list[_Call] = []
    handles = [m.register_forward_hook(lambda m, args, output: calls.append(_Call(m, output))) for m in model.modules()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _outputs(modules: Collection[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """The last output of each module that is called."""
    found: dict[nn.Module, Any] = {}
    handles = [m.register_forward_hook(lambda m, args, output: found.__setitem__(m, output)) for m in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _last(calls: Sequence[_Call], units: Sequence[nn.Module]) -> tuple[Cut, set[nn.Module]]:
    """The cut behind the last of `units` that is called once, and all modules that end before it does."""
    order = [call.module for call in calls]
    single = [m for m in order if m in units and order.count(m) == 1]
    if not single:
        raise NoCut("no module at the end of the front is called once")
    end = order.index(single[-1])
    behind, before = set(order[end + 1 :]), set(order[:end])
    skipped = tuple(m for m in dict.fromkeys(order[:end]) if m in units and m not in behind)
    return Cut(single[-1], skipped), before - set(single[-1].modules())


def _alike(got: Any, expected: Any) -> bool:
    ours, theirs = list(tensors(got)), list(tensors(expected))
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-6)
        for a, b in zip(ours, theirs, strict=True)
    )
