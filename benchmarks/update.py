"""What an update of the masks costs beside a training step, for every method, in one model of ten million weights.

    python benchmarks/update.py [--rounds 10] [--methods rigl,set] [--parts rigl]

step       a training step between updates, with topology.step()
update     what the step before an update takes more (the armed backward, and topology.step() that updates)
in steps   update / step, beside the asked
every 100  share of the training time that goes into updates when one follows every hundred steps
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from networks import optimizer_of, training_step
from timing import command, interleaved, machine, parts
from torch import nn

import spfde
from spfde.topology import METHODS, Topology
from spfde.tuning.samples import Timing

SPARSITY, BATCH, SIZE = 0.9, 64, 32
# Asked: an update below five steps for every method, and RigL's below 3% of the training at one in a hundred steps.
STEPS, SHARE = 5.0, 0.03
# An update every second step, so that one step of each kind is timed in every round; far from the schedules' ends.
EVERY, TOTAL = 2, 10_000
OPTIONS: Mapping[str, Mapping[str, Any]] = {"gmp": {"initial_sparsity": 0.8}, "dsr": {"threshold": 0.005}}


def network() -> nn.Module:
    """Convolutions of 4 million weights and linear layers of 6 million, always with the same ones."""
    torch.manual_seed(0)
    widths, layers = (3, 64, 128, 256, 512), []
    for inside, outside in pairwise(widths):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(512, 512, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 2048), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(2048, 1024), nn.ReLU(), nn.Linear(1024, 10))


@dataclass(frozen=True)
class Trained:
    """A sparse network under one method: a step between updates, and the one that an update follows."""

    topology: Topology
    train: Callable[[], None]

    @classmethod
    def by(cls, method: str) -> Trained:
        """Under the method with this name."""
        model = spfde.sparsify(network(), SPARSITY)
        optimizer = optimizer_of(model)
        topology = METHODS[method](model, optimizer, total_steps=TOTAL, every=EVERY, **OPTIONS.get(method, {}))
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
        return cls(topology, training_step(model, x, torch.randint(10, (BATCH,), generator=generator), optimizer))

    def step(self) -> None:
        """One optimizer step and what the topology does after it."""
        self.train()
        self.topology.step()


@dataclass(frozen=True)
class Cost:
    """Seconds of a step between updates, and of one with an update."""

    step: Timing
    updated: Timing

    @property
    def update(self) -> float:
        """Seconds that an update takes."""
        return self.updated.median - self.step.median

    @property
    def steps(self) -> float:
        """The same in steps."""
        return self.update / self.step.median

    def share(self, every: int = 100) -> float:
        """Share that updates add to the training time, one in `every` steps."""
        return self.steps / every


def measure(methods: Sequence[str], rounds: int) -> dict[str, Cost]:
    """The cost of each method, in turn."""
    trained = {name: Trained.by(name) for name in methods}
    steps = {(name, kind): one.step for name, one in trained.items() for kind in ("step", "updated")}
    timed = interleaved(steps, rounds)
    return {name: Cost(timed[name, "step"], timed[name, "updated"]) for name in methods}


def profile(method: str, rounds: int) -> None:
    """Prints where the updates of a method spend their time."""
    trained, profiler = Trained.by(method), cProfile.Profile()
    for number in range(2 * EVERY * (rounds + 1)):
        trained.train()
        if number >= 2 * EVERY:
            profiler.enable()
        trained.topology.step()
        profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for every method, beside what is asked."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--parts", choices=METHODS, help="profile the updates of this method instead")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    if given.parts:
        return profile(given.parts, given.rounds)
    facts = machine()
    print(f"{facts['cpu']}, {facts['threads']} threads, {facts['date']}: {command()}")
    print(f"{'':10}{'step ms':>10}{'update ms':>11}{'in steps':>10}{'asked':>7}{'every 100':>11}{'asked':>7}")
    for name, cost in measure(parts(given.methods), given.rounds).items():
        asked = f"{SHARE:7.0%}" if name == "rigl" else ""
        milliseconds = f"{cost.step.median * 1e3:10.1f}{cost.update * 1e3:11.1f}"
        print(f"{name:10}{milliseconds}{cost.steps:10.2f}{f'< {STEPS:.0f}':>7}{cost.share():11.2%}{asked}")


if __name__ == "__main__":
    main()
