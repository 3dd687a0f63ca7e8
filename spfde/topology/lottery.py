"""Lottery tickets: iterative magnitude pruning, rewinding the weights or only the learning rate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from spfde._names import unknown
from spfde.nn import SparseLayer
from spfde.nn.select import as_rules, made_dense, select, store
from spfde.sparse.pattern import Pattern
from spfde.topology.allocation import Budget, check_sparsity

Train = Callable[[nn.Module, int, int], Any]
REWINDS = ("weights", "learning-rate")


@dataclass(frozen=True)
class Round:
    """One round of `Lottery`: its number, the share of zeros in the pruned layers, and what `train` returned."""

    number: int
    sparsity: float
    outcome: Any


class Lottery:
    """Trains, prunes the smallest weights, rewinds, and again: `rounds` times, down to `sparsity`.

    Round 0 trains the dense model. Round k keeps the (1 - sparsity) ** (k / rounds) of the weights that were largest
    at the end of round k - 1, never one pruned before, and trains the sparse model from `rewind_epoch` on, starting
    with the weights that epoch began with in round 0 (rewind="weights": arXiv 1803.03635, with rewind_epoch > 0
    1903.01611), or with those it has (rewind="learning-rate": 2003.02389).

    Args:
        model: a dense model; it is changed in place and ends as the ticket (`lottery.model`, a bare layer's successor).
        train: train(model, first, last) trains epochs first to last - 1 with an optimizer of its own, made anew (the
            parameters are others in every round), at these epochs' learning rates, and returns what is to stand in
            the table, such as the accuracy.
        sparsity: of the last round, in (0, 1).
        rounds: of pruning; 20% of the weights go in each if sparsity is 1 - 0.8 ** rounds.
        epochs: of one training.
        rewind_epoch: where training is rewound to, in [0, epochs).
        rewind: "weights" or "learning-rate".
        distribution, pattern, exclude, example_input: as `spfde.sparsify` takes them.

    Raises:
        ValueError: an argument is out of range, or `spfde.sparsify` would refuse the model.
        TypeError: model is not a torch.nn.Module.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Train,
        *,
        sparsity: float,
        rounds: int,
        epochs: int,
        rewind_epoch: int = 0,
        rewind: str = "weights",
        distribution: str = "global",
        pattern: str = "unstructured",
        exclude: Iterable[str | type[nn.Module]] = (),
        example_input: Any = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
        if not 0 < sparsity < 1:
            raise ValueError(f"expected sparsity in (0, 1), got {sparsity}, try 0.9")
        if rounds < 1:
            raise ValueError(f"expected rounds >= 1, got {rounds}, try 10")
        if not 0 <= rewind_epoch < epochs:
            raise ValueError(f"expected rewind_epoch in [0, {epochs}) (epochs), got {rewind_epoch}, try 0")
        if rewind not in REWINDS:
            raise unknown("rewind", rewind, REWINDS)
        if not isinstance(distribution, str):
            raise ValueError(f"expected distribution 'uniform', 'erk' or 'global', got {distribution!r}, try 'global'")
        self.model, self.train = model, train
        self.table: list[Round] = []
        self._plan = {
            "sparsity": sparsity,
            "rounds": rounds,
            "epochs": epochs,
            "rewind_epoch": rewind_epoch,
            "rewind": rewind,
            "distribution": distribution,
            "pattern": pattern,
        }
        self._exclude, self._example = as_rules(exclude), example_input
        self._early: dict[str, Tensor] = {}
        self._names: set[str] | None = None
        # On a copy: what cannot be pruned is refused before hours of training.
        self._names = {name for name, _ in _layers(self._sparse(copy.deepcopy(model), 1))}

    @property
    def done(self) -> bool:
        """Whether every round has been trained."""
        return len(self.table) > self._plan["rounds"]

    def target(self, number: int) -> float:
        """The sparsity of a round: 1 - (1 - sparsity) ** (number / rounds)."""
        return 1 - (1 - self._plan["sparsity"]) ** (number / self._plan["rounds"])

    def run(self) -> list[Round]:
        """Trains the rounds that are left and returns the table of all."""
        while not self.done:
            self.step()
        return self.table

    def step(self) -> Round:
        """Prunes and rewinds (not in round 0), then trains the next round.

        Raises:
            ValueError: all are done.
        """
        if self.done:
            raise ValueError(f"expected a round left to train, got all {len(self.table)} done, try more rounds")
        number, start = len(self.table), self._plan["rewind_epoch"]
        if number:
            self._prune(number)
        else:
            if start:
                self.train(self.model, 0, start)
            self._early = _dense_state(self.model)
        outcome = self.train(self.model, start, self._plan["epochs"])
        self.table.append(Round(number, _sparsity(self.model), outcome))
        return self.table[-1]

    def _prune(self, number: int) -> None:
        """Drops the smallest trained weights of what is stored, then rewinds."""
        kept = {name: m.dense_weight().abs().masked_fill(~m.mask(), -torch.inf) for name, m in _layers(self.model)}
        self.model = self._sparse(made_dense(self.model), number, kept)
        if self._plan["rewind"] == "weights":
            self._restore(self._early, {name: m.mask() for name, m in _layers(self.model)}, number)

    def _restore(self, dense: Mapping[str, Tensor], masks: Mapping[str, Tensor], number: int) -> None:
        """The model with dense weights from a state, of which the masks, those of a round, are stored."""
        model = made_dense(self.model)
        model.load_state_dict(dense)
        self.model = self._sparse(model, number, {n: mask.float() for n, mask in masks.items()}) if masks else model

    def _sparse(self, model: nn.Module, number: int, scores: Mapping[str, Tensor] | None = None) -> nn.Module:
        """The dense model with a round's count of weights stored: those of the highest scores, or magnitudes."""
        spread, pattern = self._plan["distribution"], Pattern.parse(self._plan["pattern"])
        sparsity = check_sparsity(self.target(number), pattern, spread)
        if self._names is None:
            chosen = select(model, self._exclude, ends_dense=spread == "uniform", example_input=self._example)
        else:  # the same in every round, whatever a training has frozen
            chosen = select(model, named=self._names, fixed=True)
        layers = chosen.layers
        budget = Budget.of(layers, pattern, spread, sparsity)
        blocks = budget.blocks(scores or {name: weight.abs() for name, weight in budget.weights.items()})
        return store(model, layers, budget.positions(blocks), self._plan["pattern"])

    def state_dict(self) -> dict[str, Any]:
        """What goes on after the last finished round, in tensors and plain values (and what `train` returned)."""
        return {
            "plan": dict(self._plan),
            "table": [asdict(row) for row in self.table],
            "early": self._early,
            "late": _dense_state(self.model),
            "masks": {name: m.mask() for name, m in _layers(self.model)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`'s values.

        Raises:
            ValueError: they are those of another plan or model; nothing has changed then.
        """
        for name, value in self._plan.items():
            if state["plan"].get(name) != value:
                raise ValueError(
                    f"expected the state of {name}={value!r}, got {state['plan'].get(name)!r}, try a new run"
                )
        own = {name: tensor.shape for name, tensor in _dense_state(self.model).items()}
        pruned = set(state["masks"]) or self._names
        if pruned != self._names or own != {name: tensor.shape for name, tensor in state["late"].items()}:
            raise ValueError(
                "expected the state of this model and exclude, got another one's, try what it was made with"
            )
        self._restore(state["late"], state["masks"], len(state["table"]) - 1)
        self._early = dict(state["early"])
        self.table = [Round(**row) for row in state["table"]]


def _layers(model: nn.Module) -> list[tuple[str, SparseLayer]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, SparseLayer)]


def _dense_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the model's tensors, under the names they have when it is dense."""
    own = {f"{name}.{key}".lstrip(".") for name, _ in _layers(model) for key in ("values", "row_ptr", "col")}
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name not in own}
    return {**state, **{f"{name}.weight".lstrip("."): m.dense_weight() for name, m in _layers(model)}}


def _sparsity(model: nn.Module) -> float:
    layers = [m for _, m in _layers(model)]
    total = sum(prod(m.shape) for m in layers)
    return 1 - sum(m.stored for m in layers) / total if total else 0.0
