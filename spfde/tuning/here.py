"""`spfde bench --tune`: the tuner on the GPU of this process, with the layers it measures unless told which."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from itertools import product
from pathlib import Path

import torch

import spfde
from spfde.kernels.triton import version, why_not
from spfde.kernels.triton.launch import gpu_here
from spfde.tuning.layer import Layer
from spfde.tuning.timing import Budget
from spfde.tuning.tuner import Outcome, fill, gpu_clock

TOKENS, IMAGES = 16384, 64
SHAPES = (
    ((4096, 4096), TOKENS, 1, 1), ((1024, 4096), TOKENS, 1, 1), ((4096, 1024), TOKENS, 1, 1),
    ((1024, 1024), TOKENS, 1, 1), ((256, 256, 3, 3), IMAGES, 14, 1), ((512, 512, 3, 3), IMAGES, 7, 1),
    ((128, 128, 3, 3), IMAGES, 28, 1), ((256, 256, 3, 3), IMAGES, 28, 2), ((512, 512, 3, 3), IMAGES, 14, 2),
)  # fmt: skip
SIDES, DTYPES = (64, 128, 32, 16), ("bfloat16", "tf32", "float16")


def usual_layers() -> list[Layer]:
    """Shapes of transformers and of ResNet-50 in square blocks, most telling first, as a run may end early."""
    return [
        Layer(shape, batch, size, f"block:{side}x{side}", dtype, stride)
        for dtype, side, (shape, batch, size, stride) in product(DTYPES, SIDES, SHAPES)
    ]


def file_name(gpu: str) -> str:
    """The name of a GPU's file."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def check_gpu() -> None:
    """Raises ValueError unless there is a GPU whose kernels can be timed."""
    reason = None if torch.cuda.is_available() else "no CUDA device"
    if reason := reason or why_not("cuda"):
        raise ValueError(
            f"expected a CUDA device and triton for --tune, got: {reason}, try spfde.tune(model, example_input) for a "
            "model on a CPU, or spfde bench without --tune"
        )


def tune_here(
    layers: Sequence[Layer], path: Path | None, seconds: float, repeats: int, command: str, say: Callable[[str], None]
) -> tuple[Outcome, Path]:
    """Fills the table of the GPU of this process and returns where it is; see `fill`.

    Raises:
        ValueError: there is no GPU, or what `fill` raises.
    """
    check_gpu()
    gpu = gpu_here()
    about = {
        "spfde": spfde.__version__, "torch": str(torch.__version__), "triton": version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "command": command,
    }  # fmt: skip
    path = path or Path(file_name(gpu.name))
    return fill(path, layers, gpu, about, gpu_clock(repeats), Budget(seconds), say), path
