"""Triton kernels for weights stored in blocks, on a GPU or in Triton's interpreter.

Nothing here imports triton before a kernel is launched: spfde works without it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether triton is installed."""
    return find_spec("triton") is not None


@lru_cache(maxsize=1)
def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter; settled once, as triton itself reads it at import."""
    return available() and os.environ.get("TRITON_INTERPRET") == "1"


def why_not(device: str) -> str | None:
    """Why no Triton kernel runs on this type of device, or None."""
    if not available():
        return "triton is not installed"
    if device == "cpu" and not interpreting():
        return "Triton runs on CPU tensors only in its interpreter (TRITON_INTERPRET=1 before the start)"
    return None if device in ("cpu", "cuda") else f"no Triton kernel for {device}"
