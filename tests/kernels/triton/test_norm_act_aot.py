"""norm_act's kernel compiles for every architecture, in wide accesses."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")

from kernels.triton.aot import Code, compile_kernel
from kernels.triton.test_aot import GPUS

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler in this process"
)


def code(capability: int, dtype: str, last: bool, width: str = "i32!") -> Code:
    from spfde.kernels.triton.norm_act import HOW, TILE, norm_act_kernel

    types = {name: f"*{dtype}!" for name in ("x", "residual", "y")} | {"eps": "fp32", "rows": "i32", "width": width}
    types |= dict.fromkeys(("mean", "var", "weight", "bias"), "*fp32!") | {"channels": "i32!"}
    ends = {"WEIGHT": True, "BIAS": True, "RESIDUAL": True, "ACT": "relu6"}
    constants = {"LAST": last, **ends, "ROWS": TILE // 64, "COLS": 64}
    return compile_kernel(norm_act_kernel, GPUS[capability].capability, types, constants, HOW)


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("capability", [c if c in (80, 90) else pytest.param(c, marks=pytest.mark.full) for c in GPUS])
def test_every_architecture(capability, dtype, last):
    made = code(capability, dtype, last)
    assert made.spilled == 0
    assert ("ld.global.v4" in made.ptx) and ("st.global.v4" in made.ptx)


def test_a_width_that_says_nothing_of_alignment():
    assert code(80, "fp16", True, "i32").spilled == 0
