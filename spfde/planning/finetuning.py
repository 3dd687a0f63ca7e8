"""Steps to a loss, before any are taken: by the network linearised at its weights, where fine-tuning stays near them.

Near its start a network moves as its first-order expansion does: outputs f [n, classes] follow df = -lr K dL/df for the
Gram matrix K of the gradients of all outputs (the empirical neural tangent kernel). That is a small problem, solved in
the space of outputs alone. Source: "Predicting Training Time Without Training" (2008.12478), without its noise term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

LARGEST = 4096  # outputs of all samples: the side of the Gram matrix
LEAST_KEPT = 0.9  # of the predicted fall of the loss, that the network itself must show at the predicted weights
CHUNK = 16  # samples whose gradients are taken together


@dataclass(frozen=True)
class StepsToLoss:
    """How many steps a fine-tuning will take, and how far the prediction can be trusted.

    steps: None where the loss is not predicted to get there, or the prediction does not hold: `reason` says which.
    losses: predicted, of all samples, before each step. kept: the fall of the loss that the network itself shows at the
    weights that are predicted for the end, over the predicted fall: near 1 where it is as good as linear on the way.
    """

    steps: int | None
    losses: tuple[float, ...]
    kept: float
    reason: str

    def __str__(self) -> str:
        found = "not predicted" if self.steps is None else f"{self.steps} steps"
        return f"{found}: {self.reason}"


def steps_to_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: float,
    lr: float,
    *,
    momentum: float = 0.0,
    most: int = 10000,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> StepsToLoss:
    """SGD steps until the mean loss over the samples is at most `loss`, from the model's weights of now.

    Nothing is trained. The model is taken as in eval mode, at a constant lr with torch's momentum and no weight decay,
    in batches that are drawn evenly from these samples. What is frozen does not move: parameters that require no
    gradient, weights below a layer. Memory is that of samples x classes x parameters, time grows with it.

    Args:
        model: pretrained, sparse or dense; it stays as it is. Its output is [n, classes].
        x, y: samples that it is fine-tuned on, or an even draw from them.
        most: steps after which it is given up.

    Raises:
        ValueError: an argument is out of range; the outputs of all samples are more than 4096; a norm that is not
            frozen would compute with statistics of each batch, or a dropout at random, which no expansion at fixed
            weights describes; nothing trains.
    """
    _check(model, x, loss, lr, momentum, most)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rest = {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers()) if name not in trained}

    def output(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, {**rest, **weights}, (sample.unsqueeze(0),)).squeeze(0)

    start = {name: p.detach() for name, p in trained.items()}
    with torch.no_grad():
        outputs = functional_call(model, {**rest, **start}, (x,))
    if outputs.dim() != 2 or outputs.numel() > LARGEST:
        raise ValueError(
            f"expected outputs [n, classes], at most {LARGEST} numbers, got {list(outputs.shape)}, try fewer samples"
        )
    parts = vmap(jacrev(output), (None, 0), chunk_size=CHUNK)(start, x)
    jacobians = {name: part.detach().reshape(outputs.numel(), -1) for name, part in parts.items()}
    gram = sum(part @ part.T for part in jacobians.values()).double()
    losses, pull = _descend(outputs.double(), y, gram, loss, lr, momentum, most, loss_fn)
    moved = {n: start[n] + (pull.to(part) @ part).view_as(start[n]) for n, part in jacobians.items()}
    with torch.no_grad():
        there = float(loss_fn(functional_call(model, {**rest, **moved}, (x,)), y))
    fall = losses[0] - losses[-1]
    kept = (losses[0] - there) / fall if fall > 0 else 1.0
    return _judged(losses, kept, there, loss, most)


def _descend(
    outputs: Tensor,
    y: Tensor,
    gram: Tensor,
    loss: float,
    lr: float,
    momentum: float,
    most: int,
    loss_fn: Callable[..., Tensor],
) -> tuple[list[float], Tensor]:
    """Losses before each step of the linearised network, and what its weights move by, times the Jacobian."""
    losses, pull = [], torch.zeros(outputs.numel(), dtype=outputs.dtype, device=outputs.device)
    velocity = torch.zeros_like(pull)
    for _ in range(most + 1):
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            now = loss_fn(leaf, y)
            (slope,) = torch.autograd.grad(now, leaf)
        losses.append(float(now.detach()))
        if losses[-1] <= loss or not losses[-1] < 10 * losses[0] + 1:
            break
        velocity = momentum * velocity + slope.reshape(-1)
        pull -= lr * velocity
        outputs = outputs - lr * (gram @ velocity).view_as(outputs)
    return losses, pull


def _judged(losses: list[float], kept: float, there: float, loss: float, most: int) -> StepsToLoss:
    first, last = f"{losses[0]:.3g}", f"{losses[-1]:.3g}"
    steps = None
    if not losses[-1] < 10 * losses[0] + 1:
        reason = f"the loss grows from {first} at this learning rate, try a smaller one"
    elif kept < LEAST_KEPT:
        reason = (
            f"the way to {last} is too far for a linear network, at whose weights there the loss is {there:.3g}: this "
            "holds for fine-tuning that changes little, not for training from scratch"
        )
    elif losses[-1] > loss:
        reason = f"the loss falls from {first} to {last} in {most} steps, not to {loss:.3g}"
    else:
        steps = len(losses) - 1
        reason = f"the loss falls from {first} to {last}, and the network itself is at {there:.3g} there"
    return StepsToLoss(steps, tuple(losses), kept, reason)


def _check(model: nn.Module, x: Tensor, loss: float, lr: float, momentum: float, most: int) -> None:
    if not loss > 0 or not lr > 0 or not 0 <= momentum < 1 or most < 1:
        raise ValueError(
            f"expected loss > 0, lr > 0, momentum in [0, 1) and most >= 1, got {loss}, {lr}, {momentum} and {most}, "
            "try steps_to_loss(model, x, y, loss=0.1, lr=0.01)"
        )
    if len(x) < 1:
        raise ValueError("expected samples, got none, try a batch of the training data")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("expected parameters that train, got none, try spfde.freezing.unfreeze(model)")
    for name, module in model.named_modules():
        random = isinstance(module, _DropoutNd) and module.p > 0
        if module.training and (random or isinstance(module, _BatchNorm)):
            what = "random" if random else "normalised by each batch"
            raise ValueError(
                f"expected a model whose outputs are those of eval mode in training, got {name!r} "
                f"({type(module).__name__}), {what}, try freezing it, or model.eval() in fine-tuning too"
            )
