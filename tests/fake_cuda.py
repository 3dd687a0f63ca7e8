"""A GPU that is not there: tensors on `cuda` whose numbers lie in main memory. A CPU runs what a GPU will run.

As a pytest plugin (`-p fake_cuda`) it holds for the whole process. With TRITON_INTERPRET=1 kernels run in the
interpreter; otherwise Triton compiles them as it does at a launch, for an H200, and they write nothing. It is as strict
as a GPU: operands of one op lie on one device, and Triton is launched with tensors on `cuda`, integers of 32 bits, and
a grid that CUDA takes. `no_waiting` refuses what makes the CPU wait for a GPU. See tests/gpu/test_on_fake_cuda.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from spfde.kernels.gpu import Config
from spfde.kernels.triton import interpreting
from spfde.kernels.triton.launch import options as launch_options

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
GRID = (2**31 - 1, 65535, 65535)  # programs that CUDA launches along each axis
H200 = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, shared_memory_per_block_optin=227 * 1024,
    L2_cache_size=2**20, total_memory=140 * 2**30,
)  # fmt: skip
# Ops for which a GPU is waited for: their result is a number, or its size is.
WAIT = {
    aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select, aten.unique_dim,
    aten._unique2, aten.unique_consecutive, aten.bincount,
}  # fmt: skip
RECIPROCALS = ("area_m", "row_m")  # integers without a sign
COPY = {aten._to_copy, aten.copy_}
INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class FakeCuda(Tensor):
    """A tensor that says it is on `cuda`; `inner` holds its numbers. For C++ it is on the meta device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> FakeCuda:
        fake = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="meta",
        )  # fmt: skip
        fake.inner = inner
        return fake

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func, types, args, kwargs=None):
        with MODE:
            return func(*args, **(kwargs or {}))

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, other: Tensor) -> None:
        Tensor.data.__set__(self, other)
        self.inner = other.inner

    def get_device(self) -> int:
        return 0

    def data_ptr(self) -> int:
        raise AssertionError("the CPU was given the address of a tensor on cuda")

    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self, **_):
        raise TypeError("numpy() of a tensor on cuda")

    def __deepcopy__(self, memo):
        return memo.setdefault(id(self), _again(self))

    def __repr__(self, **_) -> str:
        return f"FakeCuda({self.inner})"


def _again(fake: FakeCuda) -> Tensor:
    new = FakeCuda(fake.inner.clone())
    return torch.nn.Parameter(new, fake.requires_grad) if isinstance(fake, torch.nn.Parameter) else new


