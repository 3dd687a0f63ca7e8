"""Cells made by hand."""

from __future__ import annotations

from collections.abc import Mapping

from record import Cell, Record, Timing

NONE: Mapping[str, str] = {}


def timing(median: float) -> Timing:
    return Timing(median, median * 0.9, median * 0.95, median * 1.05)


def cell(sparsity: float = 0.9, pattern: str = "unstructured", absent: Mapping[str, str] = NONE, **ms: float) -> Cell:
    """A convolution; ways are named by keywords with _ for a blank, times in milliseconds."""
    seconds = {name.replace("_", " "): timing(value / 1e3) for name, value in ms.items()}
    shape = ("conv 3x3 8x8 4px b2", "conv", "conv 3x3", 32)
    return Cell(*shape, pattern, sparsity, 1 - sparsity, seconds, dict(absent))


def record(*cells: Cell) -> Record:
    about = {
        "cpu": "a processor",
        "threads": 2,
        "isa": "avx2",
        "torch": "2.13",
        "spfde": "0.1",
        "date": "2026-01-01T00",
    }
    return Record(about, "python layers.py", 9, cells)
