"""A model as a graph: torch.export's program, and ONNX."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn

from spfde._modules import as_args, eval_mode, run, tensors
from spfde.export.dense import to_dense
from spfde.export.parity import Exported, batch_dimensions, compare, other_batch, outputs


def program(
    model: nn.Module, example_input: Any, *, dynamic_batch: bool = True, dense: bool = False
) -> torch.export.ExportedProgram:
    """The torch.export program of the model in eval mode, for any batch size, compared with it on two of them.

    Sparse layers are calls of spfde's registered ops, so that what loads the program imports spfde; with `dense` they
    are torch's own. example_input: a batch (a tuple: positional arguments, a mapping: keywords).

    Raises:
        ValueError: the program computes something else, or holds for this batch size alone.
    """
    exported = to_dense(model, example_input) if dense else model
    args, kwargs = as_args(example_input)
    shapes = _shapes(example_input) if dynamic_batch else None
    with eval_mode(exported), _quietly():
        try:
            made = torch.export.export(exported, args, kwargs, dynamic_shapes=shapes)
        except Exception as error:
            if not dynamic_batch:
                raise
            what = " ".join(str(error).split())[:300]
            raise ValueError(
                f"expected a model that torch.export traces for any batch size, got {type(error).__name__}: {what}, "
                "try dynamic_batch=False"
            ) from error
    batches = [example_input, other_batch(example_input)] if dynamic_batch else [example_input]
    for batch in batches:
        with torch.no_grad():
            found = list(tensors(run(made.module(), batch)))
        compare(found, outputs(model, batch), "the exported program")
    return made


def onnx(model: nn.Module, path: str | Path, example_input: Any, *, dynamic_batch: bool = True) -> Exported:
    """Writes the model in eval mode as ONNX, dense weights with exact zeros, and compares with it on two batch sizes.

    The comparison runs onnxruntime where it is installed, else onnx's reference evaluator. Arguments as in `program`.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed.
        ValueError: the graph computes something else.
    """
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"expected {name}, got no such module, try pip install spfde[export]")
    path, dense = Path(path), to_dense(model, example_input)
    args, kwargs = as_args(example_input)
    shapes = _shapes(example_input) if dynamic_batch else None
    with eval_mode(dense), _quietly():
        made = torch.onnx.export(dense, args, None, kwargs=kwargs, dynamo=True, dynamic_shapes=shapes, verbose=False)
    made.save(str(path), external_data=False)
    checked_by, call = _runner(path)
    batches = [example_input, other_batch(example_input)] if dynamic_batch else [example_input]
    wanted = [outputs(model, batch) for batch in batches]
    error = max(compare(call(batch), y, "the ONNX graph") for batch, y in zip(batches, wanted, strict=True))
    return Exported(path, checked_by, error)


def _shapes(example_input: Any) -> Any:
    """Dynamic shapes as torch.export takes them: positional arguments in a tuple, or all by name."""
    args, kwargs = batch_dimensions(example_input, lambda: torch.export.Dim("batch", min=1))
    return kwargs if kwargs else args


def _runner(path: Path) -> tuple[str, Callable[[Any], Sequence[Tensor]]]:
    """What runs an ONNX file, and its call on a model's inputs."""
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names, evaluate = [each.name for each in session.get_inputs()], session.run
        by = f"onnxruntime {onnxruntime.__version__}"
    else:
        import onnx as package
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))
        names, evaluate, by = session.input_names, session.run, f"onnx {package.__version__}"

    def call(inputs: Any) -> list[Tensor]:
        args, kwargs = as_args(inputs)
        given = [tensor.cpu().numpy() for tensor in tensors([args, kwargs])]
        return [torch.from_numpy(y) for y in evaluate(None, dict(zip(names, given, strict=True)))]

    return by, call


@contextmanager
def _quietly():
    """Without what the tracers say of themselves."""
    level = logging.getLogger("torch.onnx").level
    with catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
