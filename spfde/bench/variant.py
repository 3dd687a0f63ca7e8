"""One form of a layer or network: what is timed of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from spfde.nn import SparseLayer
from spfde.profiling.dense_baseline import CHANNELS_LAST, CONTIGUOUS
from spfde.profiling.memory import size_of
from spfde.tuning.layer import Timed


@dataclass(frozen=True)
class Variant:
    """One form of a subject. calls: by part; phases: seconds by part that the call of a step notes down itself."""

    name: str
    calls: Mapping[str, Timed]
    phases: Mapping[str, list[float]] = field(default_factory=dict)
    pattern: str = "dense"
    sparsity: float = 0.0
    density: float = 1.0
    kernel: str = "torch"
    reason: str = ""
    size: int | None = None
    peak: Callable[[], int | None] = lambda: None
    absent: Mapping[str, str] = field(default_factory=dict)


Maker = tuple[str, str, float, Callable[[], Variant]]  # variant, pattern, sparsity, and what makes it


def dense_names(images: bool, compiled: bool) -> list[str]:
    """The dense variants: in both memory formats where there are images."""
    names = [f"dense {CONTIGUOUS}", *([f"dense {CHANNELS_LAST}"] if images else [])]
    return [*names, *(["dense compiled"] if compiled else [])]


def bytes_of(model: nn.Module) -> int:
    """Bytes of parameters, buffers and what sparse kernels read of a topology."""
    plans = [module.plan for module in model.modules() if isinstance(module, SparseLayer)]
    return size_of([list(model.parameters()), list(model.buffers()), plans])


def compiled_form(module: nn.Module) -> Any:
    """The module under torch.compile."""
    torch.compiler.reset()  # its limit on recompilations counts all of a process together
    return torch.compile(module, dynamic=False)
