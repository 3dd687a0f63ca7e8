"""Triton's norm_act in its interpreter against float64; run by test_interpreter.py with TRITON_INTERPRET=1."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from spfde.kernels import norm_act, norm_act_frozen
from spfde.kernels.norm_act import ACTIVATIONS, norm_act_ref
from spfde.nn import FusedNormAct2d

# Of each result's terms; the interpreter cuts bfloat16 off where a GPU rounds it.
ROUNDING = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 8e-3}
SHAPES = [(2, 16, 4, 4), (3, 7, 5, 3), (1, 1, 1, 1), (2, 300, 2, 3), (2, 3, 40, 17), (5, 130, 1, 1), (6, 9), (2, 5, 7),
          (2, 3, 2, 3, 4)]  # fmt: skip


def vectors(channels: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Mean, variance, weight and bias; one variance is 0."""
    generator = torch.Generator().manual_seed(channels)
    mean, var, weight, bias = torch.randn(4, channels, generator=generator).to(dtype)
    var = var.abs()
    var[0] = 0
    return [mean, var, weight, bias]


def images(shape: tuple[int, ...], dtype: torch.dtype, memory: str, seed: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if memory == "gaps":
        wide = torch.full((*shape[:-1], 2 * shape[-1]), float("nan"), dtype=dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    return x.contiguous(memory_format=torch.channels_last) if memory == "channels_last" and x.dim() == 4 else x


def launches(monkeypatch) -> list[str]:
    """Names of the kernels of norm_act launched from now on."""
    from spfde.kernels.triton import norm_act as kernels

    names: list[str] = []
    run = kernels.launch

    def spy(kernel, *args, **options):
        names.append(kernel.fn.__name__)
        run(kernel, *args, **options)

    monkeypatch.setattr(kernels, "launch", spy)
    return names


def close(got: Tensor, x: Tensor, residual: Tensor | None, parts: list[Tensor | None], act: str) -> None:
    """Against float64; rounding is that of the terms, which may cancel."""
    exact = norm_act_ref(*(t if t is None else t.double() for t in (x, *parts)),
                         residual=None if residual is None else residual.double(), act=act)  # fmt: skip
    mean, var, weight, bias = (t if t is None else t.double().view(-1, *[1] * (x.dim() - 2)) for t in parts)
    scale = (var + 1e-5).rsqrt() * (1 if weight is None else weight)
    terms = [x * scale, mean * scale, *(t for t in (bias, residual) if t is not None)]
    limit = ROUNDING[x.dtype] * sum(t.double().abs() for t in terms).clamp(min=1e-30)
    assert got.dtype == x.dtype and got.shape == x.shape
    assert bool(((got.double() - exact).abs() <= limit).all())


@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "gaps"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ROUNDING, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_activation_with_and_without_residual(dtype, shape, memory):
    x, residual = images(shape, dtype, memory, 0), images(shape, dtype, "contiguous", 1)
    parts = vectors(shape[1])
    for act, added in product(ACTIVATIONS, (None, residual)):
        y = norm_act_frozen.compute(x, added, *parts, 1e-5, act)
        close(y, x, added, parts, act)
        assert y.is_contiguous(memory_format=torch.channels_last if memory == "channels_last" and x.dim() == 4
                               else torch.contiguous_format)  # fmt: skip


@pytest.mark.parametrize("missing", [(), (2,), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("own", [torch.float32, torch.float16])
def test_the_op_takes_it_where_the_native_kernel_does_not(monkeypatch, missing, own):
    names = launches(monkeypatch)
    x, residual = (images((2, 6, 3, 3), torch.float16, "channels_last", seed) for seed in (0, 1))
    parts = [None if i in missing else part for i, part in enumerate(vectors(6, own))]
    close(norm_act(x, *parts, residual=residual, act="relu"), x, residual, parts, "relu")
    assert names == ["norm_act_kernel"]


def test_scale_and_shift_say_the_same():
    x = images((2, 6, 3, 3), torch.float32, "contiguous", 0)
    for parts in (vectors(6), [*vectors(6)[:2], None, None], vectors(6, torch.float16)):
        scale, shift = norm_act_frozen.affine(*parts, 1e-5)
        assert scale.dtype == shift.dtype == torch.float32
        close(x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1), x, None, parts, "none")


def test_vectors_with_gaps_in_memory():
    x, parts = images((2, 6, 3, 3), torch.float32, "channels_last", 0), vectors(6)
    apart = [torch.stack((part, part), 1)[:, 0] for part in parts]
    y = norm_act_frozen.compute(x, None, *apart, 1e-5, "relu")
    assert torch.equal(y, norm_act_frozen.compute(x, None, *parts, 1e-5, "relu"))


def test_numbers_that_are_none_pass():
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -1.0, 9.0]).view(1, 1, 5, 1)
    parts = torch.zeros(1), torch.ones(1), None, None
    for act, last in (("none", 9.0), ("relu", 9.0), ("relu6", 6.0)):
        y = norm_act_frozen.compute(x, None, *parts, 0.0, act).view(-1)
        torch.testing.assert_close(y, ACTIVATIONS[act](x).view(-1), equal_nan=True)
        assert torch.isnan(y[0]) and y[4] == last


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)])
def test_nothing_gives_nothing(shape):
    y = norm_act_frozen.compute(torch.empty(shape), None, torch.ones(4), torch.zeros(4), None, None, 1e-5, "relu")
    assert y.shape == shape


