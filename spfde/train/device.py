"""Where a network trains, in which precision and memory format, and how much memory that takes."""

from __future__ import annotations

import contextlib
import copy
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


PROCESS = Path("/proc/self")
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Device:
    """Where a run computes: `where`, and the precision of its passes by a recipe's name for it."""

    where: torch.device
    precision: str = "float32"

    @classmethod
    def of(cls, name: str, precision: str = "float32") -> Device:
        """Find the device that a recipe names.

        Raises:
            ValueError: it is not there.
        """
        where = torch.device(name)
        if where.type == "cuda":
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            where = torch.device(
                "cuda", where.index if where.index is not None else count and torch.cuda.current_device()
            )
            if where.index >= count:
                raise ValueError(f"expected a GPU for device={name!r}, got {count} of them, try device='cpu'")
        return cls(where, precision)

    @property
    def is_cpu(self) -> bool:
        """Tell whether it is the CPU."""
        return self.where.type == "cpu"

    @property
    def name(self) -> str:
        """Say what computes, as a checkpoint records it: cpu, or the GPU's name."""
        return "cpu" if self.is_cpu else torch.cuda.get_device_properties(self.where).name

    def put(self, batch: Tensor) -> Tensor:
        """Return a batch where the network is; a GPU copies it from pinned memory while the CPU goes on."""
        if self.is_cpu:
            return batch
        return torch.empty_like(batch, pin_memory=True).copy_(batch).to(self.where, non_blocking=True)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context that forward passes run in."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.where.type, dtype, enabled=dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Return what keeps float16 gradients from vanishing; it does nothing in other precisions."""
        return torch.amp.GradScaler(self.where.type, enabled=self.precision == "float16")

    def peak_bytes(self) -> int:
        """Return the most bytes held at once since `forget_peak`: by the process, or by tensors on the GPU."""
        return process_peak() if self.is_cpu else torch.cuda.max_memory_allocated(self.where)

    def forget_peak(self) -> None:
        """Start a new peak at what is held now."""
        if self.is_cpu:
            forget_process_peak()
        else:
            torch.cuda.reset_peak_memory_stats(self.where)

    def wait(self) -> None:
        """Wait until all is computed."""
        if not self.is_cpu:
            torch.cuda.synchronize(self.where)


@dataclass(frozen=True)
class Layout:
    """A memory format by name ("contiguous" or "channels_last") and the reason for it."""

    name: str
    reason: str

    def images(self, images: Tensor) -> Tensor:
        """Return a batch of images in this format."""
        return images.contiguous(memory_format=FORMATS[self.name])

    def model(self, model: nn.Module) -> nn.Module:
        """Put a network's weights into this format, in place."""
        return model.to(memory_format=FORMATS[self.name])  # type: ignore[call-overload]


def step_seconds(model: nn.Module, shape: tuple[int, ...], device: Device, steps: int = 3) -> dict[str, float]:
    """Time a training step in each memory format, in seconds: the median of `steps`, formats taking turns.

    Runs on copies with random images of `shape` [n, c, h, w]; model and random state stay as they are.
    """
    with torch.random.fork_rng(devices=[]), device.autocast():
        images, targets = device.put(torch.randn(shape)), device.put(torch.zeros(shape[0], dtype=torch.long))
        layouts = {name: Layout(name, "") for name in FORMATS}
        models = {name: layout.model(copy.deepcopy(model).train()) for name, layout in layouts.items()}
        seconds: dict[str, list[float]] = {name: [] for name in FORMATS}
        for _ in range(steps + 1):
            for name, layout in layouts.items():
                start = time.perf_counter()
                functional.cross_entropy(models[name](layout.images(images)), targets).backward()
                models[name].zero_grad()
                device.wait()
                seconds[name].append(time.perf_counter() - start)
    # The first step also allocates and picks algorithms.
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def choose(wanted: str, model: nn.Module, shape: tuple[int, ...], device: Device, *, measure: bool) -> Layout:
    """Settle a recipe's `layout` for inputs of `shape`; "auto" is measured if `measure` says so.

    Raises:
        ValueError: channels_last for inputs that have no height and width.
    """
    if len(shape) != 4:
        if wanted == "channels_last":
            raise ValueError(
                f"expected images [n, c, h, w] for channels_last, got inputs of shape {list(shape)}, try layout='auto'"
            )
        return Layout("contiguous", "inputs are not images")
    if wanted != "auto":
        return Layout(wanted, "as the recipe says")
    if not measure:
        return Layout("contiguous", "sparse kernels read image planes")
    seconds = step_seconds(model, shape, device)
    best, other = sorted(seconds, key=seconds.__getitem__)
    return Layout(
        best,
        f"{seconds[best] * 1e3:.1f} ms a step, {other} {seconds[other] * 1e3:.1f} ms,"
        f" measured before training with batch {shape[0]}",
    )


def process_peak(process: Path = PROCESS) -> int:
    """Return the peak of resident memory since `forget_process_peak`, or since the process began where that failed."""
    with contextlib.suppress(OSError):
        for line in (process / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_process_peak(process: Path = PROCESS) -> None:
    """Start a new peak at what is held now; without effect where the system does not allow it."""
    with contextlib.suppress(OSError):
        (process / "clear_refs").write_text("5")
