"""One layer, dense beside every kernel that can run: forward, backward and both, timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from spfde import env
from spfde.kernels import registry
from spfde.kernels.dispatch.rule import FALLBACK
from spfde.nn import SparseLayer
from spfde.tuning import timing
from spfde.tuning.layer import PARTS, LayerSpec, Timed, parts, precision

TOLERANCE = {"float32": 1e-4, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 2e-2}  # of the output's norm

Clock = Callable[[Mapping[tuple[str, str], Timed], int, str], Mapping[tuple[str, str], Sequence[float]]]


@dataclass(frozen=True)
class Cell:
    """One sparsity: seconds of every round by variant (see `kernels`) and part, and why a variant has none.

    Variants whose name begins with "dense" are torch's own layers. kernel, reason: what "auto" runs. density: share of
    the weights that is stored.
    """

    sparsity: float
    density: float
    kernel: str
    reason: str
    seconds: Mapping[str, Mapping[str, Sequence[float]]]
    absent: Mapping[str, str]

    def median(self, variant: str, part: str) -> float:
        """Median seconds."""
        return median(self.seconds[variant][part])

    def speedup(self, variant: str, part: str) -> float:
        """Time of the fastest dense variant over that of this one."""
        dense = min(self.median(name, part) for name in self.seconds if name.startswith("dense"))
        return dense / self.median(variant, part)


@dataclass(frozen=True)
class Comparison:
    """A layer on a device at several sparsities, and where it was timed."""

    machine: Mapping[str, Any]
    device: str
    layer: LayerSpec
    repeats: int
    cells: Sequence[Cell]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


def compare(
    layer: LayerSpec, sparsities: Sequence[float], device: str, repeats: int, clock: Clock = timing.interleaved
) -> Comparison:
    """Times a layer. device: "cpu" or "cuda". A sparse layer's input is contiguous on a CPU, channels_last on a GPU.

    Raises:
        ValueError: the device is not there, cannot compute in the precision, or no sparse layer can be made.
    """
    check_device(device)
    if layer.dtype == "tf32" and device == "cpu":
        raise ValueError("expected dtype float32, float16 or bfloat16 on a CPU, got tf32, try --dtype float32")
    with precision(layer.dtype):
        dense = _dense(layer, device)
        cells = [_cell(layer, sparsity, device, repeats, dense, clock) for sparsity in sparsities]
    return Comparison(machine(device), device, layer, repeats, cells)


def kernels() -> dict[str, str]:
    """The sparse variants by name: "auto", the kernels that some device is offered, and the masked dense product."""
    sparse = [name for name in registry.names() if registry.skips_zeros(name) and registry.get(name).devices]
    return {"auto": "auto", **{name: name for name in sparse}, "masked dense": FALLBACK}


def check_device(device: str) -> None:
    """Raises ValueError unless torch can compute there."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"expected device cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device, got none, try --device cpu, or spfde env to see what torch finds")


def machine(device: str) -> dict[str, Any]:
    """What a measurement has to name."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {**env.report(), "gpu": gpu, "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def _dense(layer: LayerSpec, device: str) -> dict[str, dict[str, Timed]]:
    if not layer.convolution:
        return {"dense": parts(layer.dense(device), layer.input(device))}
    last = layer.dense(device).to(memory_format=torch.channels_last)
    return {
        "dense contiguous": parts(layer.dense(device), layer.input(device)),
        "dense channels_last": parts(last, layer.input(device, last=True)),
    }


def _cell(
    layer: LayerSpec, sparsity: float, device: str, repeats: int, dense: Mapping[str, Mapping[str, Timed]], clock: Clock
) -> Cell:
    sparse, x = layer.sparse(1 - sparsity, device), layer.input(device, last=device == "cuda")
    wanted = _masked(layer, sparse, device)(x).detach()
    variants, absent = dict(dense), {}
    for name, kernel in kernels().items():
        module = deepcopy(sparse)
        module.kernel = kernel
        problem = _problem(module, x, wanted, layer.dtype)
        if problem is None:
            variants[name] = parts(module, x)
        else:
            absent[name] = problem
        if name == "auto":
            choice = module.choice
    calls = {(name, part): variants[name][part] for part in PARTS for name in variants}
    times = clock(calls, repeats, device)
    seconds = {name: {part: list(times[name, part]) for part in PARTS} for name in variants}
    return Cell(sparsity, 1 - sparse.sparsity, choice.kernel, choice.reason, seconds, absent)


def _masked(layer: LayerSpec, sparse: SparseLayer, device: str) -> nn.Module:
    dense = layer.dense(device)
    dense.weight = nn.Parameter(sparse.dense_weight())
    return dense


def _problem(module: SparseLayer, x: Tensor, wanted: Tensor, dtype: str) -> str | None:
    """Why the layer's kernel is not worth timing, or None."""
    try:
        with torch.no_grad():
            y = module(x)
    except ValueError as error:
        return str(error)
    except Exception as error:  # compiler, assembler and driver each have their own
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    error = float((y.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-30))
    return None if error <= TOLERANCE[dtype] else f"wrong output: relative error {error:.1e} against the dense layer"
