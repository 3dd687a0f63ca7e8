"""Launches, the model behind the choice, and what is refused: pure functions, no triton and no GPU."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from kernels.problems import choose_convolution, choose_on

from spfde import _machine
from spfde._machine import GpuFacts
from spfde.kernels import gpu as gpus
from spfde.kernels import spmm
from spfde.kernels.dispatch import rule as dispatch
from spfde.kernels.dispatch.measurement import kind_of
from spfde.kernels.gpu import GPUS
from spfde.kernels.problem import EMPTY, Problem
from spfde.kernels.triton import config, interpreting, launch, model, why_not
from spfde.kernels.triton import kernel as kernel_module
from spfde.sparse.kernel_index import Window

F32, BF16 = torch.float32, torch.bfloat16
H200 = GPUS["NVIDIA H200"]
LARGE = Problem(16384, (4096, 4096), 0, (64, 64))


def at(density_bucket, problem=LARGE):
    return problem._replace(bucket=density_bucket)


def test_launches_fit_shared_memory_and_the_matrix_unit():
    for gpu in GPUS.values():
        for dtype in (F32, BF16):
            for outputs in config.SIZES:
                for width in config.SIZES:
                    for exact in {False, dtype == F32}:
                        how = config.product_config(gpu, outputs, width, 1, dtype, 4096, exact)
                        back = config.weight_grad_config(gpu, outputs, width, dtype, exact)
                        # A step of a product is two stages; of "mma" one step's operands are in registers.
                        held, back_held = ((how.stages + 1) // 2, back.stages)
                        if not gpu.multiplies_from_shared:
                            held, back_held = held - 1, back_held - 1
                        assert held * (how.tokens + outputs) * how.depth * dtype.itemsize <= gpu.shared
                        assert back_held * (max(width, 128) + outputs) * back.depth * dtype.itemsize <= gpu.shared
                        assert how.depth >= 16 and back.depth >= 16 and how.stages > 1 and back.stages > 1
                        assert how.depth % width == 0 or width % how.depth == 0


def test_a_small_batch_takes_small_tiles():
    assert config.product_config(H200, 64, 64, 1, BF16, 8, False).tokens == 32
    assert config.product_config(H200, 64, 64, 1, BF16, 33, False).tokens == 128


def test_rows_together_never_reach_into_the_next_block():
    assert config.product_config(H200, 128, 16, 8, BF16, 4096, False).depth == 16


@pytest.mark.parametrize("programs", [1, 10, 100, 10_000])
@pytest.mark.parametrize("positions", [0, 1, 511, 512, 100_000])
def test_tokens_are_cut_only_where_programs_are_few_and_tokens_many(programs, positions):
    parts = config.parts(H200, programs, positions, 64)
    assert 1 <= parts <= 32
    assert parts == 1 or positions // parts >= 512
    if programs >= 2 * H200.units:
        assert parts == 1
    if programs == 1 and positions == 100_000:
        assert parts == 32


def facts(name, capability, units, shared=1000, **told):
    return GpuFacts(name, capability, units, shared, **told)


def test_an_unlisted_gpu_takes_the_nearest_older_architectures_rates():
    assert gpus.gpu_of(facts("NVIDIA H200", (9, 0), 132)) is H200
    h20 = gpus.gpu_of(facts("NVIDIA H20", (9, 0), 66))
    assert (h20.half, h20.l2, h20.shared) == (H200.half / 2, H200.l2 / 2, 1000)
    for capability, name in (((9, 5), "NVIDIA H200"), ((10, 3), "NVIDIA B200"), ((12, 5), "NVIDIA GB10"),
                             ((7, 5), "NVIDIA A100-SXM4-80GB")):  # fmt: skip
        like = GPUS[name]
        assert gpus.gpu_of(facts("next", capability, like.units)).half == like.half


def test_a_part_of_a_gpu_is_not_the_whole():
    assert gpus.gpu_of(facts("NVIDIA H200", (9, 0), 66)).half == H200.half / 2


def test_memory_moves_at_the_rate_that_the_device_tells():
    assert gpus.gpu_of(facts("NVIDIA GeForce RTX 3070", (8, 6), 46, memory=0.448)).memory == 0.448
    assert gpus.gpu_of(facts("NVIDIA GeForce RTX 3070", (8, 6), 56)).memory == pytest.approx(0.72)


def test_a_board_goes_by_multiprocessors_and_clock():
    agx = GPUS["Orin"]
    modules = [
        gpus.gpu_of(facts("Orin", (8, 7), units, clock=clock, integrated=True))
        for units, clock in ((16, 1.3), (8, 1.3), (8, 0.65))
    ]
    assert [gpu.units for gpu in modules] == [16, 8, 8]
    assert [gpu.half for gpu in modules] == [agx.half, agx.half / 2, agx.half / 4]
    assert [gpu.memory for gpu in modules] == [agx.memory, agx.memory / 2, agx.memory / 2]
    assert len({gpu.name for gpu in modules}) == 3
    assert modules[2].name == "Orin 8sm 650MHz"


@pytest.mark.parametrize(
    ("integrated", "identity", "memory"), [(0, "NVIDIA GeForce RTX 4070", 0.504048), (1, "Orin 8sm 1020MHz", 0.0)]
)
def test_what_torch_tells_of_a_gpu(integrated, identity, memory, monkeypatch):
    told = SimpleNamespace(
        name="Orin" if integrated else "NVIDIA GeForce RTX 4070", major=8, minor=7, multi_processor_count=8,
        is_integrated=integrated, clock_rate=1020000, memory_clock_rate=10501000, memory_bus_width=192,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)
    found = GpuFacts.of(torch.device("cuda", 0))
    assert (found.identity, found.clock, found.shared) == (identity, 1.02, 99 * 1024)
    assert found.memory == pytest.approx(memory)


def test_what_an_older_torch_does_not_tell_the_driver_may(monkeypatch):
    told = SimpleNamespace(name="Orin", major=8, minor=7, multi_processor_count=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)
    monkeypatch.setattr(_machine, "_from_driver", lambda attribute, index: {13: 625000, 18: 1}.get(attribute, 0))
    assert GpuFacts.of(torch.device("cuda", 0)).identity == "Orin 8sm 625MHz"


@pytest.mark.parametrize(("name", "unit"), [("Orin", "mma"), ("NVIDIA H200", "wgmma"), ("NVIDIA Thor", "tcgen05"),
                                            ("NVIDIA B200", "tcgen05"), ("NVIDIA GB10", "mma")])  # fmt: skip
def test_blackwell_is_not_hopper(name, unit):
    gpu = GPUS[name]
    assert gpu.matrix_unit == unit
    assert gpu.multiplies_from_shared == (unit != "mma")
    large = config.product_config(gpu, 128, 128, 1, BF16, 16384, False)
    assert (large.tokens == config.MOST_TOKENS) == (unit != "mma")


def test_the_union_of_rows():
    assert model.union(0.0, 8) == 0.0
    assert model.union(1.0, 8) == 1.0
    assert model.union(0.3, 1) == pytest.approx(0.3)
    assert model.union(0.5, 2) == pytest.approx(0.75)


@pytest.mark.parametrize("height", config.SIZES)
@pytest.mark.parametrize("width", config.SIZES)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_rows_that_share_a_program_have_at_most_128_outputs(height, width, density):
    together = model.together_of(height, width, density)
    assert together in (1, 2, 4, 8)
    assert together == 1 or together * height <= 128


def test_the_model_knows_what_helps():
    assert model.together_of(16, 16, 0.5) == 8  # nearly every column is shared
    assert model.together_of(16, 16, 0.001) == 1  # none is
    assert model.together_of(64, 64, 0.1) == 1
    gains = [model.gain(at(bucket), BF16, H200) for bucket in range(EMPTY)]
    assert gains == sorted(gains)  # the sparser, the better
    assert gains[0] < 1 < gains[30]
    sizes = [model.gain(LARGE._replace(bucket=27, block=(side, side)), BF16, H200) for side in config.SIZES]
    assert sizes == sorted(sizes)  # the larger the blocks, the better
    assert model.gain(Problem(8, (64, 64), 27, (16, 16)), BF16, H200) < 1.3  # nothing to gain in a tiny layer


def test_the_choice_and_its_reason():
    sparse = choose_on(at(27), BF16, None, H200)
    assert sparse.kernel == "triton"
    assert "predicted" in sparse.reason and "not measured" in sparse.reason
    assert choose_on(at(0), BF16, None, H200).kernel == "dense"
    for problem, reason in (
        (LARGE._replace(block=(1, 1), bucket=27), "only blocks with sides of 16, 32, 64 or 128"),
        (LARGE._replace(block=(64, 8), bucket=27), "only blocks with sides of 16, 32, 64 or 128"),
        (Problem(64, (64, 64, 3, 3), 27, (16, 16), Window((3, 3), groups=2), (8, 8)), "no sparse kernel for groups"),
    ):
        choice = choose_on(problem, BF16, None, H200)
        assert (choice.kernel, reason in choice.reason) == ("dense", True)
    assert "triton is not installed" in choose_on(at(27), BF16, "triton is not installed", H200).reason
    assert "no CUDA device" in choose_on(at(27), BF16, None, None).reason
    turing = replace(H200, name="Turing", capability=(7, 5))
    choice = choose_on(at(27), BF16, None, turing)
    assert choice.kernel == "dense" and "compute capability 8.0 is the oldest" in choice.reason


def test_which_devices_run_triton(monkeypatch):
    monkeypatch.setattr("spfde.kernels.triton.available", lambda: False)
    assert why_not("cuda") == "triton is not installed"
    monkeypatch.setattr("spfde.kernels.triton.available", lambda: True)
    assert why_not("cuda") is None
    assert "no Triton kernel for mps" in why_not("mps")
    assert (why_not("cpu") is None) == interpreting()


@pytest.mark.skipif(interpreting(), reason="it runs here")
def test_outside_the_interpreter_triton_is_refused_on_a_cpu():
    from kernels.problems import build

    plan, values = build((64, 64), None, 0.5, 0, 0, "block:16x16")
    for x in (torch.randn(4, 64), torch.randn(4, 64).half()):
        with pytest.raises(ValueError, match="kernel 'triton'.*try"):
            spmm(x, values, plan, None, "triton")
    with pytest.raises(ValueError, match="kernel 'triton'.*float64"):
        spmm(torch.randn(4, 64).double(), values.double(), plan, None, "triton")


@pytest.mark.parametrize(
    ("window", "block", "reason"),
    [(Window((3, 3), groups=2), (16, 16), "no sparse kernel for groups"), (Window((3, 3)), (4, 1), "only blocks with")],
)
def test_a_convolution_that_has_no_triton_kernel(monkeypatch, window, block, reason):
    monkeypatch.setattr(kernel_module, "why_not", lambda device: None)
    dispatch.forget()
    args = ("cuda", F32, (4, 64, 10, 10), (64, 64 // window.groups, 3, 3), window, 64, block)
    with pytest.raises(ValueError, match=f"kernel 'triton'.*{reason}"):
        choose_convolution("triton", *args)
    assert choose_convolution("dense", *args).reason == "forced by layer.kernel"


def test_a_convolution_that_multiplies_much_is_sparse_and_a_pointwise_one_counts_as_linear(monkeypatch):
    wide = Problem(64, (512, 512, 3, 3), 19, (128, 128), Window((3, 3), (1, 1), (1, 1, 1, 1)), (14, 14))
    assert choose_on(wide, BF16, None, H200).kernel == "triton"
    narrow = Problem(64, (32, 32, 3, 3), 19, (16, 16), Window((3, 3), (1, 1), (1, 1, 1, 1)), (14, 14))
    assert choose_on(narrow, BF16, None, H200).kernel == "dense"
    assert kind_of(Window()) == "linear"
    assert kind_of(Window((1, 1), (2, 2))) == "conv2d 1x1/2x2"


@pytest.mark.parametrize(
    ("flag", "dtype", "expected"),
    [("ieee", F32, "ieee"), ("tf32", F32, "tf32"), ("tf32", BF16, "ieee"), ("tf32", torch.float16, "ieee")],
)
def test_tf32_where_torch_would_use_it(flag, dtype, expected, monkeypatch):
    monkeypatch.setattr(launch, "uses_tf32", lambda op: flag == "tf32")
    assert launch.precision(dtype) == expected
    assert launch.exact(dtype) == (dtype == F32 and flag == "ieee")


def test_torchs_flag_is_read():
    before = torch.get_float32_matmul_precision()
    try:
        for value in ("highest", "high"):
            torch.set_float32_matmul_precision(value)
            assert launch.uses_tf32("linear") == (value == "high")
    finally:
        torch.set_float32_matmul_precision(before)
