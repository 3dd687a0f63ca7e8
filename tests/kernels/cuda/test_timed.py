"""What benchmarks times and sanitizes on a GPU of single weights, small, with the kernel "cuda" emulated."""

from __future__ import annotations

import pytest
import smallest
import torch
from cases import Case, Layer, conv
from variants import PARTS, check, expected, sparse_layer, sparse_variant

from spfde.kernels import cuda

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def emulation(monkeypatch, emulated):
    monkeypatch.setattr(cuda, "native", lambda: emulated)
    monkeypatch.setattr(cuda.Cuda, "obstacle", lambda *_: None)


@pytest.mark.parametrize("case", [
    Case(Layer("linear", 9, (70, 66), bias=False)), Case(Layer("linear", 9, (70, 66)), sparsity=0.98, dtype="bfloat16"),
    Case(conv(2, (24, 20), 6, 3, 2, bias=False), sparsity=0.95),
], ids=str)  # fmt: skip
def test_every_part_is_that_of_the_dense_layer(case):
    sparse = sparse_layer(case)
    wanted, made = expected(case, sparse), sparse_variant(case, "cuda", sparse)
    for part in PARTS:
        check(made, part, wanted, case.dtype)
    assert made.module.choice.kernel == "cuda"


def test_what_is_sanitized_reaches_every_product_of_single_weights(monkeypatch, emulated):
    called = set()

    class Spy:
        def __getattr__(self, name):
            called.add(name)
            return getattr(emulated, name)

    monkeypatch.setattr(cuda, "native", Spy)
    for model, shape in smallest.singles():
        model.kernel = "cuda"
        model(torch.randn(shape, requires_grad=True)).sum().backward()
    conv2d = {f"cuda_conv2d{of}" for of in ("", "_input_grad", "_weight_grad", "_weight_grad_scratch")}
    assert called == {"cuda_spmm", "cuda_sddmm", "cuda_sddmm_scratch", *conv2d}
