"""Cells and records made by hand."""

from record import Cell, Record

from spfde.tuning.samples import Timing

ABOUT = {"cpu": "a CPU", "threads": 2, "isa": "avx2", "torch": "2.13", "spfde": "0.1", "date": "2026-01-02T03:04"}


def timing(seconds):
    return Timing(seconds, seconds * 0.9, seconds * 0.95, seconds * 1.05)


def cell(sparsity=0.9, pattern="unstructured", absent=(), **ms):
    """A convolution; variants are named by keywords with _ for a blank, milliseconds of a step."""
    seconds = {name.replace("_", " "): {"step": timing(value / 1e3)} for name, value in ms.items()}
    shape = ("conv 3x3 8x8 4px b2", "conv", "conv 3x3", 32)
    return Cell(*shape, pattern, sparsity, 1 - sparsity, seconds, dict(absent))


def of_case(case, auto="", **parts):
    """A cell of a GPU: seconds of ours by part with _ for a blank, beside dense ones of 10 s for every part."""
    ours = {part.replace("_", " "): timing(seconds) for part, seconds in parts.items()}
    seconds = {"dense": dict.fromkeys((*ours, "step"), timing(10.0)), "triton": ours}
    layer = case.layer
    shape = (str(layer), layer.kind, layer.group, layer.lanes, case.pattern, case.sparsity, 1 - case.sparsity)
    return Cell(*shape, seconds, {}, case.dtype, str(case), auto=auto)


def record(*cells, **about):
    return Record({**ABOUT, **about}, "python layers.py", 9, cells)
