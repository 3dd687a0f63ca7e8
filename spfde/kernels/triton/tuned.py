"""The launch of a kernel, where it is on trial or was measured; elsewhere `config` computes one. Imports no triton."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from spfde.kernels.dispatch import in_use
from spfde.kernels.dispatch.measurement import family
from spfde.kernels.gpu import Config, Gpu

# Not of a thread: autograd runs backward passes in its own.
_ON_TRIAL: dict[str, Config] = {}
_ASKED: set[str] = set()


def launch_of(
    op: str, gpu: Gpu, kind: str, block: tuple[int, int], outputs: int, dtype: torch.dtype, positions: int,
    shape: tuple[int, int], exact: bool,
) -> Config | None:  # fmt: skip
    """The launch of a kernel that is on trial, or was measured for its family; None: `config` has the computed one.

    op: "forward", "input_grad" or "weight_grad". kind: see `kind_of`. block, shape: of the weight as stored (R, C) and
    [rows, cols], whatever the direction. outputs: columns of the result of a program. exact: float32 that is not TF32,
    for which nothing is measured.
    """
    if op in _ON_TRIAL:
        _ASKED.add(op)
        return _ON_TRIAL[op]
    like = family(kind, block, str(dtype).removeprefix("torch."), positions, *shape)
    return None if exact else in_use.launch(op, gpu.name, like, outputs)


@contextmanager
def trying(launches: Mapping[str, Config]) -> Iterator[None]:
    """Lets these launches, by op, be used whatever was measured.

    Raises:
        RuntimeError: at the end, if a kernel was not launched so: its time would be that of another launch.
    """
    before = dict(_ON_TRIAL)
    _ON_TRIAL.update(launches)
    _ASKED.clear()
    try:
        yield
        if unused := [op for op in launches if op not in _ASKED]:
            raise RuntimeError(f"expected a kernel to take the launch of {', '.join(unused)}, got none that did")
    finally:
        _ON_TRIAL.clear()
        _ON_TRIAL.update(before)
