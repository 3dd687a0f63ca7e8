"""Whether somebody else wrote an index in place: DDP, an average of models, a distributed checkpoint, `.data`."""

from __future__ import annotations

from torch import Tensor

from spfde._native import load
from spfde.sparse.index import Index

GLANCE = 1 << 12  # columns that a glance at an index reads


class Written:
    """What an index said when a plan was derived from it.

    torch counts most writes. Those past its count are found on a CPU alone, where a glance waits for nothing.
    """

    def __init__(self, index: Index) -> None:
        self._writes = _writes(index)
        self._glance, self._checksum = _fingerprint(index, GLANCE), _fingerprint(index, index.col.numel() + 1)
        self._counted: tuple[int, int] | None = None  # what `_writes` was before `suspect`

    def stale(self, index: Index) -> bool:
        """Whether the index may have been written."""
        row_ptr, col = index  # inline: every forward pass asks
        if self._writes is not None and self._writes != (row_ptr._version, col._version):
            return True
        if self._glance is None:
            return False
        rows, size = row_ptr.numel() - 1, col.numel()
        return self._glance != load().fingerprint(row_ptr.data_ptr(), rows, col.data_ptr(), size, GLANCE)

    def same(self, index: Index) -> bool:
        """Whether the index says what it said, whoever wrote it."""
        if self._checksum is None:
            return self._counted is not None and self._counted == _writes(index)
        return self._checksum == _fingerprint(index, index.col.numel() + 1)

    def suspect(self) -> None:
        """Takes the index for stale at every reading, until it is another one."""
        if self._writes is not None and self._counted is None:
            self._counted, self._writes = self._writes, (-1, -1)

    def accept(self, index: Index) -> None:
        """Takes the index for what it was: the same was written once more, as a broadcast does."""
        self._writes, self._counted = _writes(index), None


def _fingerprint(index: Index, most: int) -> int | None:
    """A checksum of an index in a CPU's memory, of about `most` of its columns; None for any other."""
    core, (row_ptr, col) = load(), index
    if isinstance(core, ImportError) or not col.is_cpu or type(col) is not Tensor:
        return None
    return core.fingerprint(row_ptr.data_ptr(), row_ptr.numel() - 1, col.data_ptr(), col.numel(), most)


def _writes(index: Index) -> tuple[int, int] | None:
    """How often torch saw the index written in place; None where it does not count."""
    return None if index.row_ptr.is_inference() else (index.row_ptr._version, index.col._version)
