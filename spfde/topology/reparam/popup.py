"""Masks over frozen weights: a score per weight is trained, the weights are not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spfde.nn.kinds import is_turned
from spfde.nn.select import as_rules, excluded, select, store
from spfde.sparse.pattern import Grid, Pattern
from spfde.topology.allocation import Budget, check_sparsity, grid_of


class Choice(nn.Module, ABC):
    """weight * mask(scores) as a parametrization; the mask's gradient goes straight through to the scores."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, weight: Tensor) -> Tensor:
        """Weight with zeros where the mask is off."""
        strength = self.strength()
        through = strength - strength.detach()  # 0, with the gradient of the strength
        return weight * (self.mask() + through)

    def strength(self) -> Tensor:
        """What the mask is taken from, differentiable."""
        return self.scores

    @abstractmethod
    def mask(self) -> Tensor:
        """Bool mask of the weight's shape."""


class HighestScores(Choice):
    """Keeps the share of the weights with the highest |score|."""

    def __init__(self, scores: Tensor, grid: Grid, pattern: Pattern, sparsity: float, turned: bool = False) -> None:
        """turned: whether the scores are [inputs, outputs]."""
        super().__init__(scores)
        self.grid, self.pattern, self.sparsity, self.turned = grid, pattern, sparsity, turned

    def strength(self) -> Tensor:
        """|score|."""
        return self.scores.abs()

    @torch.no_grad()
    def mask(self) -> Tensor:
        """The highest scores, as many as the sparsity leaves, where the pattern allows."""
        turned = frozenset([""] if self.turned else [])
        budget = Budget({"": self.scores}, {"": self.grid}, self.pattern, "uniform", self.sparsity, turned)
        return budget.masks(budget.blocks({"": self.strength()}))[""]


class AboveThreshold(Choice):
    """Keeps the weights whose score is above a threshold."""

    def __init__(self, scores: Tensor, threshold: float) -> None:
        super().__init__(scores)
        self.threshold = threshold

    def mask(self) -> Tensor:
        """Whether a score is above the threshold."""
        return self.scores.detach() > self.threshold


class FrozenWeights:
    """What `EdgePopup` and `Piggyback` share: a model whose weights are fixed and whose masks are trained.

    While it lasts the layers compute densely, with zeros; `finish` makes them sparse layers. state_dict holds the
    scores next to the weights.
    """

    def __init__(
        self, model: nn.Module, choices: Mapping[str, Choice], trainable: set[nn.Module], pattern: str
    ) -> None:
        self.model = model
        self._layers = {name: model.get_submodule(name) for name in choices}
        self._pattern = pattern
        own = {id(p) for m in trainable for p in m.parameters()}
        self._fixed = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
        for parameter in self._fixed:
            parameter.requires_grad_(False)
            parameter.grad = None
        for name, layer in self._layers.items():
            parametrize.register_parametrization(layer, "weight", choices[name])

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, for the optimizer: the scores, and what `exclude` named."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def masks(self) -> dict[str, Tensor]:
        """The bool masks of now, by layer."""
        return {name: _choice(layer).mask() for name, layer in self._layers.items()}

    def finish(self) -> nn.Module:
        """The model with sparse layers that hold the weights their masks keep, bit for bit; the scores are dropped.

        Parameters require gradients again if they did before. A bare layer's successor is returned as a new module.

        Raises:
            ValueError: it is finished.
        """
        if not all(map(parametrize.is_parametrized, self._layers.values())):
            raise ValueError("expected masks in training, got a finished model, try a new start")
        pattern, masks = Pattern.parse(self._pattern), self.masks()
        grids = {name: grid_of(pattern, name, layer) for name, layer in self._layers.items()}
        masks = {name: mask.mT if is_turned(self._layers[name]) else mask for name, mask in masks.items()}
        positions = {name: pattern.positions(mask, grids[name]) for name, mask in masks.items()}
        for layer in self._layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        for parameter in self._fixed:
            parameter.requires_grad_(True)
        self.model = store(self.model, self._layers, positions, self._pattern)
        return self.model


class EdgePopup(FrozenWeights):
    """Finds a subnetwork of random weights: forward w * [|score| among the highest], gradients to all scores.

    Source: arXiv 1911.13299. Weights, biases and affine norms stay as they are; every layer keeps the same share. Train
    `popup.parameters()`, then use `popup.finish()`.

    Args:
        model: a dense model, changed in place.
        sparsity: fraction of the weights that is off in every layer, in [0, 1]; the paper's best is about 0.5.
        pattern: as `spfde.sparsify` takes it; |scores| are summed over a block.
        exclude: modules that stay as they are and train as usual.
        signed: give each layer's weights one magnitude, sqrt(2 / fan-in), with their signs (the paper's best start).
        seed: of the scores.

    Raises:
        ValueError: an argument is out of range, or a layer cannot be converted (named); nothing has changed then.
        TypeError: model is not a torch.nn.Module.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float = 0.5,
        *,
        pattern: str = "unstructured",
        exclude: Iterable[str | type[nn.Module]] = (),
        signed: bool = False,
        seed: int = 0,
    ) -> None:
        rule, exclude = Pattern.parse(pattern), as_rules(exclude)
        sparsity = check_sparsity(sparsity, rule, "uniform")
        layers = select(model, exclude, fixed=True).layers
        grids = Budget.of(layers, rule, "uniform", sparsity).grids
        generator = torch.Generator().manual_seed(seed)
        choices = {
            name: HighestScores(_start(layer.weight, generator), grids[name], rule, sparsity, is_turned(layer))
            for name, layer in layers.items()
        }
        if signed:
            with torch.no_grad():
                for layer in layers.values():
                    layer.weight.copy_(layer.weight.sign() * (2 / _fan_in(layer.weight)) ** 0.5)
        super().__init__(model, choices, excluded(model, exclude), pattern)


class Piggyback(FrozenWeights):
    """Learns a mask over the fixed weights of a trained model: forward w * [score > threshold].

    Source: arXiv 1801.06519. How many weights are off is up to the training. Train `masks.parameters()`, then use
    `masks.finish()`.

    Args:
        model: a dense model, changed in place.
        start: the score that every weight begins with.
        threshold: of the scores.
        exclude: modules that stay as they are and train as usual, such as a new head.

    Raises:
        ValueError: start is not above threshold, or a layer cannot be converted (named); nothing has changed then.
        TypeError: model is not a torch.nn.Module.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        start: float = 1e-2,
        threshold: float = 5e-3,
        exclude: Iterable[str | type[nn.Module]] = (),
    ) -> None:
        if not start > threshold:
            raise ValueError(f"expected start > threshold, got {start} and {threshold}, try 1e-2 and 5e-3")
        exclude = as_rules(exclude)
        layers = select(model, exclude, fixed=True).layers
        choices = {
            name: AboveThreshold(torch.full_like(layer.weight, start, requires_grad=False), threshold)
            for name, layer in layers.items()
        }
        super().__init__(model, choices, excluded(model, exclude), "unstructured")


def _choice(layer: nn.Module) -> Choice:
    return layer.parametrizations["weight"][0]


def _fan_in(weight: Tensor) -> int:
    return max(1, weight[0].numel())


def _start(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Scores uniform in +-1 / sqrt(fan-in), as the authors start them."""
    uniform = torch.rand(weight.shape, generator=generator) * 2 - 1
    return (uniform / _fan_in(weight) ** 0.5).to(weight.device, weight.dtype)
