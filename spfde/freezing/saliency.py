"""Which stored weights to train, chosen once before training by what each would change the loss: FreezeNet's choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spfde._modules import eval_mode, random_state_restored, run
from spfde.freezing.checks import check_share
from spfde.nn import SparseLayer

SPREADS = ("global", "uniform")


def by_saliency(
    model: nn.Module,
    trained: float,
    data: Any,
    loss_fn: Callable[..., Tensor],
    *,
    spread: str = "global",
) -> dict[str, Tensor]:
    """What to freeze of each sparse layer so that a share of the stored blocks trains: masks for `freeze_weights`.

    Those with the highest |w * dL/dw| stay trained, summed over a block, at the weights of now, in eval mode; equal
    ones by position. round(trained * blocks) of them in all ("global", where a layer may keep none) or in each layer
    ("uniform"). Source: FreezeNet (2011.14087), which scores as SNIP does (1810.02340) and leaves the rest at its
    random start instead of at 0. Nothing of the model changes.

    Args:
        trained: share of the stored blocks that stays trained, in (0, 1].
        data: (x, y), or a list of such pairs, whose mean gradient counts. x as the model takes it: a tuple stands for
            arguments, a mapping for keywords.
        loss_fn: loss_fn(model(x), y) -> [].

    Raises:
        ValueError: an argument is out of range; the model has no sparse layer that trains; scores are not finite.
    """
    check_share("trained", trained, "(0, 1]", 0.1)
    if spread not in SPREADS:
        raise ValueError(f"expected spread to be one of {', '.join(SPREADS)}, got {spread!r}, try 'global'")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer) and m.values.requires_grad}
    if not layers:
        raise ValueError("expected a model with sparse layers that train, got none, try spfde.sparsify(model) first")
    scores = _scores(model, layers, _pairs(data), loss_fn)
    if spread == "uniform":
        kept = {name: _highest(score, round(trained * score.numel())) for name, score in scores.items()}
    else:
        whole = torch.cat([score.cpu() for score in scores.values()])
        sizes = [score.numel() for score in scores.values()]
        parts = _highest(whole, round(trained * whole.numel())).split(sizes)
        kept = dict(zip(scores, parts, strict=True))
    frozen = {name: layers[name].positions()[~chosen.to(layers[name].values.device)] for name, chosen in kept.items()}
    return {name: layers[name].mask_at(positions) for name, positions in frozen.items()}


def _scores(
    model: nn.Module, layers: dict[str, SparseLayer], pairs: list[tuple[Any, Any]], loss_fn: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """Score [nnz] of every stored block."""
    values = [layer.values for layer in layers.values()]
    total = [torch.zeros_like(v, dtype=torch.float32) for v in values]
    with random_state_restored(model), eval_mode(model), torch.enable_grad():
        for x, y in pairs:
            loss = loss_fn(run(model, x), y)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise ValueError(
                    "expected loss_fn(model(x), y) to be a scalar that depends on the weights, try the mean"
                )
            grads = torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True)
            total = [a + b for a, b in zip(total, grads, strict=True)]
    scores = {}
    for (name, layer), grad in zip(layers.items(), total, strict=True):
        score = (layer.values.detach() * grad / len(pairs)).abs()[: layer.nnz].sum((1, 2))
        if not bool(score.isfinite().all()):
            raise ValueError(f"expected finite scores, got others in {name or 'the layer'!r}, try other data")
        scores[name] = score
    return scores


def _highest(score: Tensor, count: int) -> Tensor:
    """Bool [n], true for exactly `count` of them; of equal ones the first."""
    chosen = torch.zeros_like(score, dtype=torch.bool)
    chosen[torch.sort(score, descending=True, stable=True).indices[:count]] = True
    return chosen


def _pairs(data: Any) -> list[tuple[Any, Any]]:
    pairs = data if isinstance(data, list) else [data]
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"expected data=(x, y) or a list of such pairs, got {type(data).__name__}, try one batch")
    return [tuple(pair) for pair in pairs]
