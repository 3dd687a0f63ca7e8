"""Every launch of conv2d compiles for every architecture; what is asked of it is asked of the linear kernels too."""

from __future__ import annotations

import os
from itertools import product

import pytest

pytest.importorskip("triton")

from kernels.triton.aot import Code, compile_kernel
from kernels.triton.test_aot import BLOCKS, DTYPES, GPUS, check_sound

from spfde.kernels.triton import config
from spfde.kernels.triton.conv2d_plan import product_config
from spfde.tiles import stack_of

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler in this process"
)

COUNTS = ("positions", "grid_h", "grid_w", "source_h", "source_w", "result_h", "result_w", "rows", "span", "slots",
          "out_h", "out_w", "height", "width", "pad_h", "pad_w")  # fmt: skip


def compiled(
    kernel, gpu: config.Gpu, how: config.Config, dtype: str, block: tuple[int, int], constants: dict[str, object],
    precision: str, stride: int, ones: bool,
) -> Code:  # fmt: skip
    """The code of a 3x3 convolution's kernel. ones: every size is 1, a constant to Triton, as no other integer is."""
    sizes = dict.fromkeys(COUNTS, 1) if ones else {}
    steps = {"stride_h": 1, "stride_w": 1} if stride == 1 else {}
    constants = {
        **sizes, **steps, **constants, "dilation_h": 1, "dilation_w": 1, "KERNEL_W": 3, "TAPS": 9, "R": block[0],
        "C": block[1], "UPCAST": False, "PRECISION": precision if dtype == "fp32" else "ieee",
    }  # fmt: skip
    types = {name: f"*{dtype}!" for name in ("source", "values", "bias", "result", "dy", "x")}
    types |= {"row_ptr": "*i32!", "col": "*i32!", "perm": "*i32!", "dvalues": "*fp32!", "dbias": "*fp32!"}
    types |= {name: "i32" for name in (*COUNTS, "stride_h", "stride_w")}
    types |= {name: "i32!" for name in ("sources", "results", "channels", "outputs")}
    types = {name: kind for name, kind in types.items() if name in kernel.arg_names and name not in constants}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    return compile_kernel(kernel, gpu.capability, types, constants, how.warps, how.stages)


def product_code(
    gpu: config.Gpu, dtype: str, block: tuple[int, int], transposed: bool = False, precision: str = "tf32",
    stride: int = 1, ragged: bool = False, ones: bool = False,
) -> Code:  # fmt: skip
    from spfde.kernels.triton.conv2d import multiply

    outer, inner = reversed(block) if transposed else block
    how = product_config(gpu, outer, inner, DTYPES[dtype], 4096, dtype == "fp32" and precision == "ieee")
    constants = {
        "TRANSPOSED": transposed, "BIAS": not transposed, "RELU": not transposed, "RAGGED": ragged,
        "PIXELS": how.tokens, "DEPTH": how.depth, "bias" if transposed else "perm": None,
    }  # fmt: skip
    return compiled(multiply, gpu, how, dtype, block, constants, precision, stride, ones)


def weight_grad_code(
    gpu: config.Gpu, dtype: str, block: tuple[int, int], precision: str = "tf32", stride: int = 1, ones: bool = False
) -> Code:
    from spfde.kernels.triton.conv2d import reduce

    how = config.weight_grad_config(gpu, *block, DTYPES[dtype], dtype == "fp32" and precision == "ieee")
    constants = {"ALIGNED": 16, "BIAS": True, "PIXELS": how.depth, "GROUP": stack_of(block[1])}
    return compiled(reduce, gpu, how, dtype, block, constants, precision, stride, ones)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", GPUS)
def test_representatives(capability, dtype):
    gpu = GPUS[capability]
    check_sound(product_code(gpu, dtype, (32, 32), transposed=True), gpu)
    check_sound(weight_grad_code(gpu, dtype, (32, 32)), gpu)


def test_strides_and_odd_sizes():
    gpu = GPUS[86]
    check_sound(product_code(gpu, "bf16", (32, 32), transposed=True, stride=2), gpu)
    check_sound(product_code(gpu, "bf16", (32, 32), ragged=True), gpu)
    for code in (
        product_code(gpu, "bf16", (16, 16), ones=True),
        product_code(gpu, "bf16", (16, 16), transposed=True, ones=True),
        weight_grad_code(gpu, "bf16", (16, 16), ones=True),
    ):
        assert (code.spilled, code.mma) == (0, True)


@pytest.mark.full
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0]}x{block[1]}")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", GPUS)
def test_every_configuration(capability, dtype, block):
    gpu = GPUS[capability]
    for transposed, stride in product((False, True), (1, 2)):
        check_sound(product_code(gpu, dtype, block, transposed, stride=stride), gpu)
    check_sound(weight_grad_code(gpu, dtype, block), gpu)
    if dtype == "fp32":
        for code in (product_code(gpu, dtype, block, precision="ieee"), weight_grad_code(gpu, dtype, block, "ieee")):
            assert code.spilled == 0
            assert code.shared <= gpu.shared
