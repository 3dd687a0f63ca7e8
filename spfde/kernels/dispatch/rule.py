"""Which kernel runs: a pure function of the problem, so that two runs and a resumed run give the same bits.

A *route* says what settles the kernel: "auto" (what the kernels predict of themselves), a kernel's name (forced), or
the name of a table of measurements in use.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from spfde.kernels import registry
from spfde.kernels.dispatch import in_use
from spfde.kernels.dispatch.table import Table
from spfde.kernels.gpu import gpu_here
from spfde.kernels.problem import KernelChoice, Problem

FALLBACK = "dense"  # runs everywhere
EXACT = "reference"  # the one for float64
WHOLE_OUTPUTS = "native"  # the one whose product over the stored outputs alone runs on every device
generation = 0  # grows when what is known of the machine has changed: what was worked out before is no longer right


def check_kernel(name: str) -> str:
    """Returns the name.

    Raises:
        ValueError: it is neither "auto" nor a kernel's.
    """
    return name if name == "auto" else registry.get(name).name


@lru_cache(maxsize=4096)
def choose(route: str, device: str, dtype: torch.dtype, problem: Problem) -> KernelChoice:
    """The kernel for a problem computed in `dtype` on a type of device.

    Raises:
        ValueError: `route` names no kernel, or one that cannot run on this device or in this precision.
    """
    free = route == "auto" or in_use.names_table(route)
    if not free:
        obstacle = registry.get(route).obstacle(device, dtype, problem)
        if obstacle is not None:
            raise ValueError(f"expected kernel {route!r} to run here, got: {obstacle}, try kernel = 'auto'")
    if dtype == torch.float64:
        return KernelChoice(EXACT, "float64 takes the reference path", problem)
    if problem.whole_outputs and (free or route == WHOLE_OUTPUTS):
        return KernelChoice(WHOLE_OUTPUTS, "a dense product over the stored outputs alone", problem)
    if not free:
        return KernelChoice(route, "forced by layer.kernel", problem)
    table = in_use.table_of(route, "" if device == "cpu" else getattr(gpu_here(), "name", None))
    return _measured(table, device, dtype, problem) or _predicted(table, device, dtype, problem)


def _measured(table: Table | None, device: str, dtype: torch.dtype, problem: Problem) -> KernelChoice | None:
    """What a table of this machine says, if anything."""
    measured = table.measured(problem) if table is not None and candidates(device, dtype, problem) else None
    if measured is None:
        return None
    gain = f"measured {measured.speedup:.1f}x the masked dense product at density {measured.density:.2f}"
    return KernelChoice(measured.kernel, f"{gain} (table {table.name})", problem)


def _predicted(table: Table | None, device: str, dtype: torch.dtype, problem: Problem) -> KernelChoice:
    """The kernel that is expected to gain most over the masked dense product, if any is expected to gain."""
    kernels, obstacles = [], []
    for kernel in registry.sparse_kernels(device):
        obstacle = kernel.obstacle(device, dtype, problem)
        if obstacle is None:
            kernels.append((kernel, kernel.predict(dtype, problem)))
        else:
            obstacles.append(obstacle)
    if not kernels:
        reason = "; ".join(obstacles) or f"none is written for {device}"
        return KernelChoice(FALLBACK, f"no sparse kernel here: {reason}", problem)
    kernel, prediction = max(kernels, key=lambda pair: (pair[1].pays, pair[1].gain))
    unmeasured = f" (not in table {table.name})" if table is not None and device == "cpu" else ""
    return KernelChoice(kernel.name if prediction.pays else FALLBACK, prediction.reason + unmeasured, problem)


def candidates(device: str, dtype: torch.dtype, problem: Problem) -> tuple[str, ...]:
    """The kernels among which measuring can choose: none where only one can run, or where no choice is made."""
    if dtype == torch.float64 or problem.whole_outputs:
        return ()
    kernels = [k.name for k in registry.sparse_kernels(device) if k.obstacle(device, dtype, problem) is None]
    return (*kernels, FALLBACK) if kernels else ()


def forget() -> None:
    """Lets every choice be made anew: what is known of this machine has changed."""
    global generation
    generation += 1
    choose.cache_clear()


registry.listeners.append(forget)
