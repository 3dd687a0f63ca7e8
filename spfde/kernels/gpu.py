"""What is known of GPUs, and what a launch on one is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch


class Config(NamedTuple):
    """One launch: tokens of a tile, inputs (or, for the weight gradient, tokens) multiplied at once, warps, stages."""

    tokens: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Gpu:
    """What the model knows of a GPU: rates in units of 10^12 a second.

    half, tf32: floating point operations of dense products in 16 bits and TF32. simt: those of CUDA cores in float32.
    l2, memory: bytes. shared: bytes of shared memory that a program may have. units: multiprocessors.
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

    def rate(self, dtype: torch.dtype) -> float:
        """Of dense products in this precision, float32 as TF32."""
        return self.tf32 if dtype == torch.float32 else self.half


KIB = 1024
# H200: products and memory measured, L2 and TF32 assumed. The others from data sheets, their L2 assumed.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("NVIDIA H200", (9, 0), 132, 227 * KIB, 790, 395, 67, 5.5, 4.3),
        Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 163 * KIB, 270, 135, 19.5, 4.5, 2.0),
        Gpu("NVIDIA GeForce RTX 3060", (8, 6), 28, 99 * KIB, 51, 25, 13, 1.2, 0.36),
        Gpu("Orin", (8, 7), 16, 163 * KIB, 42.5, 21, 5.3, 0.7, 0.2),
        Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 99 * KIB, 165, 82, 82, 4.5, 1.0),
    )
}


def gpu_of(name: str, capability: tuple[int, int], units: int, shared: int) -> Gpu:
    """The GPU, or for one that is not listed the nearest older architecture's, scaled to its multiprocessors."""
    if name in GPUS:
        return GPUS[name]
    known = sorted(GPUS.values(), key=lambda gpu: gpu.capability)
    like = [known[0], *(gpu for gpu in known if gpu.capability <= capability)][-1]
    by = units / like.units
    rates = (rate * by for rate in (like.half, like.tf32, like.simt, like.l2, like.memory))
    return Gpu(name, capability, units, shared, *rates)


@lru_cache(maxsize=8)
def gpu_at(device: torch.device) -> Gpu:
    """The GPU that a tensor is on; the interpreter stands for an A100."""
    if device.type != "cuda":
        return GPUS["NVIDIA A100-SXM4-80GB"]
    facts = torch.cuda.get_device_properties(device)
    shared = getattr(facts, "shared_memory_per_block_optin", 99 * 1024)
    return gpu_of(facts.name, (facts.major, facts.minor), facts.multi_processor_count, shared)


def gpu_here() -> Gpu | None:
    """The current GPU, if there is one."""
    return gpu_at(torch.device("cuda", torch.cuda.current_device())) if torch.cuda.is_available() else None
