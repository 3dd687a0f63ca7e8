"""Whole layers, forward + backward: the figures behind the dispatch rule.

As a program it prints the table, interleaving the variants so that a noisy machine slows all of them alike:

    python benchmarks/layers.py [--threads 2] [--rounds 15] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import pytest
import torch
from cases import CONV, LINEAR, SPARSITIES, Layer, forward_backward

VARIANTS = ("dense", "native", "masked")


def variants(layer: Layer) -> tuple[str, ...]:
    """What is timed; a convolution's dense baseline is the faster of two memory formats."""
    return ("dense", "dense channels_last", *VARIANTS[1:]) if layer.kind == "conv" else VARIANTS


@pytest.mark.parametrize("sparsity", [0.9])
@pytest.mark.parametrize("layer", [*LINEAR, *CONV], ids=str)
def test_forward_backward(benchmark, layer, sparsity):
    benchmark.group = f"forward + backward at sparsity {sparsity}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), sparsity=sparsity)
    benchmark.pedantic(forward_backward(*layer.variant("native", sparsity)), rounds=15, warmup_rounds=3)


def measure(layer: Layer, sparsity: float, rounds: int) -> dict[str, float]:
    """Median seconds by variant, in turn, after three warm-up rounds."""
    steps = {name: forward_backward(*layer.variant(name, sparsity)) for name in variants(layer)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[3:]) for name, values in times.items()}


def main() -> None:
    """Prints speed-up over the best dense variant, and efficiency = speed-up x density, for every layer."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="also write the raw medians, in seconds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(f"{'layer':34} {'dense ms':>9} " + " ".join(f"{s:>15.0%}" for s in SPARSITIES))
    for layer in [*LINEAR, *CONV]:
        cells, best = [], 0.0
        for sparsity in SPARSITIES:
            seconds = measure(layer, sparsity, options.rounds)
            best = min(value for name, value in seconds.items() if name.startswith("dense"))
            speedup = best / seconds["native"]
            cells.append(f"{speedup:5.2f}x eff {speedup * (1 - sparsity):4.2f}")
            rows.append({"layer": str(layer), "sparsity": sparsity, **seconds})
        print(f"{layer!s:34} {best * 1e3:9.2f} " + " ".join(f"{cell:>15}" for cell in cells), flush=True)
    if options.json:
        from spfde import env

        with open(options.json, "w") as file:
            json.dump({"threads": options.threads, "machine": platform.processor() or platform.machine(),
                       "environment": env.report(), "seconds": rows}, file, indent=1)  # fmt: skip


if __name__ == "__main__":
    main()
