"""What is known of GPUs, and what a launch on one is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from spfde._machine import GpuFacts


class Config(NamedTuple):
    """One launch: tokens of a tile, inputs (or, for the weight gradient, tokens) multiplied at once, warps, stages."""

    tokens: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Gpu:
    """What the model knows of a GPU: rates in units of 10^12 a second.

    name: what tables of measurements call it, its `GpuFacts.identity`. half, tf32: floating point operations of dense
    products in 16 bits and TF32. simt: those of CUDA cores in float32. l2, memory: bytes. units: multiprocessors.
    clock: theirs, in GHz, at which the rates hold. shared: bytes of shared memory that a program may have.
    """

    name: str
    capability: tuple[int, int]
    units: int
    shared: int
    half: float
    tf32: float
    simt: float
    l2: float
    memory: float
    clock: float

    def rate(self, dtype: torch.dtype) -> float:
        """Of dense products in this precision, float32 as TF32."""
        return self.tf32 if dtype == torch.float32 else self.half

    @property
    def matrix_unit(self) -> str:
        """How its matrix unit is asked: "mma" (sm_80 to 89, 120, 121), "wgmma" (Hopper), "tcgen05" (sm_100, 110)."""
        return {9: "wgmma", 10: "tcgen05", 11: "tcgen05"}.get(self.capability[0], "mma")

    @property
    def multiplies_from_shared(self) -> bool:
        """Whether the matrix unit reads operands out of shared memory, where "mma" wants them in registers."""
        return self.matrix_unit != "mma"


KIB = 1024
# H200: products and memory measured, L2 and TF32 assumed. The others from data sheets, their L2 assumed. Blackwell for
# the desktop, GB10 too, sums 16-bit products in float32 at half of the advertised rate.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("NVIDIA H200", (9, 0), 132, 227 * KIB, 790, 395, 67, 5.5, 4.3, 1.98),
        Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 163 * KIB, 270, 135, 19.5, 4.5, 2.0, 1.41),
        Gpu("NVIDIA GeForce RTX 3060", (8, 6), 28, 99 * KIB, 51, 25, 13, 1.2, 0.36, 1.78),
        Gpu("Orin", (8, 7), 16, 163 * KIB, 42.5, 21, 5.3, 0.7, 0.2, 1.3),
        Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 99 * KIB, 165, 82, 82, 4.5, 1.0, 2.52),
        Gpu("NVIDIA B200", (10, 0), 148, 227 * KIB, 2250, 1125, 75, 6.2, 8.0, 1.97),
        Gpu("NVIDIA Thor", (11, 0), 20, 227 * KIB, 258, 129, 8.1, 1.1, 0.273, 1.57),
        Gpu("NVIDIA GeForce RTX 5090", (12, 0), 170, 99 * KIB, 209, 105, 105, 6.0, 1.79, 2.41),
        Gpu("NVIDIA GB10", (12, 1), 48, 99 * KIB, 62, 31, 31, 1.7, 0.273, 2.5),
    )
}


def gpu_of(facts: GpuFacts) -> Gpu:
    """The GPU that a device's facts describe: listed, or the nearest listed one, scaled.

    Nearest: of its name, else of the newest architecture that is no newer. Scaled to its multiprocessors and, where it
    is told, their clock, which a board's power mode sets; memory is scaled with the multiprocessors alone, unless the
    device tells its rate.
    """
    known = sorted(GPUS.values(), key=lambda gpu: gpu.capability)
    older = [gpu for gpu in known if gpu.capability <= facts.capability]
    like = GPUS.get(facts.name) or [known[0], *older][-1]
    if (like.name, like.units) == (facts.identity, facts.units):
        return like
    more = facts.units / like.units
    faster = more * (facts.clock / like.clock if facts.clock else 1)
    rates = (rate * faster for rate in (like.half, like.tf32, like.simt, like.l2))
    memory, clock = facts.memory or like.memory * more, facts.clock or like.clock
    return Gpu(facts.identity, facts.capability, facts.units, facts.shared, *rates, memory, clock)


@lru_cache(maxsize=8)
def gpu_at(device: torch.device) -> Gpu:
    """The GPU that a tensor is on; the interpreter stands for an A100."""
    return gpu_of(GpuFacts.of(device)) if device.type == "cuda" else GPUS["NVIDIA A100-SXM4-80GB"]


def queue_of(x: Tensor) -> tuple[int, int]:
    """Device and stream that a launch on a tensor is queued on; one of a CPU is the emulator's (tests/cuda)."""
    if x.device.type == "cpu":
        return 0, 0
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def gpu_here() -> Gpu | None:
    """The current GPU, if there is one."""
    return gpu_at(torch.device("cuda", torch.cuda.current_device())) if torch.cuda.is_available() else None
