"""Peak memory of training steps, dense and sparse: what is allocated, and what a process holds for it (Linux).

    python benchmarks/memory.py [--models resnet32 vit_tiny] [--threads 2]

Allocated is the measure: the most bytes of tensors at any moment of a step, at torch's allocator, alike in every run.
Resident is what the operating system gives a process of its own for a few such steps, above what it holds after a small
one. It depends on the C library as well: docs/profile.md says how, and which environment brings the two together.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from networks import EAGER, MEMORY_CASE, MEMORY_TARGET, NETWORKS, Sparse, loss_of, optimizer_of, training_step
from torch import nn

import spfde

STEPS = 3


def allocated(network: str, how: str | Sparse) -> int:
    """Bytes that a training step of one variant of a network allocates at most, weights and optimizer included."""
    model, x, y = NETWORKS[network].parts(how)
    return spfde.memory(model, x, partial(loss_of, y=y), optimizer_of(model)).peak


def peak(network: str, how: str | Sparse, threads: int) -> int:
    """Bytes above a warm process that making a network and training it for a few steps takes at most."""
    words = [how.pattern, str(how.sparsity), str(how.recompute)] if isinstance(how, Sparse) else [how]
    command = [sys.executable, __file__, "--resident", network, *words, "--threads", str(threads)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def resident(field: str) -> int:
    """Bytes of this process, VmRSS now or VmHWM at its peak; getrusage would count the parent before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def share(peaks: Mapping[str, int]) -> float:
    """The sparse peak over that of the leaner dense variant."""
    return peaks["sparse"] / min(peaks[how] for how in EAGER)


def _resident_peak(network: str, how: str | Sparse) -> int:
    """Runs the steps in this process; libraries that load with the first step belong to the baseline."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 6))
    spfde.fuse(spfde.sparsify(model, 0.5, distribution="erk"))
    training_step(model, torch.randn(2, 8, 8, 8), torch.tensor([0, 1]), optimizer_of(model))()
    baseline = resident("VmRSS")
    _, step = NETWORKS[network].variant(how)
    for _ in range(STEPS):
        step()
    return resident("VmHWM") - baseline


def _how(words: list[str]) -> str | Sparse:
    return words[0] if len(words) == 1 else Sparse(words[0], float(words[1]), words[2] == "True")


def main() -> None:
    """Prints both peaks of the leaner dense variant and the sparse one, in 10^6 bytes, and their ratios."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME",
                        help=f"any of {', '.join(NETWORKS)} (all)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--resident", nargs="+", metavar="WORD", help=argparse.SUPPRESS)  # the measured process itself
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.resident:
        network, *how = options.resident
        print(_resident_peak(network, _how(how)))
        return
    head = ("dense MB", "sparse MB", "share", "target", "resident dense", "sparse", "share")
    print(f"{'network':14}" + "".join(f"{word:>15}" for word in head))
    for name in options.models:
        variants = {**{how: how for how in EAGER}, "sparse": MEMORY_CASE}
        found = {how: allocated(name, what) for how, what in variants.items()}
        held = {how: peak(name, what, options.threads) for how, what in variants.items()}
        cells: list[str] = []
        for peaks in (found, held):
            cells += [f"{min(peaks[how] for how in EAGER) / 1e6:.1f}", f"{peaks['sparse'] / 1e6:.1f}"]
            cells += [f"{share(peaks):.0%}"] + ([f"<= {MEMORY_TARGET:.0%}"] if peaks is found else [])
        print(f"{name:14}" + "".join(f"{cell:>15}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
