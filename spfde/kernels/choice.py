"""The kernels there are, and a choice among them with its reason."""

from __future__ import annotations

from dataclasses import dataclass

KERNELS = ("native", "dense", "reference")


@dataclass(frozen=True)
class KernelChoice:
    """A kernel and why it was taken."""

    kernel: str
    reason: str
