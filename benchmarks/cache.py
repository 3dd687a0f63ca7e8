"""What the activation cache costs: seconds to read beside the forward it replaces, and accuracy by storage type.

    python benchmarks/cache.py --threads 1 --json runs/bench/cache.json
    python benchmarks/cache.py --only read --samples 512 --rounds 5

read: batches of 64 random samples of a ResNet-32 (width 2, 90% sparse) whose first third or two thirds are frozen, in
turn with the front's forward, as ever and through `Prefix`; "again" is into a buffer that is used again. The files are
in the system's memory, as after an epoch; "cold" is one pass over files that are not, checksums included.

growth: one more block of that ResNet-32 freezes, the 5th or the 10th: the front's share of a pass that fills the cache,
from the start or from where the front ended, beside reading what is held; random batches, each once a round.

accuracy: a ResNet-20 (75% sparse) on the digits; two thirds of it freeze, and the rest trains on what a cache of each
type gives, in the same order from the same weights. Errors are relative, in the 2-norm over the test images; "store" is
int8 with one range for a channel of all samples instead of one for each sample.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spfde import sparsify
from spfde.data import load
from spfde.freezing import ActivationCache, Prefix, blocks
from spfde.freezing.cache.row import STORED
from spfde.models import create
from spfde.train import Recipe, fit
from spfde.tuning.timing import seconds_of

BATCH = 64
KINDS = tuple(STORED)
WIDTH = 2.0  # of the network whose front is timed


class Front(nn.Module):
    """The first `stages` stages of a ResNet, as one network."""

    def __init__(self, net: nn.Module, stages: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu)
        self.stages = nn.Sequential(*(net.get_submodule(f"layer{i + 1}") for i in range(stages)))

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(self.stem(images))


class Back(nn.Module):
    """What comes behind it."""

    def __init__(self, net: nn.Module, stages: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(net.get_submodule(f"layer{i + 1}") for i in range(stages, 3)))
        self.pool, self.fc = net.pool, net.fc

    def forward(self, activations: Tensor) -> Tensor:
        return self.fc(self.pool(self.stages(activations)).flatten(1))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("read", "growth", "accuracy"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--samples", type=int, default=2048, help="that are held, in read")
    parser.add_argument("--images", type=int, default=2000, help="to train on, and at most to test with, in accuracy")
    parser.add_argument("--epochs", type=int, nargs=2, default=(8, 6), help="before and after the freeze")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    record: dict[str, Any] = {"machine": timing.machine(), **{k: v for k, v in vars(given).items() if k != "json"}}
    if given.only in (None, "growth"):
        record["growth"] = [growth(before, min(given.samples, 4 * BATCH), given.rounds) for before in (4, 9)]
    if given.only in (None, "read"):
        record["read"] = [row for stages in (1, 2) for row in read(stages, given.samples, given.rounds)]
    if given.only in (None, "accuracy"):
        record["accuracy"] = accuracy(given.images, *given.epochs, given.seeds)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(record, indent=1) + "\n")


def read(stages: int, samples: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds to read a batch of every type from memory and files, and of the forward of the front."""
    net = sparsify(create("resnet32", width=WIDTH), sparsity=0.9)
    front = Front(net, stages)
    images = torch.randn(BATCH, 3, 32, 32)
    parts = blocks(front, images[:1])
    for part in parts:
        part.freeze()
    front.eval()
    prefix = Prefix(front, parts)
    with torch.no_grad():
        activations = front(images)
    order = torch.randperm(samples)

    def folded() -> None:
        with prefix(), torch.no_grad():
            front(images)

    def plain() -> None:
        with torch.no_grad():
            front(images)

    calls: dict[str, Callable[[], object]] = {"forward": plain, "prefix": folded}
    caches: dict[str, ActivationCache] = {}
    with tempfile.TemporaryDirectory() as root:
        cold = {}
        for kind in KINDS:
            for where in ("memory", "files"):
                path = None if where == "memory" else Path(root) / kind
                cache = ActivationCache(path, budget=2**40, dtype=kind)
                cache.open("front", samples, activations.shape[1:], torch.float32)
                for part in order.split(BATCH):
                    cache.write(part, activations[: len(part)])
                if path is not None:
                    cold[kind] = _cold(cache, samples)
                caches[f"{where} {kind}"] = cache
        for name, cache in caches.items():
            calls[name] = _reader(cache, order, None)
            calls[f"{name} again"] = _reader(cache, order, torch.empty_like(activations))
        timings = timing.interleaved(calls, rounds)
        for cache in caches.values():
            cache.close()
    heads = f"{'ms':>9} {'least':>9} {'GB/s':>6} {'of prefix':>10} {'cold':>6}"
    print(f"{stages}/3 frozen, {list(activations.shape)}: {heads}")
    rows = []
    for name, found in timings.items():
        reads = name not in ("forward", "prefix")
        row = {
            "frozen": f"{stages}/3",
            "what": name,
            "ms": 1e3 * found.median,
            "least_ms": 1e3 * found.minimum,
            "gb_s": activations.nbytes / found.median / 1e9 if reads else None,
            "of_prefix": found.median / timings["prefix"].median,
            "cold_gb_s": cold[name.split()[1]] if name.startswith("files") and not name.endswith("again") else None,
        }
        rows.append(row)
        rate, first = (f"{row[key]:.2f}" if row[key] else "" for key in ("gb_s", "cold_gb_s"))
        figures = f"{row['ms']:9.3f} {row['least_ms']:9.3f} {rate:>6} {row['of_prefix']:10.3f} {first:>6}"
        print(f"  {row['what']:32} {figures}", flush=True)
    return rows


