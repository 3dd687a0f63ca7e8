"""Every launch of conv2d compiles for every architecture; what is asked of it is asked of the linear kernels too."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")

from kernels.triton.aot import Code, compile_kernel
from kernels.triton.test_aot import BLOCKS, DTYPES, GPUS, SOME, check, check_exact, in_flight, sizes_together

from spfde.kernels.triton import config
from spfde.sparse.tiles import stack_of

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler in this process"
)

COUNTS = ("items", "positions", "grid_h", "grid_w", "source_h", "source_w", "result_h", "result_w", "blocks", "steps",
          "area", "out_w", "height", "width", "pad_h", "pad_w")  # fmt: skip


def compiled(
    kernel, gpu: config.Gpu, how: config.Config, dtype: str, constants: dict[str, object], precision: str, stride: int,
    ones: bool,
) -> Code:  # fmt: skip
    """The code of a 3x3 convolution's kernel. ones: every size is 1, a constant to Triton, as no other integer is."""
    sizes = dict.fromkeys(COUNTS, 1) if ones else {}
    constants = {
        **sizes, **constants, "STRIDE_H": stride, "STRIDE_W": stride, "dilation_h": 1, "dilation_w": 1, "KERNEL_W": 3,
        "TAPS": 9, "UPCAST": False, "PRECISION": precision if dtype == "fp32" else "ieee",
    }  # fmt: skip
    pointers = ("source", "values", "scale", "bias", "residual", "kept", "result", "dy", "x")
    types = {name: f"*{dtype}!" for name in pointers}
    types |= {"entry": "*i32!", "work": "*i32!", "out": "*fp32!", "sums": "*fp32!"}
    types |= {name: "i32" for name in COUNTS} | {"area_m": "i64", "area_s": "i32", "row_m": "i64", "row_s": "i32"}
    types |= {name: "i32!" for name in ("sources", "results", "channels", "outputs")}
    types = {name: kind for name, kind in types.items() if name in kernel.arg_names and name not in constants}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    return compile_kernel(kernel, gpu.capability, types, constants, how)


def product_code(
    gpu: config.Gpu, dtype: str, block: tuple[int, int], transposed: bool = False, together: int = 1,
    precision: str = "tf32", stride: int = 1, ragged: bool = False, ones: bool = False, keep: bool = False,
) -> tuple[Code, int]:  # fmt: skip
    """The product by blocks (out, in), with an epilogue unless transposed, and the bytes that are copied ahead.

    keep: what the activation is given is written too.
    """
    from spfde.kernels.triton.conv2d import conv2d_kernel

    out, into = block
    exact = (dtype, precision) == ("fp32", "ieee")
    how = config.product_config(gpu, out * together, into, together, DTYPES[dtype], 4096, exact, "conv2d")
    ends = dict.fromkeys(("scale", "bias", "residual")) if transposed else {}
    ends |= {} if keep else {"kept": None}
    constants = {
        **ends, "OUT": out, "IN": into, "TOGETHER": together, "TRANSPOSED": transposed, "RAGGED": ragged,
        "SCALE": not transposed, "BIAS": not transposed, "RESIDUAL": "none" if transposed else "before", "KEEP": keep,
        "ACT": "none" if transposed else "relu", "WIDE": False, "PIXELS": how.tokens, "DEPTH": how.depth,
    }  # fmt: skip
    code = compiled(conv2d_kernel, gpu, how, dtype, constants, precision, stride, ones)
    return code, in_flight(how, (how.tokens + out * together) * how.depth * DTYPES[dtype].itemsize)


def weight_grad_code(
    gpu: config.Gpu, dtype: str, block: tuple[int, int], together: int = 1, precision: str = "tf32", stride: int = 1,
    ones: bool = False,
) -> tuple[Code, int]:  # fmt: skip
    from spfde.kernels.triton.conv2d import conv2d_grad_kernel

    height, width = block
    exact = (dtype, precision) == ("fp32", "ieee")
    how = config.weight_grad_config(gpu, height * together, width, DTYPES[dtype], exact)
    constants = {
        "HEIGHT": height, "WIDTH": width, "TOGETHER": together, "STACK": stack_of(width), "RAGGED": False,
        "BIAS": True, "DEPTH": how.depth,
    }  # fmt: skip
    code = compiled(conv2d_grad_kernel, gpu, how, dtype, constants, precision, stride, ones)
    return code, how.stages * (stack_of(width) * width + height * together) * how.depth * DTYPES[dtype].itemsize


@pytest.mark.parametrize(("capability", "dtype"), SOME)
def test_representatives(capability, dtype):
    gpu = GPUS[capability]
    check(product_code(gpu, dtype, (32, 32), transposed=True), gpu, dtype)
    check(weight_grad_code(gpu, dtype, (32, 32)), gpu, dtype)


def test_strides_odd_sizes_and_rows_that_share_a_program():
    gpu = GPUS[86]
    check(product_code(gpu, "bf16", (32, 32), transposed=True, stride=2), gpu, "bf16")
    check(product_code(gpu, "bf16", (32, 32), ragged=True), gpu, "bf16")
    check(product_code(gpu, "bf16", (16, 16), together=4, keep=True), gpu, "bf16")
    check(weight_grad_code(gpu, "bf16", (16, 16), together=4), gpu, "bf16")
    for code, _ in (
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
    for together in sizes_together(block):
        for transposed, stride in ((False, 1), (True, 1), (True, 2)):
            check(product_code(gpu, dtype, block, transposed, together, stride=stride), gpu, dtype)
        check(weight_grad_code(gpu, dtype, block, together), gpu, dtype)
        if dtype == "fp32":
            check_exact(
                gpu,
                product_code(gpu, dtype, block, together=together, precision="ieee"),
                weight_grad_code(gpu, dtype, block, together, "ieee"),
            )
