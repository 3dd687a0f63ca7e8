"""What training costs on a machine: windows of steps, and joules and seconds of a step and of an epoch. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from statistics import median

from spfde.energy.series import State


@dataclass(frozen=True)
class Window:
    """Some seconds of training steps. rails: joules by rail. joules: in total, None where `why` says so.

    state: how the machine fared; a window in which something slowed it down was repeated.
    """

    steps: int
    seconds: float
    rails: Mapping[str, float]
    joules: float | None
    why: str = ""
    state: State = field(default_factory=State)


@dataclass(frozen=True)
class TrainingCost:
    """What a training step of a network costs: its windows, in the order in which they were taken.

    sparsity: 0 of the dense network. kernels: layers by the kernel that ran them. peak: the most bytes that the process
    held, of a GPU its tensors; shared: the most that the whole machine had in use beside what it has when idle, None
    where it is not told. Those of the GPU are among them where it shares the board's memory.
    """

    network: str
    batch: int
    sparsity: float
    pattern: str
    dtype: str
    kernels: Mapping[str, int]
    windows: tuple[Window, ...]
    peak: int
    shared: float | None = None

    @property
    def steady(self) -> tuple[Window, ...]:
        """The windows that count: those in which nothing slowed the machine, or all if there is none."""
        return tuple(window for window in self.windows if not window.state.slowed) or self.windows

    @property
    def throttled(self) -> bool:
        """Whether something slowed the machine in every window."""
        return all(window.state.slowed for window in self.windows)

    @property
    def seconds(self) -> float:
        """Median seconds of a step."""
        return median(window.seconds / window.steps for window in self.steady)

    def joules(self, idle_watts: float = 0.0) -> float | None:
        """Median joules of a step, without what the idle machine draws in that time."""
        told = [(w.joules - idle_watts * w.seconds) / w.steps for w in self.steady if w.joules is not None]
        return median(told) if told else None

    def steps_of_epoch(self, samples: int) -> int:
        """Steps that see so many samples once."""
        return ceil(samples / self.batch)

    @property
    def why(self) -> str:
        """Why no joules are told, "" where they are."""
        return "" if self.joules() is not None else next((w.why for w in self.windows if w.why), "no window was taken")
