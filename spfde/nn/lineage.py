"""Copies of a layer: averages that follow its moves, and others, which must not be averaged once it has moved.

A deep copy has slots of its own. While both masks are the same, code that goes through Parameters slot by slot (an
average of models) does right; once the model's mask has moved, slot i is one weight here and another one there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import ReferenceType, WeakSet, ref

import torch
from torch import Tensor

from spfde.sparse.index import Index

if TYPE_CHECKING:
    from spfde.nn.indexed import Indexed

# AveragedModel, timm's ModelEmaV3, ModelEMA, ExponentialMovingAverage, ...: they copy the model that they average.
_AVERAGE = re.compile(r"(?<![A-Z])EMA(?![A-Z])|Ema(?![a-z])|Average")
_COPYING = frozenset({"__deepcopy__", "__setstate__", "__reduce_ex__"})
SAMPLE = 1 << 10  # values that a glance for writes past torch's count reads
NEGLIGIBLE = 1e-6  # share of a model in an average that is none
_MIXED = (
    "expected a copy of a layer to be averaged weight by weight, got one that was written slot by slot after its "
    "model's mask had moved, so that it mixes different weights, try spfde.integrations.EMA(model, topology), "
    "topology.follow(copy), or load_state_dict to copy the model"
)


class Follower(Protocol):
    """What moves when a layer does."""

    def follow(self, positions: Tensor) -> None:
        """Takes over the positions [nnz] (int64, ascending) that the layer now stores."""

    def reserve(self, capacity: int) -> None:
        """Takes over the room for `capacity` blocks that the layer now has."""

    def harden(self, order: Tensor) -> None:
        """Takes over the order [n] (int64) that the layer's learned permutation became."""


class _Values(NamedTuple):
    """What changes when values are written."""

    version: int
    sample: bytes | None

    @classmethod
    def of(cls, values: Tensor) -> _Values:
        values = values.detach()
        if not values.is_cpu or type(values) is not Tensor:
            return cls(0 if values.is_inference() else values._version, None)
        flat = values.reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLE)].double().numpy().tobytes()
        return cls(0 if values.is_inference() else values._version, sample)


