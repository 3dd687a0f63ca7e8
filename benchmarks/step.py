"""A whole training step (forward, backward, SGD), sparse beside the best dense variant, and its peak memory.

    python benchmarks/step.py [--models resnet32 vgg19_bn] [--sparsities 0.5 0.9 0.95] [--rounds 15] [--threads 2]
                              [--json FILE]

The dense baseline is the fastest of eager contiguous, eager channels_last and torch.compile. All variants of a network
take turns, so that a machine that slows down slows all alike. Memory is against the leaner of the two eager variants,
compiling takes memory of its own: the share of what a step allocates, which has a target, and of what a process then
holds (see benchmarks/memory.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import pytest
import torch
from memory import allocated, peak, share
from networks import DENSE, EAGER, MEMORY_CASE, MEMORY_TARGET, NETWORKS, TARGETS, Sparse, cases
from timing import command, interleaved, machine

from spfde.nn import SparseLayer

WARMUP = 3


@dataclass(frozen=True)
class Row:
    """One case of a network: seconds per step by variant (medians), what did not run and why.

    peaks, resident: bytes by variant, allocated in a step and held by a process.
    layers: (sparse layers that take a sparse kernel, all sparse layers).
    """

    network: str
    case: Sparse
    dense: Mapping[str, float]
    sparse: float | None = None
    layers: tuple[int, int] = (0, 0)
    absent: str = ""
    peaks: Mapping[str, int] | None = None
    resident: Mapping[str, int] | None = None

    @property
    def best(self) -> str:
        """The fastest dense variant."""
        return min(self.dense, key=self.dense.__getitem__)

    @property
    def speedup(self) -> float | None:
        """Seconds of the best dense variant over those of the sparse one."""
        return None if self.sparse is None else self.dense[self.best] / self.sparse

    @property
    def target(self) -> float | None:
        """The speed-up to reach, if this case has one."""
        return TARGETS.get((self.network, self.case))

    @property
    def memory(self) -> float | None:
        """Peak of the sparse variant over that of the leaner dense one, of what is allocated."""
        return self.peaks and share(self.peaks)


@pytest.mark.parametrize("how", ["contiguous", "channels_last", "sparse"])
def test_step(benchmark, how):
    benchmark.group = "training step of resnet32, sparsity 0.9"
    benchmark.extra_info.update(threads=torch.get_num_threads())
    _, step = NETWORKS["resnet32"].variant(Sparse("unstructured", 0.9) if how == "sparse" else how)
    benchmark.pedantic(step, rounds=5, warmup_rounds=2)


def measure(name: str, sparsities: list[float], rounds: int, threads: int) -> list[Row]:
    """The rows of one network."""
    torch.compiler.reset()
    variants: dict[str | Sparse, tuple[torch.nn.Module, Callable[[], None]]] = {}
    absent: dict[Sparse, str] = {}
    for how in (*DENSE, *cases(name, sparsities)):
        try:
            variants[how] = NETWORKS[name].variant(how)
        except ValueError as error:
            if how in DENSE:
                raise
            absent[how] = str(error)
    timings = interleaved({how: step for how, (_, step) in variants.items()}, rounds, WARMUP)
    seconds = {how: timing.median for how, timing in timings.items()}
    dense = {how: seconds[how] for how in DENSE}
    layers = {how: _sparse_layers(model) for how, (model, _) in variants.items()}
    variants.clear()  # the memory of a child is its own, but the machine's is shared
    rows = []
    for case in cases(name, sparsities):
        if case in absent:
            rows.append(Row(name, case, dense, absent=absent[case]))
            continue
        peaks = held = None
        if case == MEMORY_CASE:
            both = {**{how: how for how in EAGER}, "sparse": case}
            peaks = {how: allocated(name, what) for how, what in both.items()}
            held = {how: peak(name, what, threads) for how, what in both.items()}
        rows.append(Row(name, case, dense, seconds[case], layers[case], peaks=peaks, resident=held))
    return rows


def _sparse_layers(model: torch.nn.Module) -> tuple[int, int]:
    kernels = [m.kernel for m in model.modules() if isinstance(m, SparseLayer)]
    return sum(kernel == "native" for kernel in kernels), len(kernels)


HEADER = (
    f"{'network':14}{'case':29}{'dense ms':>10} {'best dense':14}{'sparse ms':>10}{'speed-up':>9}{'target':>8}"
    f" {'':5}{'layers sparse':>14}{'peak memory':>13}{'resident':>17}"
)


def line(row: Row) -> str:
    """The row of the printed table."""
    start = f"{row.network:14}{row.case!s:29}{row.dense[row.best] * 1e3:10.1f} {row.best:14}"
    if row.sparse is None:
        return f"{start}{'absent':>10}  {row.absent}"
    text = f"{start}{row.sparse * 1e3:10.1f}{row.speedup:8.2f}x"
    text += f"{row.target:7.2f}x {verdict(row.speedup >= row.target):5}" if row.target else f"{'':8} {'':5}"
    text += f"{'{} of {}'.format(*row.layers):>14}"
    if row.memory is not None:
        text += f"{row.memory:8.0%} <= {MEMORY_TARGET:.0%} {verdict(row.memory <= MEMORY_TARGET)}"
        text += f"{share(row.resident):9.0%}" if row.resident else ""
    return text


def verdict(met: bool) -> str:
    """The word for a target that is met or not."""
    return "pass" if met else "FAIL"


def main() -> None:
    """Prints speed-up and peak memory of every case beside its target, and how many targets are met."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME",
                        help=f"any of {', '.join(NETWORKS)} (all)")  # fmt: skip
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.9, 0.95])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="also write what was measured, in seconds and bytes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    print(HEADER)
    for name in options.models:
        for row in measure(name, options.sparsities, options.rounds, options.threads):
            rows.append(row)
            print(line(row), flush=True)
    aims = [row.speedup is not None and row.speedup >= row.target for row in rows if row.target]
    aims += [row.memory <= MEMORY_TARGET for row in rows if row.memory is not None]
    print(f"{sum(aims)} of {len(aims)} targets met, {options.threads} threads, medians of {options.rounds} rounds")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine(), "command": command(), "rounds": options.rounds,
                       "rows": [{**asdict(row), "speedup": row.speedup, "target": row.target, "memory": row.memory}
                                for row in rows]}, file, indent=1)  # fmt: skip


if __name__ == "__main__":
    main()
