"""How far a plan is from what the machine then takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from spfde.bench import Group, Network, Workload
from spfde.bench.measuring import measure
from spfde.bench.record import Row
from spfde.planning.values import Plan

ALLOWED = 0.20  # share by which a whole step may be off


@dataclass(frozen=True)
class Miss:
    """A step as planned and as measured, in seconds."""

    name: str
    planned: float
    measured: float

    @property
    def off(self) -> float:
        """Planned over measured, less one."""
        return self.planned / self.measured - 1


def check(plan: Plan, load: Workload, repeats: int = 5, clock: str = "wall") -> list[Miss]:
    """Measures the steps of a plan of the same workload on this machine: dense, sparse as planned, half frozen.

    Raises:
        ValueError: a step does not run here; says why.
    """
    sparsity, pattern = plan.recipe.get("sparsity"), plan.recipe.get("pattern", "unstructured")
    network = Network(load, plan.recipe.get("fuse", True), plan.recipe.get("distribution", "uniform"))
    group = Group(network, (sparsity,) if sparsity else (), pattern, threads=torch.get_num_threads(), clock=clock)
    rows = measure(group, repeats)
    dense = [row for row in rows if row.dense and row.seconds.get("step")]
    found = [Miss("dense step", plan.dense, min(row.median("step") or 0.0 for row in dense))] if dense else []
    for row in (row for row in rows if not row.dense):
        found += _of_sparse(plan, row)
    if not found or (sparsity and len(found) < 2):
        raise ValueError(f"expected steps that run here, got {_why(rows)}, try a smaller batch")
    return found


def _of_sparse(plan: Plan, row: Row) -> list[Miss]:
    found = []
    if row.seconds.get("step"):
        found.append(Miss("sparse step", plan.sparse, row.median("step") or 0.0))
    if row.seconds.get("frozen") and len(plan.stages) > 1:
        half = max(1, round((len(plan.stages) - 1) / 2))
        found.append(Miss("half frozen step", plan.stages[half], row.median("frozen") or 0.0))
    return found


def _why(rows: Sequence[Row]) -> str:
    absent: Mapping[str, str] = {k: v for row in rows for k, v in row.absent.items()}
    return "; ".join(absent.values()) or "none"
