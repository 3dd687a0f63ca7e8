"""Measures which kernel is fastest for each sparse layer of a model, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spfde.kernels import conv2d, spmm
from spfde.kernels.dispatch.problem import Problem
from spfde.kernels.dispatch.rule import candidates
from spfde.kernels.dispatch.table import Entry, Machine, Table
from spfde.kernels.memory_format import memory_format_of
from spfde.nn import SparseConv2d, SparseLayer
from spfde.tuning import timing


class Case(NamedTuple):
    """A layer, the input its op was given, and the kernels that can run."""

    layer: SparseLayer
    shape: torch.Size
    dtype: torch.dtype
    memory: torch.memory_format
    kernels: tuple[str, ...]


def tune(
    model: nn.Module, example_input: Any, *, table: Table | None = None, repeats: int = 9, threads: int | None = None
) -> Table:
    """Measures the kernels of every sparse layer, forward + backward, and fixes the layers' choices.

    example_input: a batch as in training, or a tuple of inputs: another batch size or image size is another problem,
    which the table leaves to the cost model. table: measurements to add to; what it holds is not measured again.
    repeats: timings of each kernel, taken in turns after warm-up; their median counts. threads: for a model on a CPU;
    torch's if None.

    The model runs once, in eval mode; weights, gradients, buffers, modes and torch's random state stay as they are. A
    layer whose `kernel` is forced is measured too and stays forced. Returns the table, which the layers now use (see
    `use_table`).

    On a GPU: Triton's kernels where they can run, in the precision and memory format that the layers were given, by the
    GPU's own clock, with torch's flags for TF32 as they are.

    Raises:
        ValueError: `repeats` or `threads` is not a positive whole number, `table` was measured elsewhere, the sparse
            layers are not on one device, or none that runs has kernels to choose among.
    """
    for name, value in (("repeats", repeats), ("threads", 1 if threads is None else threads)):
        if type(value) is not int or value < 1:
            raise ValueError(f"expected {name} to be a positive whole number, got {value!r}")
    device = _device(model)
    if device == "cuda" and threads is not None:
        raise ValueError(f"expected threads of a model on a CPU, got {threads} for one on a GPU, try without")
    machine = Machine.of_gpu() if device == "cuda" else Machine.here(threads)
    table = Table(machine, ()) if table is None else table
    table.check_machine(machine, "tuning without a table")
    cases = _cases(model, example_input)
    if not cases:
        raise ValueError(
            "expected a model that runs sparse layers on a CPU, or in blocks on a GPU with triton, in float32 or lower "
            "precision, got none, try spfde.sparsify(model) first"
        )
    known = {entry.problem for entry in table.entries}
    with _threads(machine.threads or torch.get_num_threads()):
        new = [Entry(p, _measure(case, repeats)) for p, case in cases.items() if p not in known]
    table = table.with_entries(new)
    use_table(model, table)
    return table


def use_table(model: nn.Module, table: Table | None) -> None:
    """Lets a table choose the kernels of every sparse layer of a model, or the cost model again (None).

    The layers keep it through deepcopy and pickle; it is not part of state_dict.

    Raises:
        TypeError: `table` is neither.
        ValueError: the model has no sparse layer.
    """
    if not isinstance(table, Table | None):
        raise TypeError(f"expected a spfde.Table or None, got {type(table).__name__}, try spfde.Table.load(path)")
    layers = [module for module in model.modules() if isinstance(module, SparseLayer)]
    if not layers:
        raise ValueError("expected a model with sparse layers, got none, try spfde.sparsify(model) first")
    for layer in layers:
        layer.table = table


def _device(model: nn.Module) -> str:
    """The type of the device that the sparse layers are on."""
    devices = sorted({str(m.values.device) for m in model.modules() if isinstance(m, SparseLayer)})
    if len(devices) > 1:
        raise ValueError(
            f"expected sparse layers on one device, got {', '.join(devices)}, try model.to({devices[0]!r})"
        )
    return torch.device(devices[0]).type if devices else "cpu"


def _cases(model: nn.Module, example_input: Any) -> dict[Problem, Case]:
    """The distinct problems of one forward pass, each with the first layer that has it."""
    cases: dict[Problem, Case] = {}

    def see(layer: SparseLayer, _: Any, y: Tensor) -> None:
        (device, dtype, shape), problem = layer._seen, layer.choice.problem
        kernels = candidates(device, dtype, problem)
        if kernels:
            # A result has its input's memory format.
            memory = torch.contiguous_format if device == "cpu" else memory_format_of(y)
            cases.setdefault(problem, Case(layer, shape, dtype, memory, kernels))

    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    layers = [module for module in model.modules() if isinstance(module, SparseLayer)]
    hooks = [layer.register_forward_hook(see) for layer in layers]
    try:
        with torch.no_grad(), _untouched(model), torch.compiler.set_stance("force_eager"):
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return cases


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards modes, buffers and torch's random state are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(case: Case, repeats: int) -> tuple[tuple[str, float], ...]:
    """Median seconds of each candidate; they take turns, so that a busy machine slows all of them alike."""
    device = case.layer.values.device
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        steps = {kernel: _step(case, kernel) for kernel in case.kernels}
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return tuple(timing.medians(steps, repeats, device.type).items())


def _step(case: Case, kernel: str) -> Callable[[], object]:
    """Forward and backward of the layer's op on random input: no gradient reaches the layer, no scratch stays there."""
    layer, shape, device = case.layer, case.shape, case.layer.values.device
    dtype = torch.float32 if device.type == "cpu" else case.dtype
    generator = torch.Generator().manual_seed(0)

    def random(shape: torch.Size) -> Tensor:
        x = torch.randn(shape, generator=generator).to(device, dtype)
        return x.contiguous(memory_format=case.memory) if x.dim() == 4 else x

    x = random(shape).requires_grad_()
    values = layer.values.detach().to(dtype).requires_grad_()
    bias = None if layer.bias is None else layer.bias.detach().to(dtype).requires_grad_()
    plan = replace(layer.plan, _dense=None)

    def forward() -> Tensor:
        if isinstance(layer, SparseConv2d):
            return conv2d(x, values, plan, bias, kernel)
        return spmm(x, values, plan, bias, kernel)

    inputs = [x, values] if bias is None else [x, values, bias]
    dy = random(forward().shape)
    return lambda: torch.autograd.grad(forward(), inputs, dy)
