"""Running a model with other weights, on data, without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spfde._modules import as_args, modes_restored

Derivative = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class ScoringContext:
    """A model and the data that scores are taken on.

    weights: the scored weights, by layer. batches: pairs (x, y), in memory one after the other; x may be a tuple of
    arguments or a mapping of keywords. example: x of a batch or an example input, for methods that need no data. seed:
    of dropout.
    """

    model: nn.Module
    weights: Mapping[str, Tensor]
    batches: Sequence[tuple[Any, Any]]
    loss_fn: Callable[..., Tensor] | None
    example: Any
    seed: int

    def gradients(
        self, weights: Mapping[str, Tensor], *, training: bool, derivative: Derivative | None = None, scale: float = 1.0
    ) -> dict[str, Tensor]:
        """dL/dw at `weights`, the mean over the batches; another `derivative` of the loss if given.

        scale: a factor on the model's output before the loss.

        Raises:
            ValueError: the loss is no scalar, does not depend on the weights, or the gradients are not finite.
        """
        derivative = derivative or gradient
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        total: Sequence[Tensor] | None = None
        with undisturbed(self.model, training, self.seed):
            for x, y in self.batches:
                output = call(self.model, {**state(self.model), **self.named(leaves)}, x)
                if scale != 1:
                    output = check_tensor(output, "grasp", "GraSP(temperature=1)") * scale
                parts = derivative(_loss(self.loss_fn, output, y), [*leaves.values()])
                total = parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]
        mean = {name: part / len(self.batches) for name, part in zip(leaves, total, strict=True)}
        return finite(mean)

    def named(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors, by the names the model has for them."""
        return {f"{name}.weight".lstrip("."): weight for name, weight in weights.items()}


def gradient(value: Tensor, leaves: Sequence[Tensor], create_graph: bool = False) -> Sequence[Tensor]:
    """d(value)/d(leaf), 0 where the value does not depend on a leaf."""
    return torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True)


def state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors to run on: parameters detached, buffers copied, as BatchNorm writes into its own.

    One name for every place that holds a tensor: a module used twice has one name, what two modules share has two.
    """
    places = {
        f"{where}.{key}".lstrip("."): tensor
        for where, module in model.named_modules()
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    copies = {
        id(tensor): tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
        for tensor in places.values()
    }
    return {name: copies[id(tensor)] for name, tensor in places.items()}


def call(model: nn.Module, tensors: dict[str, Tensor], x: Any) -> Any:
    """The model's output for x (a tuple or mapping: its arguments), run on `tensors` (see `state`)."""
    # tie_weights would swap a module used twice two times, and leave the second copy behind.
    args, kwargs = as_args(x)
    return functional_call(model, tensors, args, kwargs, tie_weights=False)


@contextmanager
def undisturbed(model: nn.Module, training: bool, seed: int) -> Iterator[None]:
    """Gradients on, the model in one mode (what is frozen in eval), random numbers from the seed; then as before."""
    cards = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(cards), torch.enable_grad(), modes_restored(model):
        # Not torch.manual_seed, which would reseed every other device as well.
        for generator in (torch.default_generator, *(torch.cuda.default_generators[card] for card in cards)):
            generator.manual_seed(seed)
        model.train(training)  # frozen modules stay in eval mode
        yield


def finite(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """The scores as they came.

    Raises:
        ValueError: one is infinite or no number; names the layer.
    """
    for name, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise ValueError(
                f"expected finite scores, got infinite ones or NaN in {name or 'the layer'!r}, try other data, "
                "a smaller initialisation, or init='magnitude'"
            )
    return scores


def check_tensor(output: Any, init: str, instead: str) -> Tensor:
    """The model's output, where a method computes with it.

    Raises:
        ValueError: it is not one tensor.
    """
    if not isinstance(output, Tensor):
        raise ValueError(
            f"expected the model to return a tensor for init {init!r}, got {type(output).__name__}, try {instead}"
        )
    return output


def _loss(loss_fn: Callable[..., Tensor], output: Any, y: Any) -> Tensor:
    loss = loss_fn(output, y)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"expected loss_fn(model(x), y) to return a scalar tensor, got {what}, try the mean")
    if not loss.requires_grad:
        raise ValueError(
            "expected a loss that depends on the weights to convert, got one that does not, try a loss_fn without "
            "detach, item or argmax"
        )
    return loss
