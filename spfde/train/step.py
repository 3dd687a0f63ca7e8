"""One step of a run: forward and backward in parts, then the optimizer, with the levers told of each."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from spfde.levers import Backward, Forward, Loss
from spfde.train.data import require_within
from spfde.train.session import Session
from spfde.train.stats import Stopwatch


def forward_backward(
    session: Session, images: Tensor, targets: Tensor, indices: Tensor, watch: Stopwatch, whole: int | None = None
) -> tuple[Tensor, float]:
    """Compute the gradient of the batch's mean loss; return detached logits [b, ..., classes] and the unweighted loss.

    The batch goes through in the recipe's `accumulate` parts, whose gradients add up. No part has one sample
    alone: BatchNorm has no statistics for it. A loss that is not finite ends it, before any lever hears of it.

    With many ranks these are samples of a batch of `whole`, whose gradient all get, and the loss is that of their own.
    """
    recipe, levers, ranks, total = session.recipe, session.levers, session.ranks, 0.0
    whole = len(targets) if whole is None else whole
    weight = len(targets) * ranks.count / whole  # against averaging over ranks whose parts differ by a sample
    parts = max(1, min(recipe.accumulate, whole // ranks.count // 2))
    cut = (tensor.tensor_split(parts) for tensor in (images, targets, indices))
    logits = []
    for number, (part, classes, samples) in enumerate(zip(*cut, strict=True), 1):
        with session.summing() if number < parts else nullcontext():
            share = len(classes) / len(targets)
            output, blocks = session.forward(part, samples)
        logits.append(output.detach())
        if classes.device.type == "cpu":  # a GPU would be waited for; there torch's loss asserts
            require_within(classes, output.shape[-1])
        log_p, flat = log_probabilities(output), classes.flatten()  # once: for the mean and for each sample
        mean = loss = mean_loss(log_p, flat, recipe.label_smoothing) * share
        if levers.needing(Forward):
            with watch("levers"):
                levers.tell(Forward(blocks, samples), session)
        if levers.needing(Loss):
            if not ranks.agree([math.isfinite(mean.item())], any_rank=False)[0]:
                return torch.cat(logits), mean.item()
            losses = sample_losses(log_p, flat, recipe.label_smoothing)
            if classes.ndim > 1:  # tokens of sequences
                losses = losses.view(classes.shape).mean(1)
            with watch("levers"):
                weights = levers.weigh(Loss(samples, output.detach(), classes, losses.detach()), session)
            if weights is not None:
                loss = (losses * weights).mean() * share
        session.scaler.scale(loss if weight == 1 else loss * weight).backward()
        total += mean.item()
    return torch.cat(logits), total


def log_probabilities(outputs: Tensor) -> Tensor:
    """Return the log-probabilities [m, classes] of logits [n, classes], or [n, t, tokens] with the m = n t tokens."""
    return functional.log_softmax(outputs.flatten(0, -2).float(), 1)


def batch_loss(outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean loss of outputs [n, ..., classes]: what training minimises, unweighted."""
    return mean_loss(log_probabilities(outputs), targets.flatten(), smoothing)


def mean_loss(log_p: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross-entropy of log-probabilities [n, classes], to the bits of `functional.cross_entropy`.

    The mean of `sample_losses` is the same number but for its last bits, which would move every training.
    """
    loss = functional.nll_loss(log_p, targets)
    if smoothing:
        loss = loss * (1 - smoothing) + (-log_p.sum(1)).mean() * (smoothing / log_p.shape[1])
    return loss


def sample_losses(log_p: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy [n] of each target, smoothing included."""
    losses = functional.nll_loss(log_p, targets, reduction="none")
    if smoothing:
        losses = losses * (1 - smoothing) - log_p.sum(1) * (smoothing / log_p.shape[1])
    return losses


def update(session: Session, watch: Stopwatch) -> bool:
    """Step the optimizer, the gradient's norm clipped if the recipe says so; whether the weights moved."""
    optimizer, scaler, clip = session.optimizer, session.scaler, session.recipe.clip
    scaled = scaler.is_enabled()
    if scaled and (clip or session.levers.needing(Backward)):
        scaler.unscale_(optimizer)
    with watch("levers"):
        session.levers.tell(Backward(), session)
    if clip:
        clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    before = scaler.get_scale() if scaled else 1.0
    scaler.step(optimizer)
    scaler.update()
    return not scaled or scaler.get_scale() >= before  # it lowers the scale after a step that it has skipped
