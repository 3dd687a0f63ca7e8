"""norm_act by the CUDA kernels, emulated, against float64; and where they run."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spfde.kernels import norm_act_cuda
from spfde.kernels.norm_act import ACTIVATIONS, norm_act, norm_act_ref

norm = import_module("spfde.kernels.norm_act")  # the package has a function of that name
ROUNDING = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.fixture
def emulation(monkeypatch, emulated):
    """norm_act on the emulator, tensors of the CPU."""
    monkeypatch.setattr(norm_act_cuda, "native", lambda: emulated)
    monkeypatch.setattr(norm_act_cuda, "on_gpu", lambda x: True)
    monkeypatch.setattr(norm_act_cuda, "runs", lambda *_: True)
    monkeypatch.setattr(norm, "runs_native", lambda *_: False)


def images(shape, last, dtype):
    x = torch.randn(shape)
    return (x.contiguous(memory_format=torch.channels_last) if last else x).to(dtype)


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(
    channels=st.sampled_from([1, 4, 7, 40]),
    size=st.sampled_from([(1, 1), (2, 2), (3, 5), (4, 8), (7, 7)]),
    last=st.booleans(),
    added=st.booleans(),
    affine=st.sampled_from([None, torch.float32, "x"]),
    act=st.sampled_from(list(ACTIVATIONS)),
    training=st.booleans(),
    dtype=st.sampled_from(list(ROUNDING)),
)
def test_equal_to_float64(emulation, channels, size, last, added, affine, act, training, dtype):
    shape = (5, channels, *size)
    x, residual, dy = (images(shape, last, dtype) for _ in range(3))
    vectors = [torch.rand(channels).to(dtype if affine == "x" else torch.float32) + 0.5 for _ in range(2)]
    running = torch.randn(channels), torch.rand(channels) + 0.5
    parts = [x, residual if added else None, *(vectors if affine else (None, None))]

    def run(op, to):
        leaves = [None if p is None else p.detach().to(to(p)).requires_grad_() for p in parts]
        moved = [r.to(to(r), copy=True) for r in running]
        options = dict(residual=leaves[1], act=act, training=training, momentum=0.3, eps=1e-5 if training else 0.0)
        y = op(leaves[0], *moved, *leaves[2:], **options)
        return y, moved, [leaf for leaf in leaves if leaf is not None]

    y, moved, leaves = run(norm_act, lambda t: t.dtype)
    exact, exactly_moved, exact_leaves = run(norm_act_ref, lambda t: torch.float64)
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    # No gradient where rounding may put a value on the other side of a kink of the activation.
    pre, _, _ = run(lambda *a, **o: norm_act_ref(*a, **{**o, "act": "none"}), lambda t: torch.float64)
    clear = ((pre.abs() > 4e-2) & ((pre - 6).abs() > 4e-2)).detach()
    dy = torch.where(clear, dy, 0)
    found = [y, *moved, *torch.autograd.grad(y, leaves, dy)]
    wanted = [exact, *exactly_moved, *torch.autograd.grad(exact, exact_leaves, dy.double())]
    for got, true in zip(found, wanted, strict=True):
        scale = true.abs().max() + dy.double().norm() + 1
        assert got.shape == true.shape
        assert ((got.double() - true).abs() <= 2e-6 * scale + ROUNDING[got.dtype] * true.abs()).all()
    assert [g.dtype for g in found[3:]] == [leaf.dtype for leaf in leaves]


@pytest.mark.parametrize("last", [False, True])
def test_whatever_comes_first_is_as_close_to_float64_as_torch(emulation, last):
    normal = torch.randn(32, 2, 9, 9)
    for value, x in ((0.0, 1e3 + normal), (1e4, normal), (-3e3, torch.full_like(normal, 1e3))):
        for place in ((0,), (0, slice(None), 0, 0), (slice(0, 16),), (-1, slice(None), -1, -1)):
            given = x.clone()
            given[place] = value
            given = given.contiguous(memory_format=torch.channels_last) if last else given
            exact = norm_act_ref(given.double(), None, None, training=True)
            torchs = norm_act_ref(given.contiguous(), None, None, training=True)
            error, theirs = ((t - exact).abs().max() / exact.abs().max() for t in (
                norm_act(given, None, None, training=True), torchs
            ))  # fmt: skip
            assert error <= 6 * max(theirs, 1e-7)


def test_a_constant_channel_has_no_variance_and_nans_pass(emulation):
    x = torch.full((4, 3, 5, 5), 0.1)
    assert norm_act(x, None, None, training=True).count_nonzero() == 0
    x[0, 0, 0, 0], x[1, 1, 0, 0] = torch.nan, torch.inf
    statistics = torch.zeros(3), torch.ones(3)
    got, wanted = (op(x, *statistics, act="relu6", eps=0.0) for op in (norm_act, norm_act_ref))
    torch.testing.assert_close(got, wanted, equal_nan=True)
    x[0, 0, 0, 0] = torch.inf
    x.requires_grad_()
    norm_act(x, *statistics, act="relu").sum().backward()
    assert x.grad[0, 0, 0, 0] == (1 + 1e-5) ** -0.5  # an infinity is above a ReLU's kink


def test_with_recompute_a_chain_of_residuals_gives_the_same_bits(emulation):
    parts = [torch.randn(3, 5, 4, 6).half() for _ in range(5)]
    results = []
    for recompute in (False, True):
        leaves = [t.detach().requires_grad_() for t in parts]
        y = leaves[0]
        for leaf in leaves[1:]:
            y = norm_act(leaf, None, None, residual=y, act="relu", training=True, recompute=recompute)
        results.append([y, *torch.autograd.grad(y.float().square().sum(), leaves)])
    assert all(map(torch.equal, *results))


def test_the_same_bits_every_time_also_in_parts(emulation, monkeypatch):
    monkeypatch.setattr(norm_act_cuda, "gpu_at", lambda device: SimpleNamespace(units=64))
    x = torch.randn(64, 3, 20, 20, requires_grad=True)
    results = []
    for _ in range(2):
        y = norm_act(x, None, None, training=True, act="relu")
        results.append([y, *torch.autograd.grad(y.square().sum(), x)])
    assert all(map(torch.equal, *results))


@pytest.fixture
def on_a_board(monkeypatch):
    """A GPU for which the kernels were built, and no Triton."""
    monkeypatch.setattr(norm_act_cuda, "on_gpu", lambda x: True)
    monkeypatch.setattr(norm_act_cuda.cuda, "absence", lambda: None)
    monkeypatch.setattr(norm_act_cuda.triton, "available", lambda: False)


def test_they_run_on_a_gpu_without_triton_where_they_were_built(on_a_board, monkeypatch):
    x, vector = torch.randn(2, 3, 4, 4).half(), torch.ones(3)
    run = lambda x=x, r=None, v=vector, training=True: norm_act_cuda.runs(x, r, v, v, v, None, training)  # noqa: E731
    assert run()
    assert run(r=x)
    assert not run(x=x.double())
    assert not run(x=x[:0])
    assert not run(r=x.float())
    assert not run(v=vector.double())
    assert not run(v=vector.half())  # statistics that move do so in float32
    assert run(v=vector.half(), training=False)
    assert not torch.func.vmap(lambda x: torch.tensor(run(x=x)))(x[None]).any()
    monkeypatch.setattr(norm_act_cuda.triton, "available", lambda: True)
    assert not run()
    monkeypatch.setattr(norm_act_cuda.triton, "available", lambda: False)
    monkeypatch.setattr(norm_act_cuda.cuda, "absence", lambda: "spfde was built without nvcc")
    assert not run()
