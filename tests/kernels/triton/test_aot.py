"""Every launch that can happen compiles for every architecture, and what it becomes is as fast as it can look.

One block each in a plain run; the whole matrix is marked `full`. No GPU and no driver are needed.
"""

from __future__ import annotations

import os
from itertools import product

import pytest
import torch

from spfde.kernels import gpu as gpus
from spfde.kernels.triton import config, launch
from spfde.kernels.triton.model import together_of
from spfde.sparse.tiles import stack_of

pytest.importorskip("triton")

from kernels.triton.aot import Code, compile_kernel

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler in this process"
)

GPUS = {10 * gpu.capability[0] + gpu.capability[1]: gpu for gpu in gpus.GPUS.values()}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SOME = [  # of a plain run; Blackwell's compilers take longest
    pytest.param(capability, dtype, marks=() if capability < 100 else pytest.mark.full)
    for capability, dtype in product(GPUS, DTYPES)
]
BLOCKS = list(product(config.SIZES, config.SIZES))
WORDS = 16  # bytes: exact float32 runs on the scalar units, where some versions of ptxas lay a word or two on the stack


def in_flight(how: config.Config, tile: int) -> int:
    """Bytes that a product's code copies before its loop and in it: as many steps as are on their way."""
    return (how.stages + 1) // 2 * tile


def product_code(
    gpu: config.Gpu, dtype: str, block: tuple[int, int], together: int = 1, transposed: bool = False,
    dense: bool = False, batch: int = 4096, precision: str = "tf32", ragged: bool = False, plain: bool = True,
    wide: bool = False, how: config.Config | None = None, sums: str = "",
) -> tuple[Code, int]:  # fmt: skip
    """The product by blocks (out, in), and the bytes of operands that are copied ahead.

    plain: no activation and no residual, and nothing kept. sums: the precision of y and a residual, if another.
    """
    from spfde.kernels.triton.spmm import spmm_kernel

    out, into = block
    exact = (dtype, precision) == ("fp32", "ieee")
    how = how or config.product_config(gpu, out * together, into, together, DTYPES[dtype], batch, exact)
    ends = ("scale", "residual", "kept")
    types = {name: f"*{dtype}!" for name in ("x", "values", "bias", "y", *(() if plain else ends))}
    types |= dict.fromkeys(("residual", "kept", "y") if sums else (), f"*{sums}!")
    types |= {"entry": "*i32!", "work": "*i32!", "scratch": "*fp32!", "items": "i32", "batch": "i32"}
    types |= {name: "i32" if ragged else "i32!" for name in ("inner", "outer", "stride_x", "stride_r", "pitch")}
    constants = {
        "OUT": out, "IN": into, "TOGETHER": together, "TRANSPOSED": transposed, "DENSE": dense, "RAGGED": ragged,
        "BIAS": True, "SCALE": not plain, "KEEP": not plain, "ACT": "none" if plain else "gelu",
        "RESIDUAL": "none" if plain else "before", "UPCAST": False, "WIDE": wide,
        "PRECISION": precision if dtype == "fp32" else "ieee", "TOKENS": how.tokens, "DEPTH": how.depth,
    }  # fmt: skip
    if plain:
        constants |= dict.fromkeys(ends)
    code = compile_kernel(spmm_kernel, gpu.capability, types, constants, how)
    return code, in_flight(how, (how.tokens + out * together) * how.depth * DTYPES[dtype].itemsize)


def weight_grad_code(
    gpu: config.Gpu, dtype: str, block: tuple[int, int], together: int = 1, precision: str = "tf32",
    how: config.Config | None = None,
) -> tuple[Code, int]:  # fmt: skip
    from spfde.kernels.triton.sddmm import sddmm_kernel

    height, width = block
    exact = (dtype, precision) == ("fp32", "ieee")
    how = how or config.weight_grad_config(gpu, height * together, width, DTYPES[dtype], exact)
    types = {"dy": f"*{dtype}!", "x": f"*{dtype}!", "entry": "*i32!", "out": "*fp32!", "sums": "*fp32!"}
    types |= {name: "i32" for name in ("batch", "blocks", "steps")}
    types |= {name: "i32!" for name in ("rows", "cols", "stride_dy", "stride_x")}
    constants = {
        "HEIGHT": height, "WIDTH": width, "TOGETHER": together, "STACK": stack_of(width), "RAGGED": False,
        "BIAS": True, "ADD": False, "PRECISION": precision if dtype == "fp32" else "ieee", "UPCAST": False,
        "DEPTH": how.depth,
    }  # fmt: skip
    code = compile_kernel(sddmm_kernel, gpu.capability, types, constants, how)
    return code, how.stages * (stack_of(width) * width + height * together) * how.depth * DTYPES[dtype].itemsize


