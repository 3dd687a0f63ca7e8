"""Train neural networks faster in seconds: sparse weights, layer freezing, data sieving."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spfde import analysis, freezing, fusing, nn, profiling, sieving, topology
from spfde._heap import keep_memory
from spfde._version import __version__
from spfde.convert.sparsify import densify, sparsify
from spfde.fusing import fuse, unfuse
from spfde.kernels.dispatch.table import Table
from spfde.profiling import memory, profile
from spfde.summary import summary
from spfde.tuning.tune import tune, use_table

if TYPE_CHECKING:
    from spfde import data, integrations, models, report, train
    from spfde import env as env
    from spfde import flops as flops
    from spfde.planning import plan

__all__ = [
    "Table",
    "__version__",
    "analysis",
    "data",
    "densify",
    "export",
    "freezing",
    "fuse",
    "fusing",
    "integrations",
    "keep_memory",
    "memory",
    "models",
    "nn",
    "plan",
    "profile",
    "profiling",
    "report",
    "sieving",
    "sparsify",
    "summary",
    "topology",
    "train",
    "tune",
    "unfuse",
    "use_table",
]

# Loaded when asked for: what runs a training, not what a layer needs.
_LAZY = ("data", "export", "integrations", "models", "report", "train", "env", "flops")


def __getattr__(name: str) -> Any:
    if name == "plan":
        return import_module("spfde.planning").plan
    if name in _LAZY:
        return import_module(f"spfde.{name}")
    raise AttributeError(f"module 'spfde' has no attribute {name!r}")
