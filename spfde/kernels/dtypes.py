"""Which precision an op computes in, and which paths of torch see it.

Rule: on a CPU the native kernels compute in float32 whatever the input's precision; on a GPU the masked dense product
computes in autocast's precision, or the input's. float64 takes the reference path. The result has autocast's precision
where autocast is on, else the input's.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

_NOTHING = nullcontext()


def compute_and_result_dtype(x: Tensor, values: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """The precision an op computes in and that of its result.

    Raises:
        TypeError: x or values is not floating point.
    """
    if x.dtype is values.dtype is torch.float32 and x.is_cpu and not torch.is_autocast_enabled("cpu"):
        return torch.float32, torch.float32  # the common case, settled in a microsecond
    for name, tensor in (("x", x), ("values", values)):
        if not tensor.is_floating_point():
            raise TypeError(f"expected {name} to be floating point, got {tensor.dtype}, try {name}.float()")
    device = x.device.type
    result = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if torch.promote_types(x.dtype, values.dtype) == torch.float64:
        return torch.float64, torch.float64
    return (torch.float32 if device == "cpu" else result), result


def name_of(dtype: torch.dtype) -> str:
    """Its name as the native core takes it: "float32"."""
    return str(dtype).removeprefix("torch.")


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor in a precision; `Tensor.to` costs a microsecond even where it changes nothing."""
    return tensor if tensor is None or tensor.dtype is dtype else tensor.to(dtype)


def packed(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The same without gaps in memory, as the native kernels read parameters."""
    tensor = cast(tensor, dtype)
    return tensor if tensor is None or tensor.is_contiguous() else tensor.contiguous()


def without_autocast(device: str) -> AbstractContextManager:
    """Keeps autocast from changing the precision an op has settled."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING


def without_graph() -> AbstractContextManager:
    """Keeps a backward pass from recording itself, where it would."""
    return torch.no_grad() if torch.is_grad_enabled() else _NOTHING


def through_dispatcher(x: Tensor) -> bool:
    """Whether the registered op must run: under torch.compile, fake tensors, subclasses and dispatch modes.

    Otherwise calling the autograd function directly saves the dispatcher's overhead.
    """
    return torch.compiler.is_compiling() or type(x) is not Tensor or torch._C._len_torch_dispatch_stack() > 0


def in_torch_ops() -> bool:
    """Whether something looks through an op, which must then be made of torch's own.

    That is torch.func (vmap, grad, jvp, ...), a forward-mode derivative or torch.jit.trace.
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return torch._C._get_tracing_state() is not None


def exports_to_onnx() -> bool:
    """Whether a graph is made for ONNX, which knows torch's ops only."""
    onnx = sys.modules.get("torch.onnx")  # torch imports it when it is first used
    return onnx is not None and onnx.is_in_onnx_export()


def is_batched(tensor: Tensor) -> bool:
    """Whether it stands for many: under vmap, or one of `is_grads_batched`."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)
