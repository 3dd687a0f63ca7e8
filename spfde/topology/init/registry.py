"""The mask initialisations by name, what each looks at, and the scores it gives.

`INITS["snip"]` is one with its default options; `register_init("mine", Mine())` adds another, for `spfde.sparsify`,
recipes and the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from spfde._names import unknown
from spfde.topology.allocation import Budget, Scores
from spfde.topology.init.force import FORCE
from spfde.topology.init.functional_scores import ScoringContext
from spfde.topology.init.grasp import GraSP
from spfde.topology.init.snip import SNIP
from spfde.topology.init.synflow import SynFlow
from spfde.topology.init.weights import Magnitude, Random


@runtime_checkable
class Init(Protocol):
    """What chooses a first mask.

    needs: "weights" if it looks at nothing else, "input" if it runs the model on an input, "loss" if it needs data and
    a loss function.
    """

    needs: str

    def scores(self, context: ScoringContext, budget: Budget) -> Scores:
        """A score per block (flat, by layer); the highest are kept, as many as `budget` says."""


INITS: dict[str, Init] = {
    "random": Random(),
    "magnitude": Magnitude(),
    "snip": SNIP(),
    "grasp": GraSP(),
    "synflow": SynFlow(),
    "force": FORCE(),
    "iter-snip": FORCE(revive=False),
}


def register_init(name: str, init: Init) -> None:
    """Makes an initialisation available by name. Doing so twice is doing it once.

    Raises:
        TypeError: `init` is no instance of an `Init`.
        ValueError: the name is another's.
    """
    if isinstance(init, type) or not isinstance(init, Init) or init.needs not in ("weights", "input", "loss"):
        raise TypeError(f"expected an instance with `scores` and `needs` (see spfde.topology.Init), got {init!r}")
    if INITS.setdefault(name, init) is not init:
        raise ValueError(f"expected a new name, got {name!r}, which is {INITS[name]}, try another")


def resolve(
    init: str | Init | Mapping[str, Tensor], data: Any, loss_fn: Any, example_input: Any
) -> Init | Mapping[str, Tensor]:
    """The init that is meant, or the scores given in its place.

    Raises:
        ValueError: its name is unknown, or data and loss_fn are missing or given in vain.
    """
    if isinstance(init, str) and init not in INITS:
        raise unknown("init", init, INITS)
    method = INITS[init] if isinstance(init, str) else init
    if isinstance(method, type) or not isinstance(method, Mapping | Init):
        raise ValueError(f"expected init to be a name, a method or a mapping, got {init!r}, try 'snip' or SNIP()")
    if isinstance(method, Mapping) or method.needs == "weights":
        if data is not None or loss_fn is not None:
            named = "given scores" if isinstance(method, Mapping) else f"init {init!r}"
            raise ValueError(
                f"expected no data and no loss_fn for {named}, which does not look at them, try init='snip'"
            )
        return method
    named, needs_loss = repr(init), method.needs == "loss"
    if data is None and (needs_loss or example_input is None):
        raise ValueError(f"expected data=(x, y) for init {named}, got none, try a batch of the training data")
    if data is not None:
        batches(data)
    if loss_fn is None and needs_loss:
        raise ValueError(f"expected a loss_fn for init {named}, got none, try torch.nn.functional.cross_entropy")
    if loss_fn is not None and not callable(loss_fn):
        raise ValueError(f"expected loss_fn to be callable, got {loss_fn!r}, try torch.nn.functional.cross_entropy")
    return method


def batches(data: Any) -> list[tuple[Any, Any]]:
    """The pairs in data: one pair (x, y), or a list of them.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(data, list) and data and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in data):
        return [tuple(pair) for pair in data]
    if isinstance(data, tuple | list) and len(data) == 2:
        return [tuple(data)]
    what = f"{len(data)} of them" if isinstance(data, tuple | list) else type(data).__name__
    raise ValueError(f"expected data=(x, y) or a list of such pairs, got {what}, try data=next(iter(loader))")


def block_scores(
    init: Init | Mapping[str, Tensor],
    model: nn.Module,
    budget: Budget,
    seed: int,
    data: Any,
    loss_fn: Callable[..., Tensor] | None,
    example_input: Any,
) -> Scores:
    """A score per block (flat, by layer) of a resolved init; the highest are kept. The model stays as it is.

    Raises:
        ValueError: given scores do not fit the layers; the loss cannot be differentiated; scores are not finite.
    """
    if isinstance(init, Mapping):
        return budget.blocks(_given(init, budget.weights))
    pairs = [] if data is None else batches(data)
    example = pairs[0][0] if pairs else example_input
    return init.scores(ScoringContext(model, budget.weights, pairs, loss_fn, example, seed), budget)


def _given(scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Scores:
    for name in scores:
        if name not in weights:
            raise unknown("a layer in init", name, weights)
    for name, weight in weights.items():
        score = scores.get(name)
        if score is None or score.shape != weight.shape or bool(score.isnan().any()):
            what = "none" if score is None else "NaN" if score.shape == weight.shape else list(score.shape)
            raise ValueError(
                f"expected scores {list(weight.shape)} for {name or 'the layer'!r}, got {what}, try excluding it"
            )
    return {name: scores[name].to(weight.device) for name, weight in weights.items()}