def half() -> tuple[FusedNormAct2d, Tensor]:
    """A norm in evaluation and an input that the native kernel does not take."""
    return FusedNormAct2d(4).half().eval(), torch.randn(2, 4, 3, 3).half()


def test_a_module_runs_it_where_no_gradient_is_wanted(monkeypatch):
    names = launches(monkeypatch)
    norm, x = half()
    expected = torch.relu(x)  # mean 0, variance 1
    with torch.no_grad():
        torch.testing.assert_close(norm(x, None, "relu"), expected, atol=1e-3, rtol=1e-3)
    assert names == ["norm_act_kernel"]
    norm.requires_grad_(False)
    norm(x)
    assert len(names) == 2


def dual(norm: FusedNormAct2d, x: Tensor) -> Tensor:
    norm.requires_grad_(False)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(norm(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
        assert tangent is not None
        return tangent


def counted(norm: FusedNormAct2d, x: Tensor) -> Tensor:
    with torch.no_grad(), FlopCounterMode(display=False):
        return norm(x)


OTHERWISE = {
    "weight wants a gradient": lambda norm, x: norm(x),
    "x wants a gradient": lambda norm, x: norm.requires_grad_(False)(x.requires_grad_()),
    "residual wants a gradient": lambda norm, x: norm.requires_grad_(False)(x, x.detach().clone().requires_grad_()),
    "training": lambda norm, x: torch.no_grad()(norm.train())(x),
    "a tangent": dual,
    "vmap": lambda norm, x: torch.vmap(norm.requires_grad_(False))(x[None]),
    "a dispatch mode": counted,
    "float64": lambda norm, x: torch.no_grad()(norm.double())(x.double()),
    "a residual of another precision": lambda norm, x: torch.no_grad()(norm)(x, x.float()),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, of tangents
@pytest.mark.parametrize("run", OTHERWISE.values(), ids=OTHERWISE)
def test_everything_else_is_torchs(monkeypatch, run):
    names = launches(monkeypatch)
    norm, x = half()
    y = run(norm, x)
    assert names == [] and y.isfinite().all()


def test_float32_on_a_cpu_stays_native(monkeypatch):
    names = launches(monkeypatch)
    with torch.no_grad():
        FusedNormAct2d(4).eval()(torch.randn(2, 4, 3, 3))
    assert names == []


def test_one_compilation_holds_it():
    norm, x = half()
    norm.requires_grad_(False)
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x, "relu6"), norm(x, x, "relu6"), atol=1e-3, rtol=1e-3)
