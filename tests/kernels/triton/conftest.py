"""Spies on the kernels."""

from __future__ import annotations

import pytest

from spfde.kernels import call


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
    run = call._without_graph

    def spy(x, *args):
        kinds.append("conv" if x.dim() == 4 else "linear")
        return run(x, *args)

    monkeypatch.setattr(call, "_without_graph", spy)
    return kinds
