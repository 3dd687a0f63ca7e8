"""A training step with a part of the blocks frozen: as the modules run it, folded, and from the cache.

    python benchmarks/freezing_steps.py [--model resnet32] [--width 2] [--sparsity 0.9] [--rounds 15] [--threads 1]
                                  [--kinds unfused fused] [--no-memory] [--json FILE]

Ways of the frozen front: plain (the modules, without a graph), prefix (`spfde.freezing.Prefix`) and cache (the same
with all samples held in memory). "live" is what no front can save: the step of the rest, on the boundary's activations.
All take turns. Seconds are those of the processor that this process had, so that others on the machine count little;
`--wall` takes the clock's. Memory is the most bytes of tensors at any moment of a step.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import timing
import torch
from networks import Network, loss_of, optimizer_of, training_step
from torch import nn

import spfde
from spfde.freezing import ActivationCache, Prefix, blocks
from spfde.tuning.samples import Timing, summarise

SHARES = (0.0, 1 / 3, 2 / 3)
WAYS = ("plain", "prefix", "cache", "live")
KINDS = ("unfused", "fused")
WARMUP = 3


@dataclass(frozen=True)
class Row:
    """One way of one share of frozen blocks. seconds: of a step. peak: bytes, None where it was not measured.

    over_plain, over_unfrozen: how many times as fast as those steps of the same network.
    """

    fused: bool
    frozen: str
    way: str
    seconds: Timing
    peak: int | None
    over_plain: float
    over_unfrozen: float


@dataclass(frozen=True)
class Case:
    """A way of a share of the blocks, in a network that is fused or not."""

    fused: bool
    share: float
    way: str

    def parts(self, network: Network, sparsity: float) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Prefix]:
        """The network with its front frozen, a batch, its targets, and the prefix."""
        model, (x, y) = network.make(), network.data()
        spfde.sparsify(model, sparsity, distribution="erk")
        model = spfde.fuse(model) if self.fused else model
        found = blocks(model, x[:1])
        for block in found[: round(self.share * len(found))]:
            block.freeze()
        cache = ActivationCache() if self.way == "cache" else "off"
        return model.train(), x, y, Prefix(model, found, cache, len(x))

    def step(self, network: Network, sparsity: float) -> tuple[nn.Module, Callable[[], None], Callable[[], int]]:
        """The network, its training step, and what measures the bytes of one."""
        model, x, y, prefix = self.parts(network, sparsity)
        optimizer, indices = optimizer_of(model), torch.arange(len(x))
        if self.way == "live":
            model, x = _rest(model, x, prefix.boundary)
            return model, training_step(model, x, y, optimizer), lambda: 0
        context = nullcontext if self.way == "plain" else partial(prefix, indices)

        def run(images: torch.Tensor) -> torch.Tensor:
            with context():
                return model(images)

        def peak() -> int:
            with context():
                return spfde.memory(model, x, partial(loss_of, y=y), optimizer).peak

        return model, training_step(run, x, y, optimizer), peak


def _rest(model: nn.Module, x: torch.Tensor, boundary: str | None) -> tuple[nn.Module, torch.Tensor]:
    """What of a network of stages is behind the boundary, and what it is given."""
    kept: list[torch.Tensor] = []
    at = model.get_submodule(boundary)
    handle = at.register_forward_hook(lambda module, inputs, output: kept.append(output.detach()))
    with torch.no_grad():
        model(x)
    handle.remove()
    stage, index = boundary.split(".")
    later = [child for name, child in model.named_children() if name.startswith("layer") and name > stage]
    left = [*model.get_submodule(stage)[int(index) + 1 :], *later]
    return nn.Sequential(*left, model.pool, nn.Flatten(), model.fc), kept[0]


def measure(
    network: Network, sparsity: float, rounds: int, wall: bool, kinds: Sequence[str] = KINDS, weighed: bool = True
) -> list[Row]:
    """The rows of a network, all timed in turn. kinds: of `KINDS`. weighed: with their bytes."""
    cases = [Case(kind == "fused", share, way) for kind in kinds for share in SHARES for way in WAYS]
    cases = [case for case in cases if case.share or case.way == "plain"]
    steps = {case: case.step(network, sparsity) for case in cases}
    clock = time.perf_counter if wall else time.process_time
    seconds: dict[Case, list[float]] = {case: [] for case in cases}
    for number in range(WARMUP + rounds):
        for case, (_, step, _) in steps.items():
            start = clock()
            step()
            if number >= WARMUP:
                seconds[case].append(clock() - start)
    timings = {case: summarise(taken) for case, taken in seconds.items()}
    rows = []
    for case, (_, _, peak) in steps.items():
        plain = timings[Case(case.fused, case.share, "plain")].median
        whole = timings[Case(case.fused, 0.0, "plain")].median
        mine, name = timings[case], {0.0: "0", 1 / 3: "1/3", 2 / 3: "2/3"}[case.share]
        bytes_ = peak() if weighed and case.way != "live" else None
        rows.append(Row(case.fused, name, case.way, mine, bytes_, plain / mine.median, whole / mine.median))
    return rows


def line(row: Row) -> str:
    """The row of the printed table."""
    peak = "" if row.peak is None else f"{row.peak / 1e6:.1f}"
    text = f"{'fused' if row.fused else 'unfused':9}{row.frozen:>7} {row.way:7}{row.seconds.median * 1e3:9.1f}"
    return f"{text}{row.seconds.spread:8.1%}{row.over_plain:9.2f}x{row.over_unfrozen:11.2f}x{peak:>10}"


HEADER = f"{'':9}{'frozen':>7} {'way':7}{'ms':>9}{'+-':>8}{'over plain':>10}{'unfrozen':>12}{'peak MB':>10}"


def main(arguments: list[str] | None = None) -> None:
    """Prints the table, and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet32", help="a network of stages layer1, layer2, ... (resnet32)")
    parser.add_argument("--width", type=float, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--no-memory", action="store_true", help="seconds alone")
    parser.add_argument("--wall", action="store_true", help="seconds of the clock, not of the processor")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    about, network = timing.machine(), Network(given.model, {"width": given.width}, given.batch, given.size)
    rows = measure(network, given.sparsity, given.rounds, given.wall, given.kinds, not given.no_memory)
    print(HEADER)
    for row in rows:
        print(line(row))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        kind = "wall" if given.wall else "processor"
        record = {"machine": about, "command": timing.command(), "rounds": given.rounds, "clock": kind}
        given.json.write_text(json.dumps({**record, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
