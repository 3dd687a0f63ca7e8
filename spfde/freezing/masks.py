"""Whether masks have moved: what was seen of a network before such a move says little about it after."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from spfde.nn.indexed import Indexed
from spfde.sparse.plan import Plan


class MaskWatch:
    """Tells whether a mask of `model` has moved since the last time it was asked.

    Its state tells so across a checkpoint: whoever moved the masks, and whether before saving or after loading.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, Indexed)]
        self._seen = self._now()
        self._digests: list[int] | None = None  # of a state that was loaded, until the next look
        self._pending = False

    def moved(self) -> bool:
        """Whether a mask has moved since the last call, or since this was made."""
        moved, self._seen = self._changed(), self._now()
        self._digests, self._pending = None, False
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Whether a move was not told of yet, and what the masks are."""
        return {"pending": self._changed(), "digests": self._digest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`'s values; the masks may be loaded before or after."""
        self._digests, self._pending = list(state["digests"]), bool(state["pending"])

    def _changed(self) -> bool:
        if self._digests is not None:
            return self._pending or self._digests != self._digest()
        now = self._now()
        return any(a is not b or u != v for (a, u), (b, v) in zip(self._seen, now, strict=True))

    def _now(self) -> list[tuple[Plan, int]]:
        plans = [layer.plan for layer in self._layers]
        return [(plan, plan.topology_version) for plan in plans]

    def _digest(self) -> list[int]:
        parts = ((layer.row_ptr, layer.col[: layer.nnz]) for layer in self._layers)
        return [zlib.crc32(col.cpu().numpy(), zlib.crc32(rows.cpu().numpy())) for rows, col in parts]
