"""Measures which kernel is fastest for each sparse layer of a model, and lets a table of such measurements decide."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spfde._machine import Machine
from spfde._modules import eval_mode, random_state_restored, run
from spfde.kernels.dispatch import in_use
from spfde.kernels.dispatch.rule import candidates, forget
from spfde.kernels.dispatch.table import Table
from spfde.kernels.gpu import gpu_at
from spfde.kernels.memory_format import memory_format_of
from spfde.kernels.problem import Problem
from spfde.nn import SparseLayer
from spfde.tuning.measure import Case, checking_clock, measure, plain_clock


def tune(
    model: nn.Module, example_input: Any, *, table: Table | None = None, repeats: int = 9, threads: int | None = None
) -> Table:
    """Measures the kernels of every sparse layer, forward + backward, and fixes the layers' choices.

    example_input: a batch as in training (a tuple: positional arguments, a mapping: keywords): another batch size or
    image size is another problem, which the table leaves to the cost model. table: measurements to add to; what it
    holds is not measured again. repeats: timings of each kernel, taken in turns after warm-up; their median counts.
    threads: for a model on a CPU; torch's if None.

    The model runs once, in eval mode; weights, gradients, buffers, modes and torch's random state stay as they are. A
    layer whose `kernel` is forced is measured too and stays forced. Returns the table, which the layers now use (see
    `use_table`).

    On a GPU: Triton's kernels where they can run, each with the fastest of its launches, in the precision and memory
    format that the layers were given, by the GPU's own clock, with torch's flags for TF32 as they are.

    Raises:
        ValueError: `repeats` or `threads` is not a positive whole number, `table` was measured elsewhere, the sparse
            layers are not on one device, or none that runs has kernels to choose among.
        RuntimeError: a kernel of a layer does not run on this GPU; says why.
    """
    for name, value in (("repeats", repeats), ("threads", 1 if threads is None else threads)):
        if type(value) is not int or value < 1:
            raise ValueError(f"expected {name} to be a positive whole number, got {value!r}")
    device = _device(model)
    on_gpu = device.type == "cuda"
    if on_gpu and threads is not None:
        raise ValueError(f"expected threads of a model on a CPU, got {threads} for one on a GPU, try without")
    machine = Machine.of_gpu() if on_gpu else Machine.of_cpu(threads)
    table = Table(machine, ()) if table is None else table
    table.check_machine(machine, "tuning without a table")
    cases = _cases(model, example_input)
    if not cases:
        raise ValueError(
            "expected a model that runs sparse layers on a CPU, or in blocks on a GPU with triton, in float32 or lower "
            "precision, got none, try spfde.sparsify(model) first"
        )
    known = {entry.problem for entry in table.entries}
    clock = (checking_clock if on_gpu else plain_clock)(repeats, device.type)
    with _threads(machine.threads or torch.get_num_threads()):
        for case in cases:
            if case.problem not in known:
                entry, _ = measure(case, clock, gpu_at(device) if on_gpu else None, table)
                table = table.with_entries([entry])
    use_table(table, model)
    return table


def use_table(table: Table | str | Path | None, model: nn.Module | None = None) -> None:
    """Lets measurements choose kernels and launches, of every sparse layer in this process or of one model's.

    table: a Table, its file, or a folder of files, of which those of this machine count; None: the cost model again.
    model: its layers keep the table through deepcopy and pickle, ahead of the process's; it is not in state_dict.
    The variable SPFDE_TABLE names a file or folder for the process from outside.

    Raises:
        TypeError: `table` is none of these.
        OSError: a file cannot be read.
        ValueError: a file is no table or was measured on another machine, or the model has no sparse layer.
    """
    if not isinstance(table, Table | str | Path | None):
        raise TypeError(f"expected a spfde.Table, its path or None, got {type(table).__name__}, try Table.load(path)")
    tables = in_use.load(Path(table)) if isinstance(table, str | Path) else [] if table is None else [table]
    if model is None:
        in_use.use_everywhere(tables)
        forget()
        return
    layers = [module for module in model.modules() if isinstance(module, SparseLayer)]
    if not layers:
        raise ValueError("expected a model with sparse layers, got none, try spfde.sparsify(model) first")
    if len(tables) > 1:
        raise ValueError(f"expected one table for a model, got {len(tables)} in {table}, try one of its files")
    for layer in layers:
        layer.table = tables[0] if tables else None


def _device(model: nn.Module) -> torch.device:
    """The device that the sparse layers are on."""
    devices = sorted({str(m.values.device) for m in model.modules() if isinstance(m, SparseLayer)})
    if len(devices) > 1:
        raise ValueError(
            f"expected sparse layers on one device, got {', '.join(devices)}, try model.to({devices[0]!r})"
        )
    return torch.device(devices[0] if devices else "cpu")


def _cases(model: nn.Module, example_input: Any) -> list[Case]:
    """The distinct problems of one forward pass, each with the first layer that has it."""
    cases: dict[Problem, Case] = {}

    def see(layer: SparseLayer, _: Any, y: Tensor) -> None:
        (device, dtype, shape), problem = layer._last(), layer.choice.problem
        kernels = candidates(device, dtype, problem)
        if kernels:
            # A CPU computes in float32 whatever it is given; a GPU's result has its input's memory format.
            on_cpu = device == "cpu"
            dtype, memory = (torch.float32, torch.contiguous_format) if on_cpu else (dtype, memory_format_of(y))
            cases.setdefault(problem, Case(problem, layer, shape, dtype, memory, kernels))

    layers = [module for module in model.modules() if isinstance(module, SparseLayer)]
    hooks = [layer.register_forward_hook(see) for layer in layers]
    try:
        # Only a process that has compiled something has torch._dynamo, whose import takes a second.
        eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        with torch.no_grad(), _untouched(model), eager:
            run(model, example_input)
    finally:
        for hook in hooks:
            hook.remove()
    return list(cases.values())


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards modes, buffers and torch's random state are what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with random_state_restored(model), eval_mode(model):
        try:
            yield
        finally:
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
