"""Run directories made by code, with the files and the schema of a real one."""

from __future__ import annotations

import json
import math

import pytest

from spfde.report import compare
from spfde.train import Recipe

SECONDS = {"kernels": 0.0, "step": 8.0, "data": 0.3, "levers": 0.0, "evaluation": 0.6, "checkpoint": 0.1}
SPARSE = {"kernels": 2.0, "step": 2.2, "data": 0.3, "levers": 0.2, "evaluation": 0.5, "checkpoint": 0.1}
LAYER = {
    "kind": "SparseConv2d",
    "shape": [16, 16, 3, 3],
    "sparsity": 0.9,
    "nnz": 230,
    "pattern": "unstructured",
    "kernel": "native",
    "reason": "9.9% dense, native below 40%",
    "runs_sparse": True,
}
SIEVE = {
    "method": "Circular",
    "num_samples": 8000,
    "saved": 0.2,
    "reason": "the easiest go",
    "extra_seconds": 0.0,
    "never_learned": 3,
    "first": [
        {"sample": 17, "label": "4", "presentations": 6, "png": "iVBORw0KGgo="},
        {"sample": 5, "label": "9", "presentations": 5, "png": ""},
    ],
}
FREEZING = {
    "method": "Progressive, single-shot",
    "blocks": ["layer1.0", "layer1.1", "layer1.2"],
    "planned": [[], [], [], ["layer1.0"], ["layer1.0"], ["layer1.0", "layer1.1"]],
    "flops": [100.0, 92.0, 84.0, 76.0],
    "seconds": [],
    "reason": "planned",
}
LAYERS = [f"layer1.{i}.conv1" for i in range(3)]
DENSE_LAYER = {
    "kind": "Conv2d",
    "sparsity": 0.0,
    "nnz": 2304,
    "pattern": "dense",
    "kernel": "dense",
    "reason": "not converted",
    "runs_sparse": False,
}


def records(epochs, accuracy, seconds, flops, method, train=8000):
    """Metrics of a run: accuracy rises to `accuracy`; in a sparse run blocks freeze and the sieve swaps."""
    sparse = method != "dense"
    frozen, lines = [], []
    for epoch in range(epochs):
        events, share = [], 1.0
        if sparse and epoch and epoch % 2 == 0:
            events.append({"kind": "topology", "text": "pruned and regrew weights", "reason": "every 2 epochs"})
            events.append({"kind": "sieve", "text": "swapped 1280 samples", "reason": "the easiest go"})
            if epoch >= epochs // 2:
                frozen.append(f"layer1.{len(frozen)}")
                events.append({"kind": "freeze", "text": f"froze {frozen[-1]}", "reason": "planned"})
        share -= 0.08 * len(frozen)
        parts = {k: v * (share if k in ("kernels", "step") else 1) for k, v in seconds.items()} | {"other": 0.05}
        lines.append(
            {
                "epoch": epoch,
                "train_loss": 2.3 * math.exp(-epoch / 3),
                "train_accuracy": 1 - 0.8 * math.exp(-epoch / 2),
                "test_accuracy": accuracy - 0.6 * (math.exp(-epoch / 2) - math.exp(-(epochs - 1) / 2)),
                "lr": 0.1 * (1 - epoch / epochs),
                "samples": int(train * 0.8) if sparse else train,
                "flops": flops * share,
                "seconds": parts,
                "total_seconds": math.fsum(parts.values()),
                "frozen": list(frozen),
                "sieved": int(train * 0.2) if sparse else 0,
                "sparsity": 0.9 if sparse else 0.0,
                "events": events,
                "layers": {"conv1": 0.0, **dict.fromkeys(LAYERS, 0.9 * (epoch + 1) / epochs if sparse else 0.0)},
                "memory": (300 - 10 * len(frozen)) * 2**20,
            }
        )
    return lines


def write_run(
    path,
    method="spfde",
    accuracy=0.96,
    epochs=6,
    seconds=None,
    flops=1e12,
    layers=None,
    recipe=None,
    run=None,
    lines=None,
):
    """Write a run directory; keyword arguments replace what it holds."""
    path.mkdir(parents=True)
    sparse = method != "dense"
    settings = Recipe(method=method, epochs=epochs, threads=2, out=str(path))
    values = {
        "recipe": {**settings.to_dict(), **(recipe or {})},
        "environment": {"cpu": "A CPU", "torch": "2.13.0", "threads": {"torch": 2}, "warnings": []},
        "version": "0.1.0",
        "started": "2026-11-21T10:00:00+00:00",
        "samples": {"train": 8000, "test": 2000},
        "parameters": 272474,
        "layout": {"name": "contiguous", "reason": "as the recipe says"},
        "freezing": FREEZING if sparse else None,
        **(run or {}),
    }
    if lines is None:
        lines = records(epochs, accuracy, seconds or (SPARSE if sparse else SECONDS), flops, method)
    if layers is None:
        row = LAYER if sparse else LAYER | DENSE_LAYER
        layers = [DENSE_LAYER | {"name": "conv1", "shape": [16, 1, 3, 3]}, *(row | {"name": name} for name in LAYERS)]
    if sparse:
        (path / "sieve.json").write_text(json.dumps(SIEVE))
    (path / "run.json").write_text(json.dumps(values))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "layers.json").write_text(json.dumps(layers))
    (path / "result.json").write_text(json.dumps({"method": method}))
    return path


def write_pair(root):
    """A dense and a faster sparse run."""
    dense = write_run(root / "dense", "dense", accuracy=0.97, flops=3e12)
    return dense, write_run(root / "sparse", flops=5e11)


@pytest.fixture
def make_run(tmp_path):
    return lambda name, *args, **options: write_run(tmp_path / name, *args, **options)


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path)


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """That pair as a report and its page, which takes a second to draw."""
    report = compare(write_pair(tmp_path_factory.mktemp("pair")))
    return report, report.html()
