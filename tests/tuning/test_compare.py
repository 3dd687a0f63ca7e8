"""One layer beside its dense one: what is timed, that it is the same work, and what is told of it."""

import json

import pytest
import torch

from spfde.kernels.triton import interpreting
from spfde.tuning import compare as module
from spfde.tuning.compare import Cell, check_device, compare
from spfde.tuning.layer import DTYPES, PARTS, LayerSpec, parse_shape, parts, precision

LINEAR = LayerSpec((24, 16), 5)
CONV = LayerSpec((16, 32, 3, 2), 2, 5, "block:16x16")


def clock(calls, rounds, device):
    """Runs everything once; a variant takes as many seconds as its name is long."""
    assert device == "cpu"
    for call in calls.values():
        call()
    return {(way, part): [float(len(way))] * rounds for way, part in calls}


@pytest.mark.parametrize(
    ("layer", "dense"),
    [(LINEAR, ["dense"]), (CONV, ["dense contiguous", "dense channels_last"])],
    ids=["linear", "conv"],
)
def test_every_way_is_timed_part_by_part(layer, dense):
    found = compare(layer, [0.5, 0.9], "cpu", 3, clock)
    assert [cell.sparsity for cell in found.cells] == [0.5, 0.9]
    kernels = ["auto", "native", *(["triton"] if interpreting() else []), "masked dense"]
    for cell in found.cells:
        assert list(cell.seconds) == [*dense, *kernels]
        assert all(list(times) == list(PARTS) and len(times["both"]) == 3 for times in cell.seconds.values())
        assert list(cell.absent) == ["cuda", *([] if interpreting() else ["triton"])]
        assert cell.kernel in ("native", "dense") and "predicted" in cell.reason
        assert cell.density == pytest.approx(1 - cell.sparsity, abs=0.3)
    assert json.loads(json.dumps(found.to_dict()))["layer"]["shape"] == list(layer.shape)
    assert found.machine["gpu"] is None and found.machine["torch"] == torch.__version__


def test_speedup_is_over_the_fastest_dense_way_of_a_part():
    times = {"dense a": {"both": [4.0], "forward": [1.0]}, "dense b": {"both": [3.0], "forward": [2.0]}}
    cell = Cell(0.9, 0.1, "native", "", {**times, "auto": {"both": [1.0, 1.5, 9.0], "forward": [4.0]}}, {})
    assert cell.speedup("auto", "both") == 2.0
    assert cell.speedup("auto", "forward") == 0.25
    assert cell.speedup("dense b", "both") == 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layer", [LINEAR, CONV], ids=["linear", "conv"])
def test_the_ways_are_the_same_work(layer, dtype):
    layer = LayerSpec(layer.shape, layer.batch, layer.size, layer.pattern, dtype)
    sparse, x = layer.sparse(0.5, "cpu"), layer.input("cpu")
    results = []
    for module_ in (sparse, module._masked(layer, sparse, "cpu")):
        calls = parts(module_, x)
        y, backward, both = (calls[part]() for part in PARTS)
        assert y.dtype == DTYPES[dtype] and not y.requires_grad
        for one, other in zip(backward, both, strict=True):
            assert torch.equal(one, other)
        results.append((y, both[0], *both[2:]))
    for got, exact in zip(*results, strict=True):
        error = float((got.float() - exact.float()).norm() / exact.float().norm())
        assert error <= module.TOLERANCE[dtype]


def test_parts_run_nothing_before_they_are_called():
    def fail(x):
        raise AssertionError

    layer = torch.nn.Linear(3, 3)
    layer.forward = fail
    assert list(parts(layer, torch.randn(2, 3))) == list(PARTS)


def test_a_wrong_kernel_is_absent_with_the_reason(monkeypatch):
    run = module._masked

    def other(*args):
        dense = run(*args)
        dense.weight.data.mul_(2)
        return dense

    monkeypatch.setattr(module, "_masked", other)
    [cell] = compare(LINEAR, [0.5], "cpu", 1, clock).cells
    assert list(cell.seconds) == ["dense"]
    assert cell.absent["native"].startswith("wrong output: relative error")


def test_a_kernel_that_does_not_compile_is_absent_and_the_others_are_timed(monkeypatch):
    from spfde.nn import SparseLinear

    run = SparseLinear.forward

    def broken(layer, x):
        if layer.dispatch_key == "native":
            raise SyntaxError("no such\n instruction")
        return run(layer, x)

    monkeypatch.setattr(SparseLinear, "forward", broken)
    [cell] = compare(LINEAR, [0.5], "cpu", 1, clock).cells
    assert cell.absent["native"] == "SyntaxError: no such instruction"
    assert "masked dense" in cell.seconds


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


@pytest.mark.parametrize("text", ["", "3", "3x", "0x4", "3x4x5", "3x4x5x6x7", "axb", "3 x 4", "-3x4"])
def test_shapes_that_are_none(text):
    with pytest.raises(ValueError, match="shape"):
        parse_shape(text)


def test_a_stride():
    layer = LayerSpec((8, 4, 3, 3), 2, 9, stride=2)
    assert str(layer) == "conv2d 8x4x3x3/2 9px batch 2 unstructured float32"
    assert layer.dense("cpu")(layer.input("cpu")).shape == (2, 8, 5, 5)
    assert layer.window.output_size(9, 9) == (5, 5)


def test_shapes():
    assert (parse_shape("3x40"), parse_shape("3x40x5x1")) == ((3, 40), (3, 40, 5, 1))


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


def test_devices_that_are_not_there():
    with pytest.raises(ValueError, match="device"):
        check_device("tpu")
    with pytest.raises(ValueError, match="dtype"):
        compare(LayerSpec((3, 4), 2, dtype="tf32"), [0.5], "cpu", 1, clock)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_none_is_timed():
    with pytest.raises(ValueError, match="CUDA device"):
        compare(LINEAR, [0.5], "cuda", 1, clock)
