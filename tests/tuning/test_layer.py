"""Layers that the tuner times: always the same data, and what is none."""

import pytest
import torch

from spfde.tuning.layer import LayerSpec, precision

CONV = LayerSpec((16, 32, 3, 2), 2, 5, "block:16x16")


def test_data_is_always_the_same_and_leaves_torchs_random_state():
    before = torch.get_rng_state()
    one, other = CONV.dense("cpu"), CONV.dense("cpu")
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(CONV.input("cpu"), CONV.input("cpu", last=True))
    assert CONV.input("cpu", last=True).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(torch.get_rng_state(), before)
    assert CONV.dense("cpu")(CONV.input("cpu")).shape[2:] == CONV.window.output_size(5, 5)
    assert CONV.sparse(0.5, "cpu").window == CONV.window


def test_flags_are_afterwards_as_before():
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for dtype in ("tf32", "float32"):
        with pytest.raises(RuntimeError, match="failed"), precision(dtype):
            assert [flag.allow_tf32 for flag in flags] == [dtype == "tf32"] * 2
            raise RuntimeError("failed")
        assert [flag.allow_tf32 for flag in flags] == before


def test_a_stride():
    layer = LayerSpec((8, 4, 3, 3), 2, 9, stride=2)
    assert str(layer) == "conv2d 8x4x3x3/2 9px batch 2 unstructured float32"
    assert layer.dense("cpu")(layer.input("cpu")).shape == (2, 8, 5, 5)
    assert layer.window.output_size(9, 9) == (5, 5)


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": (3,)}, {"shape": (3, 0)}, {"batch": 0}, {"size": 0}, {"stride": 0}, {"size": 2}, {"stride": 2},
        {"dtype": "float64"}, {"pattern": "blok"},
    ],
)  # fmt: skip
def test_layers_that_are_none(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        LayerSpec(**{"shape": (3, 4), "batch": 2, **fields})
