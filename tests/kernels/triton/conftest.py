"""Spies on the kernels."""

from __future__ import annotations

from importlib import import_module

import pytest


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """Names of the kernels that start from now on, and "norm" for a norm that is called on its own."""
    from spfde.kernels.triton import conv2d, norm_act, sddmm, spmm
    from spfde.nn import norm

    names: list[str] = []
    for module in (conv2d, norm_act, sddmm, spmm):
        run = module.launch

        def spy(kernel, grid, *args, run=run, **options):
            names.extend([kernel.fn.__name__] if all(grid) else [])
            run(kernel, grid, *args, **options)

        monkeypatch.setattr(module, "launch", spy)
    call = norm.norm_act
    monkeypatch.setattr(norm, "norm_act", lambda *args, **options: names.append("norm") or call(*args, **options))
    return names


@pytest.fixture
def whole(monkeypatch) -> list[str]:
    """Kinds of the layers whose kernel does what follows them, from now on."""
    kinds: list[str] = []
    for name, kind in (("conv2d", "conv"), ("spmm", "linear")):
        module = import_module(f"spfde.kernels.{name}")  # its name there is the function's
        run = module.compute_fused
        spy = lambda *args, run=run, kind=kind: kinds.append(kind) or run(*args)  # noqa: E731
        monkeypatch.setattr(module, "compute_fused", spy)
    return kinds
