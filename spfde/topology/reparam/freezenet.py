"""FreezeNet: few weights are trained, the others stay at their random initial values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from spfde.nn.select import select
from spfde.sparse.pattern import Pattern
from spfde.topology.allocation import Budget, check_sparsity
from spfde.topology.init import Init, block_scores, resolve


class Partly(nn.Module):
    """A dense weight of which some places are trained, as a parametrization of these values [n, 1, 1]."""

    def __init__(self, weight: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", weight.detach().clone())
        self.register_buffer("places", mask.flatten().nonzero().view(-1))

    def forward(self, values: Tensor) -> Tensor:
        """The weight: its start, with the values in their places."""
        return self.start.flatten().index_put((self.places,), values.flatten()).view_as(self.start)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The values of a weight."""
        return weight.flatten()[self.places].view(-1, 1, 1)


class FreezeNet:
    """Trains the weights that an init would keep, and freezes the others at their initial values instead of at 0.

    Source: arXiv 2011.14087, with SNIP's scores. Each layer's weight Parameter becomes the values that are trained, so
    no optimizer moves the others (weight decay and momentum included), and its state is as small; build it afterwards.
    Biases and norms train as usual. Forward and backward are dense: this saves memory, no time.

    Args:
        model: a dense model, changed in place.
        sparsity: fraction of the weights that is frozen, in [0, 1].
        init, data, loss_fn, pattern, exclude, seed: as `spfde.sparsify` takes them.
        distribution: "uniform" (over all layers), "erk" or "global".

    Raises:
        ValueError: as `spfde.sparsify`; nothing has changed then.
        TypeError: model is not a torch.nn.Module.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float = 0.9,
        *,
        init: str | Init = "snip",
        data: Any = None,
        loss_fn: Callable[..., Tensor] | None = None,
        distribution: str = "global",
        pattern: str = "unstructured",
        exclude: Iterable[str | type[nn.Module]] = (),
        seed: int = 0,
    ) -> None:
        rule = Pattern.parse(pattern)
        if not isinstance(distribution, str):
            raise ValueError(f"expected distribution 'uniform', 'erk' or 'global', got {distribution!r}, try 'global'")
        sparsity = check_sparsity(sparsity, rule, distribution)
        method = resolve(init, data, loss_fn, None)
        self._layers = select(model, exclude).layers
        budget = Budget.of(self._layers, rule, distribution, sparsity)
        self._masks = budget.masks(block_scores(method, model, budget, seed, data, loss_fn, None))
        self.model = model
        for name, layer in self._layers.items():
            layer.weight.grad = None  # it has the old shape
            parametrize.register_parametrization(layer, "weight", Partly(layer.weight, self._masks[name]))

    def masks(self) -> dict[str, Tensor]:
        """Which weights are trained: bool masks, by layer."""
        return dict(self._masks)

    def finish(self) -> nn.Module:
        """The model with plain dense layers, trained and frozen weights together in one Parameter.

        Raises:
            ValueError: it is finished.
        """
        if not all(map(parametrize.is_parametrized, self._layers.values())):
            raise ValueError("expected a model in training, got a finished one, try a new start")
        for layer in self._layers.values():
            layer.parametrizations["weight"].original.grad = None
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        return self.model