def growth(before: int, samples: int, rounds: int) -> dict[str, Any]:
    """Processor's milliseconds a batch of the front of `before` + 1 blocks: computed, carried over and read."""
    net = sparsify(create("resnet32", width=WIDTH), sparsity=0.9).eval()
    images = torch.randn(samples, 3, 32, 32)
    parts = blocks(net, images[:1])
    front = nn.Sequential(nn.Sequential(net.conv1, net.bn1, net.relu), *(p.modules[-1][1] for p in parts[: before + 1]))
    parts = blocks(front, images[:1])
    taken: dict[str, list[float]] = {"computed": [], "carried": [], "read": []}
    for _ in range(rounds):
        for part in parts:
            part.unfreeze()
        for part in parts[:before]:
            part.freeze()
        prefix = Prefix(front, parts, ActivationCache(budget=2**40), samples)
        _passes(prefix, images)
        parts[before].freeze()
        taken["carried"] += _passes(prefix, images)
        taken["read"] += _passes(prefix, images)
        prefix.cache.drop()
        taken["computed"] += _passes(prefix, images)
    found = {name: {"ms": timing.summarise(times).median, "least_ms": min(times)} for name, times in taken.items()}
    print(f"{before} blocks and one more: " + ", ".join(f"{name} {each['ms']:.1f} ms" for name, each in found.items()))
    return {"blocks": before + 1, **found}


def _passes(prefix: Prefix, images: Tensor) -> list[float]:
    """Milliseconds of each batch of an epoch but the first, before which the store is opened."""
    times = []
    for indices in torch.randperm(len(images)).split(BATCH):
        batch, start = images[indices], time.process_time()
        with prefix(indices), torch.no_grad():
            prefix.model(batch)
        times.append(1e3 * (time.process_time() - start))
    return times[1:]


def _reader(cache: ActivationCache, order: Tensor, out: Tensor | None) -> Callable[[], object]:
    batches = [part for part in order.split(BATCH) if len(part) == BATCH]
    turn = iter(range(10**9))

    def reader() -> None:
        indices = batches[next(turn) % len(batches)]
        cache.lookup(indices)
        cache.read(indices, out=out)

    return reader


def _cold(cache: ActivationCache, samples: int) -> float:
    """GB/s of activations at the first read of a store that is opened again."""
    shape = cache.read(torch.zeros(1, dtype=torch.int64)).shape[1:]
    cache.close()
    for file in cache.path.glob("*.npy"):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    cache.open("front", samples, shape, torch.float32)
    parts = torch.randperm(samples).split(BATCH)
    return samples * shape.numel() * 4 / seconds_of(lambda: [cache.read(part) for part in parts]) / 1e9


def accuracy(images: int, before: int, after: int, seeds: int) -> list[dict[str, Any]]:
    """Errors and test accuracy of every type, by seed."""
    data = load("digits", train=images, test=min(2000, images))
    rows = []
    print(f"{'type':10} {'seed':>4} {'activations':>12} {'logits':>9} {'changed':>8} {'accuracy':>9}")
    for seed in range(seeds):
        recipe = Recipe(
            train_images=images, test_images=100, epochs=before, freeze=0, sieve=0, sparsity=0.75, seed=seed, lr=0.1
        )
        net = fit(recipe).model.eval()
        front = Front(net, 2)
        with torch.no_grad():
            train, test = (torch.cat([front(x) for x in half.images.split(256)]) for half in (data.train, data.test))
            logits = Back(net, 2)(test)
        for kind in (*KINDS, "store"):
            kept, given = (_as_kept(values, kind) for values in (train, test))
            with torch.no_grad():
                rounded = Back(net, 2)(given)
            back = _trained(Back(copy.deepcopy(net), 2), kept, data.train.targets, after, seed)
            with torch.no_grad():
                right = (back(test).argmax(1) == data.test.targets).double().mean().item()
            row = {
                "type": kind,
                "seed": seed,
                "activations": _error(given, test),
                "logits": _error(rounded, logits),
                "changed": (rounded.argmax(1) != logits.argmax(1)).double().mean().item(),
                "accuracy": right,
            }
            rows.append(row)
            errors = f"{row['activations']:12.2e} {row['logits']:9.2e} {row['changed']:8.2%}"
            print(f"{kind:10} {seed:4} {errors} {right:9.2%}", flush=True)
    return rows


def _as_kept(values: Tensor, kind: str) -> Tensor:
    """Activations as a cache gives them back; "store": in codes by the range of a channel of all of them."""
    if kind == "store":
        low, high = values.amin((0, 2, 3), keepdim=True), values.amax((0, 2, 3), keepdim=True)
        step = (high - low).clamp_min(1e-12) / 255
        return ((values - low) / step).round() * step + low
    cache = ActivationCache(budget=2**40, dtype=kind)
    cache.open("front", len(values), values.shape[1:], torch.float32)
    return cache.write(torch.arange(len(values)), values)


def _trained(back: nn.Module, activations: Tensor, targets: Tensor, epochs: int, seed: int) -> nn.Module:
    """The network behind the front, trained with a rate that falls from a half of the recipe's to 0; in eval mode."""
    optimizer = torch.optim.SGD(back.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    steps = epochs * -(-len(activations) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    generator = torch.Generator().manual_seed(seed)
    back.train()
    for _ in range(epochs):
        for indices in torch.randperm(len(activations), generator=generator).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(back(activations[indices]), targets[indices]).backward()
            optimizer.step()
            schedule.step()
    return back.eval()


def _error(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).double().norm() / wanted.double().norm()).item()


if __name__ == "__main__":
    main()