class Lineage:
    """Whose copy a layer is, and what follows it; all of them may be gone.

    followers: of the layer. copies: deep copies that do not follow. origin: what the layer is a copy of, unless it
    leads a life of its own. mover: what moves it, if not its lineage. kept: the index of one that follows, whatever an
    average writes over it. suspected: the values when the origin first moved away.
    """

    def __init__(self, origin: Indexed | None = None, follows: bool = False) -> None:
        self.owner: ReferenceType[Indexed] | None = None
        self.origin = None if origin is None else ref(origin)
        self.follows = follows
        self.followers: WeakSet[Follower] = WeakSet()
        self.copies: WeakSet[Indexed] = WeakSet()
        self.kept: Index | None = None
        self.mover: Follower | None = None
        self.suspected: _Values | None = None
        self._hooked = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Lineage:
        return Lineage(None if self.owner is None else self.owner(), _copied_by_an_average())

    def __reduce__(self) -> tuple[type[Lineage], tuple[()]]:
        return Lineage, ()

    def begin(self, layer: Indexed) -> None:
        """The layer is made, or copied."""
        if self.owner is not None and self.owner() is not None:
            return  # a shallow copy shares what it was made from
        self.owner = ref(layer)
        origin = self.origin and self.origin()
        if origin is None:
            return
        if self.follows:
            origin._lineage.followers.add(self)
            self.keep()
        else:
            origin._lineage.copies.add(layer)

    def lead(self, other: Indexed, follower: Follower | None = None) -> None:
        """Lets another layer follow this one, by `follower` in place of its own lineage."""
        theirs = other._lineage
        theirs.leave()
        theirs.origin, theirs.follows = self.owner, True
        theirs.keep()
        theirs.mover = follower  # lives as long as what it moves
        self.followers.add(theirs if follower is None else follower)

    def leave(self) -> None:
        """The layer is no copy any more: it is trained, or moved, by itself."""
        origin, layer = self.origin and self.origin(), self.owner and self.owner()
        if origin is not None:
            origin._lineage.followers.discard(self)
            origin._lineage.copies.discard(layer)
        self.origin, self.follows, self.kept, self.suspected = None, False, None, None

    # ---- the layer changed -------------------------------------------------------------------------------------------

    def changed(self, positions: Tensor) -> None:
        """The layer stores other positions than before: what follows does too, other copies are looked after."""
        self.keep()
        for follower in list(self.followers):
            follower.follow(positions)
        for copy in list(self.copies):
            copy._lineage.suspect()

    def enlarged(self, capacity: int) -> None:
        """The layer has more room."""
        self.keep()
        for follower in list(self.followers):
            follower.reserve(capacity)

    def hardened(self, order: Tensor) -> None:
        """The layer's learned permutation became an index."""
        for follower in list(self.followers):
            follower.harden(order)

    @property
    def led(self) -> bool:
        """Whether anything follows the layer, or is its copy."""
        return bool(self.followers) or bool(self.copies)

    def keep(self) -> None:
        """Remembers the index of a layer that follows."""
        layer = self.owner and self.owner()
        if self.follows and layer is not None and not layer.row_ptr.is_meta:
            self.kept = Index(layer.row_ptr.clone(), layer.col.clone())

    def reread(self) -> None:
        """The layer was loaded: values and index belong together."""
        self.suspected = None
        self.keep()

    def converted(self) -> None:
        """The layer went to another device or precision."""
        layer = self.owner and self.owner()
        self.keep()
        if self.suspected is not None and layer is not None and layer._plan is not None:
            self.suspected = _Values.of(layer.values)
            layer._plan.written.suspect()

    # ---- the layer is a copy -----------------------------------------------------------------------------------------

    def follow(self, positions: Tensor) -> None:
        """Moves the layer along: what it has at kept positions stays, the rest starts at 0."""
        layer = self.owner and self.owner()
        if layer is not None and not layer.row_ptr.is_meta:
            self.mend(layer)
            positions = positions.to(layer.values.device, copy=True)
            if not _equal(layer.positions(), positions):
                layer.enlarge(positions.numel())
                layer._carry_to(positions)

    def reserve(self, capacity: int) -> None:
        """Gives the layer as much room."""
        layer = self.owner and self.owner()
        if layer is not None and not layer.row_ptr.is_meta:
            self.mend(layer)
            layer.enlarge(capacity)

    def harden(self, order: Tensor) -> None:
        """Makes the permutation of the layer the same index."""
        layer = self.owner and self.owner()
        if layer is not None and not layer.row_ptr.is_meta:
            self.mend(layer)
            layer.harden(order.to(layer.values.device))

    def suspect(self) -> None:
        """The origin moved away: from now on the layer's values must not be written slot by slot."""
        layer = self.owner and self.owner()
        if layer is None or layer._plan is None or layer.values.grad is not None:
            return
        if self.suspected is None:
            self.suspected = _Values.of(layer.values)
            layer._plan.written.suspect()
        if layer.values.requires_grad and layer.values.is_leaf and not self._hooked:
            own = ref(self)
            layer.values.register_post_accumulate_grad_hook(lambda _: (it := own()) is not None and it.leave())
            self._hooked = True

    def check(self, layer: Indexed, unwritten: bool) -> None:
        """Refuses a copy that was averaged with its origin across a move. unwritten: its index is as it was.

        Raises:
            ValueError: its values, or its index as well, were written in place since.
        """
        if self.suspected is None or layer.values.grad is not None:
            return
        origin = self.origin and self.origin()
        if unwritten:
            if _Values.of(layer.values) == self.suspected:
                return
        elif origin is None or origin._plan is None or not _same_index(layer, origin):
            self.suspected = None  # an index from elsewhere: a checkpoint that was loaded in place
            return
        elif layer.values.shape == origin.values.shape and _equal(layer.values, origin.values):
            self.suspected = None  # a whole copy, not an average
            return
        raise ValueError(_MIXED)

    def check_loaded(self, layer: Indexed, values: Tensor | None) -> str | None:
        """What is wrong with values about to be loaded: an average of the layer and its origin, slot by slot."""
        origin = self.origin and self.origin()
        if self.suspected is None or origin is None or values is None or values.shape != origin.values.shape:
            return None
        mine, theirs, loaded = (v.detach().double().cpu() for v in (layer.values, origin.values, values))
        apart, there = (mine - theirs).flatten(), (loaded - theirs).flatten()
        share = float(there @ apart / (apart @ apart).clamp_min(torch.finfo(torch.float64).tiny))
        nearest = min(share, 1 - share)  # of a whole copy 0; one weight or two may lie on the line by chance
        exact = float((there - share * apart).norm()) <= 0.01 * nearest * float(apart.norm())
        return _MIXED if nearest > NEGLIGIBLE and exact and values.numel() > 2 else None

    def mend(self, layer: Indexed) -> None:
        """Puts the index of a layer that follows right where an average of integers has rounded it down."""
        if not self.follows or self.kept is None:
            return
        with torch.no_grad():
            for written, kept in zip((layer.row_ptr, layer.col), self.kept, strict=True):
                if written.shape != kept.shape or torch.equal(written, kept):
                    continue
                short = kept - written
                if bool(((short >= 0) & (short <= 1 + kept // 50)).all()):
                    written.copy_(kept)


def _same_index(one: Indexed, other: Indexed) -> bool:
    return _equal(one.row_ptr, other.row_ptr) and _equal(one.col, other.col)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.detach(), other.detach().to(one))


def _copied_by_an_average() -> bool:
    """Whether what called `copy.deepcopy` is the making of an average of models."""
    frame = next(_callers(), None)
    if frame is None or frame.f_code.co_name != "__init__":
        return False
    maker = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None
    return any(_AVERAGE.search(kind.__name__) for kind in type(maker).__mro__)


def _callers() -> Iterator[Any]:
    """The frames above the deep copy."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__") != "copy" and frame.f_code.co_name not in _COPYING:
            yield frame
        frame = frame.f_back