class _Mode(TorchDispatchMode):
    """Runs every op on the numbers, and refuses what a GPU refuses."""

    waiting = True  # whether the CPU may wait for the GPU

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func.namespace == "spfde":  # a registered op of ours: its parts are what is looked at
            with self:
                return torch._library.custom_ops.OPDEFS[func._schema.name]._backend_fns[None](*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        fakes = [t for t in tensors if isinstance(t, FakeCuda)]
        to = kwargs.get("device")
        on_cuda = bool(fakes) if to is None else to.type != "cpu"
        if fakes or on_cuda:
            self._check(func, args, kwargs, tensors, on_cuda)
        if to is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        result = func(*tree_map_only(FakeCuda, _inner, args), **tree_map_only(FakeCuda, _inner, kwargs))
        if not on_cuda:
            return result
        known = {id(t.inner): t for t in fakes}  # what is written in place stays the tensor that it was
        return tree_map_only(Tensor, lambda t: known[id(t)] if id(t) in known else FakeCuda(t), result)

    def _check(self, func, args, kwargs, tensors, on_cuda) -> None:
        packet, here = func.overloadpacket, [t for t in tensors if not isinstance(t, FakeCuda)]
        moved = packet in COPY and (bool(here) or not on_cuda)
        numbers = all(t.dim() == 0 for t in here)
        indices = packet in INDEX and isinstance(args[0], FakeCuda)  # those may lie on the CPU: torch moves them
        assert moved or numbers or indices, f"{func} of tensors on cuda and cpu"
        assert not (on_cuda and kwargs.get("generator") is not None), f"{func} on cuda with a CPU generator"
        if self.waiting:
            return
        waits = packet in WAIT or (moved and not kwargs.get("non_blocking")) or not (moved or numbers)
        if packet in INDEX and any(isinstance(t, Tensor) and t.dtype == torch.bool for t in args[1]):
            waits |= packet is aten.index or args[2].numel() != 1  # one number: masked_fill
        if packet is aten.repeat_interleave:
            waits |= kwargs.get("output_size") is None
        assert not waits, f"{func} waits for the GPU"


def _inner(fake: FakeCuda) -> Tensor:
    return fake.inner


MODE = _Mode()
launches: list[tuple[str, tuple[int, ...]]] = []  # kernels and their grids, in order


@contextmanager
def no_waiting() -> Iterator[None]:
    """Refuses what a GPU would have to be waited for."""
    MODE.waiting = False
    try:
        yield
    finally:
        MODE.waiting = True


def _launch(kernel: Any, grid: tuple[int, ...], args: tuple, options: dict[str, Any]) -> None:
    """Checks a launch, then runs the kernel in the interpreter, or compiles it with Triton's launcher."""
    notes, names = kernel.fn.__annotations__, kernel.arg_names
    given = {**dict(zip(names, args, strict=False)), **options}
    assert len(args) <= len(names) and set(given) == {*names, *launch_options(Config(1, 1, 1, 1))}
    for name in names:
        value = given[name]
        if "constexpr" in str(notes.get(name)):
            assert isinstance(value, int | str), f"{name}: {value!r} for a constexpr"
        elif isinstance(value, Tensor):
            assert isinstance(value, FakeCuda), f"{name} lies on {value.device}"
        elif value is not None:
            limit = 2**32 if name in RECIPROCALS else 2**31
            assert type(value) is int and -limit <= value < limit, f"{name}: {value!r}, no integer of 32 bits"
    assert len(grid) <= 3 and all(0 < side <= most for side, most in zip(grid, GRID, strict=False)), f"grid {grid}"
    launches.append((kernel.fn.__name__, tuple(grid)))
    with _disable_current_modes():
        numbers = [value.inner if isinstance(value, FakeCuda) else value for value in args]
        kernel.run(*numbers, grid=grid, warmup=not interpreting(), **options)


def install() -> None:
    """Puts the GPU in place, for good."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import KernelInterface

    from spfde.kernels import conv2d, norm_act, spmm
    from spfde.sparse import plan

    cuda = torch.cuda
    cuda.is_available, cuda._lazy_init, cuda.synchronize = lambda: True, lambda: None, lambda *_: None
    cuda.device_count, cuda.current_device = lambda: 1, lambda: 0
    cuda._exchange_device = cuda._maybe_exchange_device = lambda index: 0
    cuda.get_rng_state, cuda.set_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8), lambda *_: None
    cuda.default_generators = (torch.Generator(),)
    cuda.max_memory_allocated, cuda.reset_peak_memory_stats = lambda *_: 2**20, lambda *_: None
    cuda.Event, cuda._sleep = _Event, lambda cycles: None
    cuda.set_sync_debug_mode = lambda mode: setattr(MODE, "waiting", mode != "error")
    cuda.get_device_properties = lambda device=None: H200
    Tensor.to, torch.tensor = _indexed(Tensor.to), _indexed(torch.tensor)
    Tensor.cuda = lambda self, device=None, non_blocking=False: self.to(DEVICE, non_blocking=non_blocking)
    driver.set_active(SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 10 * H200.major + H200.minor, 32),
    ))  # fmt: skip
    KernelInterface.__getitem__ = lambda kernel, grid: lambda *args, **options: _launch(kernel, grid, args, options)
    for module in (spmm, conv2d, norm_act):  # not for a tensor subclass alone
        module.through_dispatcher = lambda x: torch.compiler.is_compiling()
    plan._disable_current_modes = _modes_of_a_gpu
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda"): made on the CPU, then moved
    MODE.__enter__()


@contextmanager
def _modes_of_a_gpu() -> Iterator[None]:
    """No mode but the device itself, which a real one is not."""
    with _disable_current_modes(), MODE:
        yield


class _Event:
    """A moment of the CPU's."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, later: _Event) -> float:
        return 1e3 * (later.at - self.at)


def _indexed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, told which `cuda` is meant: without an index torch would ask CUDA."""
    named = lambda argument: DEVICE if argument in ("cuda", torch.device("cuda")) else argument  # noqa: E731
    return lambda *args, **options: function(*map(named, args), **{key: named(v) for key, v in options.items()})


def pytest_configure() -> None:
    install()
