"""One step of a run: forward and backward in parts, then the optimizer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from spfde.train.session import Session


def forward_backward(session: Session, images: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Compute the gradient of the batch's mean loss; return detached logits [b, classes] and the loss.

    The batch goes through in the recipe's `accumulate` parts, whose gradients add up. No part has one sample
    alone: BatchNorm has no statistics for it.
    """
    recipe, total = session.recipe, 0.0
    parts = max(1, min(recipe.accumulate, len(targets) // 2))
    logits = []
    for part, classes in zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True):
        with session.autocast():
            output = session.model(part)
        loss = functional.cross_entropy(output.float(), classes, label_smoothing=recipe.label_smoothing)
        loss = loss * (len(classes) / len(targets))
        loss.backward()
        logits.append(output.detach())
        total += loss.item()
    return torch.cat(logits), total


def update(session: Session) -> None:
    """Step the optimizer, with the gradient's norm clipped if the recipe says so."""
    optimizer = session.optimizer
    if session.recipe.clip:
        clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], session.recipe.clip)
    optimizer.step()
