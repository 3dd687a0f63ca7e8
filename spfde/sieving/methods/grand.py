"""GraNd: samples whose loss has a small gradient early in the training leave once, for good."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from spfde.levers import Answer, EpochEnd, Event, Loss, Run
from spfde.sieving.checks import check_indices, check_losses
from spfde.sieving.oneshot import OneShot
from spfde.sieving.ranks import Batch
from spfde.sieving.sieve import SieveEvent

__all__ = ["GraNd"]

# Samples whose gradients are held at once: at least as many as pay, and no more than this many numbers.
LEAST_AT_ONCE, MOST_AT_ONCE, ROOM = 8, 64, 2**26

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean loss of logits [n, classes] and targets [n], or soft ones [n, classes]; or [n, t, tokens] and [n, t]."""
    if targets.ndim == outputs.ndim:
        return F.cross_entropy(outputs, targets)
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


class GraNd(OneShot):
    """Score = |gradient of the sample's loss by all trained weights|_2, at the end of epoch `at` - 1.

    It takes a forward and a backward pass for every sample, once, in evaluation mode (batch norm would mix samples),
    many samples at a time where `torch.func` can vectorise the model: in `fit` by itself, in a loop of your own by
    `look`. Its seconds are in `report()`. The source averages over ten networks: `GraNd(..., scores=[...])` takes
    their `scores`.

    Args: those of every one-shot sieve (num_samples, fraction, at, epochs, scores, seed).

    Source: Paul, Ganguli, Dziugaite, Deep Learning on a Data Diet (NeurIPS 2021), definition 1.
    """

    AT = 0.1
    needs = frozenset({Loss, EpochEnd})

    def __init__(
        self,
        num_samples: int,
        fraction: float = 0.5,
        *,
        at: int | None = None,
        epochs: int = 200,
        scores: Sequence[torch.Tensor] | None = None,
        seed: int = 0,
        **ranks: Any,
    ) -> None:
        super().__init__(num_samples, fraction, at, epochs, scores, seed, **ranks)
        self._norms = np.full(num_samples, np.nan, np.float32)

    def look(
        self,
        model: nn.Module,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
        loss_fn: LossFunction = cross_entropy,
        *,
        gathered: bool = False,
    ) -> None:
        """Scores the samples of `batches` of (indices int64 [n], inputs [n, ...], targets [n, ...]).

        loss_fn: the loss of (outputs [1, ...], targets [1, ...]). Weights, gradients, modes and statistics of the model
        stay as they are. On many ranks all of them call it, with equally many batches: each a part of the samples or
        all. gathered: these are the samples of all ranks already.

        Raises:
            TypeError, ValueError: indices do not fit the data set or the batch, or a norm is not finite.
        """
        begin = time.perf_counter()
        for indices, inputs, targets in batches:
            _, whole = self._gather(partial(self._scored, model, indices, inputs, targets, loss_fn), gathered)
            self._norms[whole.samples] = whole.figures
        self._extra_seconds += time.perf_counter() - begin

    def _scored(
        self,
        model: nn.Module,
        indices: torch.Tensor,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        loss_fn: LossFunction,
    ) -> Batch:
        check_indices(indices)
        norms = gradient_norms(model, inputs, targets, loss_fn)
        check_losses(indices, norms, None)
        if not norms.isfinite().all():
            raise ValueError("expected finite gradient norms, got NaN or infinity; try an earlier epoch, at=")
        return self._known(indices, norms, None, True, trained=False)

    def on(self, event: Event, run: Run) -> Answer:
        """Counts presentations; scores all samples once, at the end of epoch `at` - 1."""
        if not isinstance(event, EpochEnd):
            return super().on(event, run)
        if event.epoch == self.at - 1 and self._given is None:
            self.look(run.model, run.batches(torch.arange(self.num_samples)))
        return None

    def end_epoch(self) -> SieveEvent | None:
        """Closes an epoch; before epoch `at` the easiest leave.

        Raises:
            ValueError: no sample was scored until then; nothing has changed.
        """
        if self.epoch == self.at - 1 and self._given is None and np.isnan(self._norms).all():
            raise ValueError(
                f"expected the samples to be scored by the end of epoch {self.epoch}, got none; try sieve.look(model, "
                "batches) before end_epoch, or scores="
            )
        return super().end_epoch()

    def _note(self, samples: np.ndarray, losses: np.ndarray, correct: np.ndarray | None) -> None:
        """Nothing: the score is a pass of its own."""

    def _hardness(self) -> np.ndarray:
        return self._norms

    def _why(self) -> str:
        return f"least gradient norm at the end of epoch {self.at - 1}"

    def _own_state(self) -> dict[str, Any]:
        return {**super()._own_state(), "norms": torch.from_numpy(self._norms.copy())}

    def _load_own(self, state: Mapping[str, Any]) -> None:
        super()._load_own(state)
        self._norms = state["norms"].numpy().copy()


def gradient_norms(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, loss_fn: LossFunction = F.cross_entropy
) -> torch.Tensor:
    """|d loss_i / d weights|_2 [n], by all parameters that require a gradient, in evaluation mode.

    Many samples at a time by torch.func, where the model can be vectorised and its gradients fit; else one by one.
    """
    if not len(inputs):
        return torch.zeros(0)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    at_once = min(MOST_AT_ONCE, ROOM // sum(p.numel() for p in weights.values()))
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            if at_once >= LEAST_AT_ONCE:
                # Whatever vmap cannot do has many kinds of error; what is the model's own is raised again one by one.
                with suppress(Exception):
                    return _vectorised(model, weights, inputs, targets, loss_fn, at_once)
            return _one_by_one(model, weights, inputs, targets, loss_fn)
    finally:
        for module, mode in modes:
            module.training = mode


def _vectorised(
    model: nn.Module,
    weights: dict[str, nn.Parameter],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    loss_fn: LossFunction,
    at_once: int,
) -> torch.Tensor:
    detached = {name: p.detach() for name, p in weights.items()}

    def loss(weights: dict[str, torch.Tensor], one: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return loss_fn(functional_call(model, weights, (one[None],)), target[None]).sum()

    def norm(one: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        gradients = grad(loss)(detached, one, target)
        return torch.stack([g.float().norm() for g in gradients.values()]).norm()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # of a part of the model: still faster
        return vmap(norm, chunk_size=at_once, randomness="different")(inputs, targets)


def _one_by_one(
    model: nn.Module,
    weights: dict[str, nn.Parameter],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    loss_fn: LossFunction,
) -> torch.Tensor:
    norms = []
    for one, target in zip(inputs, targets, strict=True):
        loss = loss_fn(model(one[None]), target[None]).sum()
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        norms.append(torch.stack([g.detach().float().norm() for g in gradients if g is not None]).norm())
    return torch.stack(norms)
