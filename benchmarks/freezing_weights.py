"""Seconds of a sparse layer's weight gradient with a part of the stored weights frozen, beside all of it.

    python benchmarks/freezing_weights.py [--rounds 25] [--threads 1] [--json FILE]

A ratio of 1 / share of what trains is what the work alone would give. All cases of a layer take turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timing import command, interleaved, machine
from torch import nn

import spfde
from spfde.freezing import freeze_weights, frozen_weights
from spfde.nn import SparseLayer

SPARSITY = 0.9
SHARES = (1.0, 0.5, 0.25, 0.1)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear 1024x1024, batch 128": (lambda: nn.Linear(1024, 1024, bias=False), (128, 1024)),
    "conv 64x64 3x3 on 14x14, batch 64": (lambda: nn.Conv2d(64, 64, 3, padding=1, bias=False), (64, 64, 14, 14)),
    "conv 256x256 3x3 on 14x14, batch 16": (lambda: nn.Conv2d(256, 256, 3, padding=1, bias=False), (16, 256, 14, 14)),
}


def trained(make: Callable[[], nn.Module], share: float) -> SparseLayer:
    """The layer at the benchmark's sparsity, of whose stored weights a random share trains."""
    torch.manual_seed(0)
    layer = spfde.sparsify(make(), SPARSITY)
    if share < 1:
        freeze_weights(layer, torch.rand(layer.dense_shape) >= share)
    return layer


def weight_gradient(layer: SparseLayer, shape: tuple[int, ...]) -> Callable[[], None]:
    """The weight gradient alone: nothing else of the backward pass is asked for."""
    y = layer(torch.randn(shape))
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, layer.values, dy, retain_graph=True)


def measure(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds by share, what really trains, and how many times as fast as the whole gradient."""
    make, shape = LAYERS[name]
    layers = {share: trained(make, share) for share in SHARES}
    timed = interleaved({share: weight_gradient(layer, shape) for share, layer in layers.items()}, rounds)
    return {
        f"{share:g}": {
            "trained": 1 - float(frozen_weights(layer).sum()) / layer.stored,
            "seconds": timed[share].median,
            "spread": timed[share].spread,
            "speedup": timed[1.0].median / timed[share].median,
        }
        for share, layer in layers.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a row for each layer and share."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    facts = {"machine": machine(), "command": command(), "sparsity": SPARSITY}
    found = {name: measure(name, given.rounds) for name in LAYERS}
    for name, rows in found.items():
        for row in rows.values():
            print(f"{name:38}{row['trained']:7.1%} trains {row['seconds'] * 1e3:8.3f} ms {row['speedup']:6.2f}x")
    if given.json:
        given.json.write_text(json.dumps({**facts, "layers": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
