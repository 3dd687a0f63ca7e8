"""Launches to time: what a GPU can hold, few, and among them the one that runs unmeasured."""

import os
from itertools import product

import pytest
import torch

from spfde._machine import GpuFacts
from spfde.kernels import gpu as gpus
from spfde.kernels.triton import config
from spfde.kernels.triton.candidates import DEPTHS, MOST, product_candidates, weight_grad_candidates

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = {"fp32": F32, "bf16": BF16, "fp16": F16}
SMALLEST = gpus.gpu_of(GpuFacts("T4", (7, 5), 40, 64 * 1024))


def groups(side):
    """Block rows that may share a program."""
    return [count for count in (1, 2, 4, 8) if count == 1 or side * count <= 128]


def check(gpu, found, default, each, flight):
    """each: bytes of a step's operands. flight: how many are on their way; of "mma" one of them in registers."""
    assert found[0] == default
    assert len(set(found)) == len(found) <= MOST
    for how in found:
        assert 2 <= flight(how) <= 4
        assert how == default or each(how) * (flight(how) - (not gpu.multiplies_from_shared)) <= gpu.shared
        assert how.warps in (4, 8) and how.depth in DEPTHS


def in_product(how):
    return (how.stages + 1) // 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gpu", [*gpus.GPUS.values(), SMALLEST], ids=lambda gpu: gpu.name)
def test_every_candidate_fits_and_the_computed_launch_comes_first(gpu, dtype):
    kind = DTYPES[dtype]
    for height, width in product(config.SIZES, config.SIZES):
        for together, positions, op in product(groups(height), (1, 32, 33, 16384), ("linear", "conv2d")):
            outputs = height * together
            found = product_candidates(gpu, outputs, width, together, kind, positions, op)
            default = config.product_config(gpu, outputs, width, together, kind, positions, False, op)
            check(
                gpu, found, default, lambda how, o=outputs: (how.tokens + o) * how.depth * kind.itemsize, in_product
            )  # fmt: skip
            assert len(found) > 1
            assert all(how.stages % 2 == 1 for how in found)
            assert all(max(how.depth, width) % min(how.depth, width) == 0 for how in found)
            assert together == 1 or all(how.depth <= width for how in found)
            assert all((how.tokens <= 64) == (positions <= 32) for how in found[1:] if how.tokens != 64)
            sums = 256 if op == "linear" else 128
            assert all(how.tokens * outputs * kind.itemsize <= sums * 32 * how.warps for how in found[1:])
        for together in groups(height):
            outputs = height * together
            found = weight_grad_candidates(gpu, outputs, width, kind)
            default = config.weight_grad_config(gpu, outputs, width, kind, False)
            check(
                gpu, found, default,
                lambda how, o=outputs, w=width: (max(w, 128) + o) * how.depth * kind.itemsize,
                lambda how: how.stages,
            )  # fmt: skip
            assert len(found) > 1
            assert all(how.tokens == how.depth for how in found)


def test_there_is_a_choice():
    found = product_candidates(gpus.GPUS["NVIDIA H200"], 64, 64, 1, BF16, 16384)
    for what in config.Config._fields:
        assert len({getattr(how, what) for how in found}) > 1
    for gpu in gpus.GPUS.values():
        assert len(weight_grad_candidates(gpu, 64, 64, BF16)) >= 4


compiled = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler in this process"
)


def check_compiled(capability, dtype, block, most=99):
    """That the candidates furthest from what runs unmeasured become code that holds its sums in registers and fits."""
    pytest.importorskip("triton")
    from kernels.triton.test_aot import GPUS, product_code, weight_grad_code

    gpu, kind = GPUS[capability], DTYPES[dtype]
    hows = product_candidates(gpu, block[0], block[1], 1, kind, 4096)[1:]
    backs = weight_grad_candidates(gpu, block[0], block[1], kind)[1:]
    made = [product_code(gpu, dtype, block, how=how) for how in hows[-most:]]
    made += [weight_grad_code(gpu, dtype, block, how=how) for how in backs[-most:]]
    for code, _ in made:
        assert code.spilled == 0 and code.shared <= gpu.shared and code.mma


@compiled
@pytest.mark.parametrize(("capability", "dtype"), [(90, "bf16"), (86, "fp16")])
def test_candidates_compile(capability, dtype):
    check_compiled(capability, dtype, (64, 64), most=2)


@compiled
@pytest.mark.full
@pytest.mark.parametrize("block", [(16, 16), (32, 64), (64, 64), (128, 128)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", [80, 86, 87, 89, 90, 100, 110, 120, 121])
def test_every_candidate_compiles(capability, dtype, block):
    check_compiled(capability, dtype, block)