def check_sound(code: Code, gpu: config.Gpu, tokens: int = 128) -> None:
    """No spills, within shared memory, the matrix unit at work, and copies that do not stop the program."""
    assert code.spilled == 0
    assert code.registers <= launch.REGISTERS
    assert code.shared <= gpu.shared
    assert code.mma
    assert code.matrix_unit == gpu.matrix_unit or tokens < 64
    assert "cp.async" in code.ptx


def check(made: tuple[Code, int], gpu: config.Gpu, dtype: str, tokens: int = 128) -> None:
    """That, and everything a step reads comes by wide copies."""
    code, ahead = made
    check_sound(code, gpu, tokens)
    if gpu.multiplies_from_shared and tokens >= 64 and dtype == "fp32":
        return  # from shared memory TF32 is multiplied along it only: what lies across is turned around on its way in
    assert code.copied >= ahead


def check_exact(gpu: config.Gpu, *made: tuple[Code, int]) -> None:
    """That float32 without the matrix unit fits."""
    for code, _ in made:
        assert code.spilled <= WORDS
        assert code.shared <= gpu.shared


@pytest.mark.parametrize(("capability", "dtype"), SOME)
def test_representatives(capability, dtype):
    gpu = GPUS[capability]
    check(product_code(gpu, dtype, (64, 64)), gpu, dtype)
    check(weight_grad_code(gpu, dtype, (32, 32)), gpu, dtype)


@pytest.mark.parametrize(("capability", "block"), [(110, (64, 64)), (121, (128, 128))])
def test_blackwell_for_boards(capability, block):
    """sm_121 has mma.sync and 99 KiB: tiles of Hopper's size would spill."""
    check(product_code(GPUS[capability], "bf16", block), GPUS[capability], "bf16")


@pytest.mark.parametrize("together", [1, 8])
def test_small_blocks_fill_programs(together):
    gpu = GPUS[86]
    check(product_code(gpu, "bf16", (16, 16), together, True), gpu, "bf16")
    check(weight_grad_code(gpu, "bf16", (16, 16), together), gpu, "bf16")


def test_the_masked_product_its_epilogue_and_odd_sizes():
    gpu = GPUS[80]
    check(product_code(gpu, "bf16", (config.TILE, config.TILE), dense=True), gpu, "bf16")
    check(product_code(gpu, "fp16", (64, 64), plain=False), gpu, "fp16")
    check(product_code(gpu, "bf16", (64, 64), plain=False, sums="fp32"), gpu, "bf16")
    check(product_code(gpu, "fp16", (64, 64), batch=8), gpu, "fp16", tokens=32)
    check(product_code(gpu, "fp16", (32, 32), wide=True), gpu, "fp16")
    code, _ = product_code(gpu, "fp16", (64, 64), ragged=True)  # nothing is known of where a row of x begins
    assert (code.spilled, code.mma) == (0, True)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_float32_keeps_its_precision_unless_torch_allows_tf32(precision):
    gpu = GPUS[80]
    for code, _ in (
        product_code(gpu, "fp32", (32, 32), precision=precision),
        weight_grad_code(gpu, "fp32", (32, 32), precision=precision),
    ):
        assert code.mma == (precision == "tf32")
        assert code.spilled <= (0 if code.mma else WORDS)
        assert code.shared <= gpu.shared


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_largest_tiles_have_registers_for_every_epilogue(dtype):
    gpu = GPUS[90]
    for block, together, sums in (((128, 128), 1, "fp32"), ((32, 32), 4, dtype)):
        how = config.product_config(gpu, block[0] * together, block[1], together, DTYPES[dtype], 4096, False)
        assert how.tokens == config.MOST_TOKENS
        check(product_code(gpu, dtype, block, together, plain=False, sums=sums), gpu, dtype)


