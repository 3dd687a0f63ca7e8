"""How the predictor is trained and judged: samples from records, a fit, scores beside those of simpler rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from spfde.freezing.smartfrz.labels import LEVEL, settled
from spfde.freezing.smartfrz.predictor import Predictor
from spfde.freezing.smartfrz.recorder import Record

# As in public reimplementations, but for the rate: there 1e-3, at which some fits ended with one answer for all.
BATCH, RATE, DECAY, SMOOTHING, CLIP = 32, 3e-4, 1e-5, 0.2, 1.0


@dataclass(frozen=True, eq=False)
class Samples:
    """Windows of layers, float32 [n, SNAPSHOTS, SAMPLES]; labels bool [n]; passed [n]: share of a training by then."""

    windows: Tensor
    labels: Tensor
    passed: Tensor

    @classmethod
    def of(cls, records: Iterable[Record], level: float = LEVEL, layers: int | None = None) -> Samples:
        """The samples of records: of every layer, or evenly spaced ones, and every epoch but the last.

        After the last epoch a layer is what it was at the end by definition, so that there is nothing to learn.
        """
        windows, labels, passed = [], [], []
        for record in records:
            count = len(record.layers)
            chosen = np.unique(np.linspace(0, count - 1, min(count, layers or count)).round().astype(int))
            epochs = record.alignment.shape[1]
            windows.append(torch.from_numpy(record.windows[chosen, :-1]).flatten(0, 1))
            labels.append(torch.from_numpy(settled(record.alignment, level)[chosen, :-1]).flatten())
            passed.append((torch.arange(1, epochs) / epochs).repeat(len(chosen)))
        return cls(torch.cat(windows), torch.cat(labels), torch.cat(passed))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Scores:
    """How often a rule agrees with the labels; precision and recall are of "freeze", nan where there is none."""

    accuracy: float
    precision: float
    recall: float

    @classmethod
    def of(cls, said: Tensor, labels: Tensor) -> Scores:
        """Of what a rule said, bool [n]."""
        right = (said & labels).sum().item()
        return cls(
            (said == labels).float().mean().item(),
            right / said.sum().item() if said.any() else float("nan"),
            right / labels.sum().item() if labels.any() else float("nan"),
        )


def fit_predictor(
    samples: Samples,
    form: str = "quantiles",
    *,
    epochs: int = 10,
    seed: int = 0,
    tell: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Predictor:
    """Trains a predictor: AdamW under one cycle of its rate, label smoothing, clipped gradients.

    tell: told of each epoch and its mean loss.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = Predictor(form)
    shown, labels = predictor.shown(samples.windows), samples.labels.long()
    optimizer = torch.optim.AdamW(predictor.parameters(), RATE, weight_decay=DECAY)
    steps = epochs * -(-len(samples) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=0.1)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(samples), generator=generator).split(BATCH):
            loss = functional.cross_entropy(predictor.attend(shown[batch]), labels[batch], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(predictor.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        tell(epoch, total / len(samples))
    return predictor.eval().requires_grad_(False)


def probabilities(predictor: Predictor, samples: Samples) -> Tensor:
    """What a predictor gives every sample [n]."""
    return torch.cat([predictor.probability(part) for part in samples.windows.split(256)])


# ---- simpler rules ---------------------------------------------------------------------------------------------------


def slope(samples: Samples) -> Tensor:
    """How fast sampled weights move: their displacement over the window, relative to them [n]."""
    first, last = samples.windows[:, 0], samples.windows[:, -1]
    return (last - first).norm(dim=1) / first.norm(dim=1).clamp_min(torch.finfo(first.dtype).tiny)


def best_threshold(values: Tensor, labels: Tensor) -> float:
    """The threshold t for which "value >= t" agrees with most labels."""
    order = values.argsort()
    ranked, positive = values[order], labels[order].long()
    right = torch.cat([torch.zeros(1), (1 - 2 * positive).cumsum(0)])  # gained by saying no to the first so many
    cut = int(right.argmax())
    return float("inf") if cut == len(ranked) else ranked[cut].item()


def baselines(train: Samples, held: Samples) -> dict[str, Scores]:
    """Rules without a network, thresholds chosen on `train`, judged on `held`.

    never: freezes nothing. slope: freezes what moves slower than a threshold. schedule: freezes all after a share of
    the training, which looks at no weight at all.
    """
    rules: dict[str, tuple[Tensor, Tensor]] = {
        "slope": (-slope(train), -slope(held)),
        "schedule": (train.passed, held.passed),
    }
    said = {"never": torch.zeros(len(held), dtype=torch.bool)}
    said |= {name: theirs >= best_threshold(ours, train.labels) for name, (ours, theirs) in rules.items()}
    return {name: Scores.of(each, held.labels) for name, each in said.items()}


def folds(records: Sequence[Record], key: str) -> dict[str, tuple[list[Record], list[Record]]]:
    """For each value that records have for `key`: those with another one, and those with it."""
    values = dict.fromkeys(record.about[key] for record in records)
    return {
        str(value): ([r for r in records if r.about[key] != value], [r for r in records if r.about[key] == value])
        for value in values
    }
