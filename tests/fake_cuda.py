"""A GPU that is not there: tensors on `cuda` whose numbers lie in main memory, so that a CPU can run what a GPU will run.

Loaded as a pytest plugin (`-p fake_cuda`, with TRITON_INTERPRET=1 for the kernels) it holds for the whole process. It is as
strict as a GPU: operands of one op lie on one device, and what Triton is launched with are tensors on `cuda`, aligned as
torch allocates them, or integers of 32 bits. `no_waiting` refuses what makes the CPU wait for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
GRID = (2**31 - 1, 65535, 65535)  # programs that CUDA launches along each axis
H200 = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, shared_memory_per_block_optin=227 * 1024,
    L2_cache_size=50 * 2**20, total_memory=140 * 2**30,
)  # fmt: skip
# Ops for which a GPU is waited for: their result is a number, or its size is.
WAIT = {
    aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select, aten.unique_dim, aten._unique2,
    aten.unique_consecutive, aten.bincount,
}  # fmt: skip


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

    def __deepcopy__(self, memo):
        return memo.setdefault(id(self), _again(self))

    def __repr__(self, **_) -> str:
        return f"FakeCuda({self.inner})"


def _again(fake: FakeCuda) -> Tensor:
    new = FakeCuda(fake.inner.clone())
    return torch.nn.Parameter(new, fake.requires_grad) if isinstance(fake, torch.nn.Parameter) else new


class _Mode(TorchDispatchMode):
    """Runs every op on the numbers, and refuses what a GPU refuses."""

    waiting = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func.namespace not in ("aten", "prims"):  # a registered op of ours: its parts are what is looked at
            with self:
                return torch._library.custom_ops.OPDEFS[func._schema.name]._backend_fns[None](*args, **kwargs)
        packet, tensors = func.overloadpacket, [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        fakes = [t for t in tensors if isinstance(t, FakeCuda)]
        to = kwargs.get("device")
        on_cuda = bool(fakes) if to is None else torch.device(to).type != "cpu"
        self._check(func, packet, args, kwargs, tensors, fakes, on_cuda)
        if to is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        inner_args, inner_kwargs = tree_map_only(FakeCuda, lambda t: t.inner, (args, kwargs))
        result = func(*inner_args, **inner_kwargs)
        if not on_cuda:
            return result
        written = [a for a, info in zip(args, func._schema.arguments, strict=False)
                   if info.alias_info is not None and info.alias_info.is_write]  # fmt: skip
        written += [kwargs[name] for name in ("out",) if name in kwargs]
        known = {id(t.inner): t for t in written if isinstance(t, FakeCuda)}
        return tree_map_only(Tensor, lambda t: known[id(t)] if id(t) in known else FakeCuda(t), result)

    def _check(self, func, packet, args, kwargs, tensors, fakes, on_cuda) -> None:
        moved = packet in (aten._to_copy, aten.copy_) and len({isinstance(t, FakeCuda) for t in tensors} | {on_cuda}) == 2
        numbers = all(isinstance(t, FakeCuda) or t.dim() == 0 for t in tensors)
        indexed = packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and tensors[0] in (
            fakes[:1] if fakes else ()
        )
        if fakes and not (moved or numbers or packet in (aten._to_copy, aten.copy_)):
            assert indexed, f"{func} of tensors on cuda and cpu"
        generator = kwargs.get("generator")
        assert not (on_cuda and isinstance(generator, torch.Generator)), f"{func} on cuda with a CPU generator"
        truth = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            isinstance(t, Tensor) and t.dtype == torch.bool for t in args[1]
        )
        if truth and packet is not aten.index:
            truth = args[2].numel() != 1  # masked_fill, that is
        sized = packet is aten.repeat_interleave and kwargs.get("output_size") is None
        crossing = moved and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        on_gpu = bool(fakes) or on_cuda
        if not self.waiting and on_gpu and (packet in WAIT or truth or sized or crossing or not numbers):
            raise AssertionError(f"{func} waits for the GPU")


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
    """Checks the arguments of a launch as Triton's launcher reads them, and runs the kernel in the interpreter."""
    notes, names = kernel.fn.__annotations__, kernel.arg_names
    given = {**dict(zip(names, args, strict=False)), **options}
    assert len(args) <= len(names) and set(given) == {*names, "num_warps", "num_stages", "enable_fp_fusion"}
    for name in names:
        value = given[name]
        if "constexpr" in str(notes.get(name)):
            assert isinstance(value, int | str), f"{name}: {value!r} for a constexpr"
        elif isinstance(value, Tensor):
            assert isinstance(value, FakeCuda), f"{name} lies on {value.device}"
        elif value is not None:
            assert type(value) is int and -(2**31) <= value < 2**31, f"{name}: {value!r}, no integer of 32 bits"
    assert len(grid) <= 3 and all(0 < side <= most for side, most in zip(grid, GRID, strict=False)), f"grid {grid}"
    launches.append((kernel.fn.__name__, tuple(grid)))
    with _disable_current_modes():
        numbers = [value.inner if isinstance(value, FakeCuda) else value for value in args]
        kernel.run(*numbers, grid=grid, warmup=False, **options)


def install() -> None:
    """Puts the GPU in place, for good."""
    from triton.runtime.jit import KernelInterface

    from spfde.kernels import conv2d, norm_act, spmm

    cuda, to = torch.cuda, Tensor.to
    cuda.is_available, cuda._lazy_init, cuda.synchronize = lambda: True, lambda: None, lambda *_: None
    cuda.device_count, cuda.current_device = lambda: 1, lambda: 0
    cuda._exchange_device = cuda._maybe_exchange_device = lambda index: 0
    cuda.set_sync_debug_mode = lambda mode: setattr(MODE, "waiting", mode != "error")
    cuda.get_device_properties = lambda device=None: H200
    Tensor.to = lambda self, *args, **kwargs: to(self, *map(_named, args), **{k: _named(v) for k, v in kwargs.items()})
    Tensor.cuda = lambda self, device=None, non_blocking=False: self.to(DEVICE, non_blocking=non_blocking)
    KernelInterface.__getitem__ = lambda kernel, grid: lambda *args, **options: _launch(kernel, grid, args, options)
    for module in (spmm, conv2d, norm_act):  # not for a tensor subclass alone
        module.through_dispatcher = lambda x: torch.compiler.is_compiling()
    MODE.__enter__()


def _named(argument: Any) -> Any:
    """The device by its index: torch would ask CUDA which is the current one."""
    return DEVICE if argument in ("cuda", torch.device("cuda")) else argument


def pytest_configure() -> None:
    install()
