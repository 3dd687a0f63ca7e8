"""Every launch of conv2d compiles for every architecture; what is asked of it is asked of the linear kernels too."""

from __future__ import annotations

import os
from itertools import product

import pytest

pytest.importorskip("triton")

from kernels.triton.aot import Code, compile_kernel
from kernels.triton.test_aot import BLOCKS, DTYPES, GPUS, check

from spfde.kernels.triton import config
from spfde.kernels.triton.conv2d_plan import product_config
from spfde.tiles import stack_of

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler in this process"
)

COUNTS = ("positions", "grid_h", "grid_w", "source_h", "source_w", "result_h", "result_w", "rows", "span", "slots",
          "out_h", "out_w", "height", "width", "pad_h", "pad_w")  # fmt: skip


def common(dtype: str, block: tuple[int, int], precision: str, stride: int) -> tuple[dict[str, str], dict[str, object]]:
    """Types and constants that both kernels have, for a 3x3 convolution."""
    types = {name: f"*{dtype}!" for name in ("source", "values", "bias", "result", "dy", "x")}
    types |= {name: "*i32!" for name in ("row_ptr", "col", "perm")} | dict.fromkeys(COUNTS, "i32")
    types |= {name: "i32!" for name in ("sources", "results", "channels", "outputs")}
    steps = {"stride_h": stride, "stride_w": stride, "dilation_h": 1, "dilation_w": 1}
    if stride > 1:  # an integer of 1 is a constant to Triton, any other is not
        types |= {"stride_h": "i32", "stride_w": "i32"}
        steps = {"dilation_h": 1, "dilation_w": 1}
    return types, {
        **steps, "KERNEL_W": 3, "TAPS": 9, "R": block[0], "C": block[1], "BIAS": True, "UPCAST": False,
        "PRECISION": precision if dtype == "fp32" else "ieee",
    }  # fmt: skip


def product_code(
    gpu: config.Gpu, dtype: str, block: tuple[int, int], transposed: bool = False, precision: str = "tf32",
    stride: int = 1, ragged: bool = False,
) -> Code:  # fmt: skip
    from spfde.kernels.triton.conv2d import multiply

    types, constants = common(dtype, block, precision, stride)
    outer, inner = reversed(block) if transposed else block
    exact = dtype == "fp32" and precision == "ieee"
    how = product_config(gpu, outer, inner, DTYPES[dtype], 4096, exact)
    constants |= {"TRANSPOSED": transposed, "BIAS": not transposed, "RELU": not transposed, "RAGGED": ragged}
    constants |= {"PIXELS": how.tokens, "DEPTH": how.depth}
    if transposed:
        constants |= {"bias": None}
    else:
        constants |= {"perm": None}
    types = {name: kind for name, kind in types.items() if name in multiply.arg_names and name not in constants}
    return compile_kernel(multiply, gpu.capability, types, constants, how.warps, how.stages)


def weight_grad_code(
    gpu: config.Gpu, dtype: str, block: tuple[int, int], precision: str = "tf32", stride: int = 1
) -> Code:
    from spfde.kernels.triton.conv2d import reduce

    types, constants = common(dtype, block, precision, stride)
    how = config.weight_grad_config(gpu, *block, DTYPES[dtype], dtype == "fp32" and precision == "ieee")
    constants |= {"ALIGNED": 16, "PIXELS": how.depth, "GROUP": stack_of(block[1])}
    types |= {"dvalues": "*fp32!", "dbias": "*fp32!"}
    types = {name: kind for name, kind in types.items() if name in reduce.arg_names and name not in constants}
    return compile_kernel(reduce, gpu.capability, types, constants, how.warps, how.stages)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", GPUS)
def test_representatives(capability, dtype):
    gpu = GPUS[capability]
    check(product_code(gpu, dtype, (64, 64), transposed=True), gpu, dtype)
    check(weight_grad_code(gpu, dtype, (64, 64)), gpu, dtype)


def test_strides_and_odd_sizes():
    gpu = GPUS[86]
    check(product_code(gpu, "bf16", (32, 32), transposed=True, stride=2), gpu, "bf16")
    check(product_code(gpu, "bf16", (32, 32), ragged=True), gpu, "bf16")


@pytest.mark.full
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0]}x{block[1]}")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", GPUS)
def test_every_configuration(capability, dtype, block):
    gpu = GPUS[capability]
    for transposed, stride in product((False, True), (1, 2)):
        check(product_code(gpu, dtype, block, transposed, stride=stride), gpu, dtype)
    check(weight_grad_code(gpu, dtype, block), gpu, dtype)
    if dtype == "fp32":
        for code in (product_code(gpu, dtype, block, precision="ieee"), weight_grad_code(gpu, dtype, block, "ieee")):
            assert code.spilled == 0
            assert code.shared <= gpu.shared