def test_sizes_of_one_reach_the_compiler_as_constants():
    from spfde.kernels.triton.sddmm import sddmm_kernel
    from spfde.kernels.triton.spmm import spmm_kernel

    types = {name: "*fp16!" for name in ("x", "values", "scale", "bias", "y", "residual")}
    types |= {"entry": "*i32!", "work": "*i32!", "scratch": "*fp32!", "inner": "i32!", "outer": "i32!", "pitch": "i32!"}
    constants = {
        "kept": None, "batch": 1, "stride_x": 1, "stride_r": 1, "items": 1, "OUT": 16, "IN": 16, "TOGETHER": 1,
        "TRANSPOSED": False, "DENSE": False, "RAGGED": True, "BIAS": True, "SCALE": True, "KEEP": False, "ACT": "relu6",
        "RESIDUAL": "after", "PRECISION": "ieee", "UPCAST": False, "WIDE": False, "TOKENS": 32, "DEPTH": 64,
    }  # fmt: skip
    assert compile_kernel(spmm_kernel, (9, 0), types, constants, config.Config(32, 64, 4, 2)).mma
    types = {"dy": "*fp16!", "x": "*fp16!", "entry": "*i32!", "out": "*fp16!", "sums": "*fp16!"}
    constants = {
        "batch": 1, "rows": 1, "cols": 1, "stride_dy": 1, "stride_x": 1, "blocks": 1, "steps": 1, "HEIGHT": 16,
        "WIDTH": 16, "TOGETHER": 2, "STACK": 8, "RAGGED": True, "BIAS": True, "ADD": True, "PRECISION": "ieee",
        "UPCAST": False, "DEPTH": 64,
    }  # fmt: skip
    assert compile_kernel(sddmm_kernel, (9, 0), types, constants, config.Config(32, 64, 4, 2)).mma


def test_second_passes():
    from spfde.kernels.triton.sddmm import LANES, REDUCE, reduce_kernel
    from spfde.kernels.triton.spmm import join_kernel

    types = {"partial": "*fp32!", "out": "*bf16!", "size": "i32!", "parts": "i32"}
    constants = {"ADD": True, "LANES": LANES}
    assert compile_kernel(reduce_kernel, (9, 0), types, constants, REDUCE).spilled == 0
    types = {"scratch": "*fp32!", "split": "*i32!"}
    types |= dict.fromkeys(("scale", "bias", "residual", "kept", "y"), "*bf16!")
    types |= {"batch": "i32", "outer": "i32!", "stride_r": "i32!"}
    constants = {
        "OUTPUTS": 128, "BIAS": True, "SCALE": True, "KEEP": True, "ACT": "relu", "RESIDUAL": "before", "TOKENS": 32,
    }  # fmt: skip
    assert compile_kernel(join_kernel, (9, 0), types, constants, config.Config(32, 1, 4, 1)).spilled == 0


def sizes_together(block: tuple[int, int]) -> list[int]:
    """All that `together_of` answers for blocks (out, in), whatever the density."""
    return sorted({together_of(*block, percent / 100) for percent in range(101)})


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", GPUS)
def test_every_masked_product_and_epilogue(capability, dtype):
    gpu, tile = GPUS[capability], (config.TILE, config.TILE)
    for transposed in (False, True):
        check(product_code(gpu, dtype, tile, transposed=transposed, dense=True), gpu, dtype)
    for block in ((16, 64), (64, 64), (128, 128)):
        check(product_code(gpu, dtype, block, sizes_together(block)[-1], plain=False, sums="fp32"), gpu, dtype)


@pytest.mark.full
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0]}x{block[1]}")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", GPUS)
def test_every_configuration(capability, dtype, block):
    gpu = GPUS[capability]
    for together in sizes_together(block):
        for transposed in (False, True):
            check(product_code(gpu, dtype, block, together, transposed), gpu, dtype)
        check(weight_grad_code(gpu, dtype, block, together), gpu, dtype)
        if dtype == "fp32":
            check_exact(
                gpu,
                product_code(gpu, dtype, block, together, precision="ieee"),
                weight_grad_code(gpu, dtype, block, together, "ieee"),
            )
