"""Train neural networks faster in seconds: sparse weights, layer freezing, data sieving."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from spfde import freezing, fusing, nn, sieving, topology
from spfde.convert import densify, sparsify
from spfde.fusing import fuse, unfuse
from spfde.summary import summary

__version__ = "0.1.0"
__all__ = [
    "data",
    "densify",
    "freezing",
    "fuse",
    "fusing",
    "models",
    "nn",
    "report",
    "sieving",
    "sparsify",
    "summary",
    "topology",
    "train",
    "unfuse",
]

# Loaded when asked for: what runs a training, not what a layer needs.
_LAZY = ("data", "models", "report", "train", "env", "flops")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f"spfde.{name}")
    raise AttributeError(f"module 'spfde' has no attribute {name!r}")
