"""What every launch shares: options stated, precision from torch's flags, the GPU at hand."""

from __future__ import annotations

from typing import Any

import torch

from spfde.kernels.gpu import Config
from spfde.kernels.triton import interpreting

REGISTERS = 255  # of a thread: all there are


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, config: Config, **constants: Any) -> None:
    """Runs a kernel unless there is nothing to do."""
    if all(grid):
        with torch.cuda.device_of(args[0]):  # Triton launches on the current device, in its current stream
            kernel[grid](*args, **constants, **options(config))


def options(config: Config) -> dict[str, Any]:
    """What Triton is told: that multiply-adds are fused (the default differs by its version), and all registers.

    Where that is left open, the assembler may keep values in slow memory to fit more programs than shared memory does.
    """
    return {
        "num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True, "maxnreg": REGISTERS,
    }  # fmt: skip


def exact(dtype: torch.dtype, op: str = "linear") -> bool:
    """Whether products must not round their operands: float32 that torch's flags for this op keep from TF32."""
    return dtype == torch.float32 and not uses_tf32(op)


def precision(dtype: torch.dtype, op: str = "linear") -> str:
    """How tl.dot treats operands of this precision: TF32 where torch's own op ("linear" or "conv2d") would use it."""
    return "tf32" if dtype == torch.float32 and uses_tf32(op) else "ieee"


def uses_tf32(op: str) -> bool:
    """Whether torch's flags let this op's float32 products on a GPU round their operands to TF32."""
    older = newer = torch.backends.cuda.matmul
    if op == "conv2d":
        older, newer = torch.backends.cudnn, getattr(torch.backends.cudnn, "conv", None)
    setting = getattr(newer, "fp32_precision", None)  # torch >= 2.9; asking for the older flag may raise there
    return older.allow_tf32 if setting is None else setting == "tf32"


def upcast(dtype: torch.dtype) -> bool:
    """Whether operands are widened first: the interpreter's arithmetic on bfloat16 is wrong without a word."""
    return interpreting() and dtype == torch.bfloat16
