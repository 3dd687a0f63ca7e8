"""Peak memory of training steps, each measured in a process of its own (Linux).

As a program it is that process, and prints bytes: `python benchmarks/memory.py NETWORK contiguous [--threads 2]`, or
`... NETWORK unstructured 0.9`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from networks import NETWORKS, Sparse
from torch import nn

STEPS = 3


def peak(network: str, way: str | Sparse, threads: int) -> int:
    """Bytes above an idle process that making a network and training it for a few steps takes at most."""
    words = [way.pattern, str(way.sparsity)] if isinstance(way, Sparse) else [way]
    command = [sys.executable, __file__, network, *words, "--threads", str(threads)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def resident(field: str) -> int:
    """Bytes of this process, VmRSS now or VmHWM at its peak; getrusage would count the parent before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Prints the peak of one way of one network, in bytes above the baseline."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("way", help="contiguous, channels_last, or a pattern with a sparsity")
    parser.add_argument("sparsity", type=float, nargs="?")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warm = nn.Conv2d(8, 8, 3)(torch.randn(2, 8, 8, 8))  # libraries that load at first use belong to the baseline
    nn.Linear(6, 6)(warm).sum().backward()
    baseline = resident("VmRSS")
    way = options.way if options.sparsity is None else Sparse(options.way, options.sparsity)
    _, step = NETWORKS[options.network].way(way)
    for _ in range(STEPS):
        step()
    print(resident("VmHWM") - baseline)


if __name__ == "__main__":
    main()
