"""When which block was frozen, as planned and as it went, and what that saved."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from spfde.freezing.cache.budget import show
from spfde.freezing.schedule import front_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 72  # of the timeline in text; longer trainings have several epochs in one
ACTIVE, FROZEN, PARTLY, PLANNED = "·", "█", "▒", "░"

Sets = tuple[tuple[str, ...], ...]  # the blocks that are frozen, by epoch


class Record(Protocol):
    """What is needed of a run's record of an epoch (`result.epochs` of `spfde.train.fit`)."""

    samples: int
    flops: float
    frozen: tuple[str, ...]
    cache: Mapping[str, float]

    @property
    def training_seconds(self) -> float:
        """Seconds of the epoch without evaluation and checkpoint."""


@dataclass(frozen=True)
class Cost:
    """What an epoch cost: training FLOPs and seconds, for so many samples.

    hits, misses: samples that the activation cache had, or not. spared: FLOPs that the hits saved, which `flops` does
    without. held: bytes of the cache.
    """

    samples: int
    flops: float
    seconds: float
    hits: int = 0
    misses: int = 0
    spared: float = 0.0
    held: int = 0

    @classmethod
    def of(cls, record: Record) -> Cost:
        """That of a record."""
        hits, misses, spared, held = (record.cache.get(name, 0) for name in ("hits", "misses", "flops", "bytes"))
        return cls(record.samples, record.flops, record.training_seconds, int(hits), int(misses), spared, int(held))


@dataclass(frozen=True)
class FreezeReport:
    """A freezer's plan and history; `print` draws it.

    method: the freezer's. blocks: names, front to back. planned: what is frozen in each epoch of the whole training; ()
    where that is decided as it goes. done: the same for the epochs up to now. flops, seconds: of a training step with
    the first 0, 1, ... blocks frozen; () where they are not known. costs: of the epochs up to now, from a run's
    records, or (). reason: why the plan is as it is, or what was decided last.
    """

    method: str
    blocks: tuple[str, ...]
    planned: Sets
    done: Sets
    flops: tuple[float, ...]
    seconds: tuple[float, ...] = ()
    costs: tuple[Cost, ...] = ()
    reason: str = ""

    def after(self, records: Iterable[Record]) -> FreezeReport:
        """The same freezer by the records of a run's epochs: what was frozen then, and what they cost."""
        records = tuple(records)
        costs = tuple(map(Cost.of, records))
        fields = {name: value for name, value in vars(self).items() if name not in ("done", "costs")}
        return FreezeReport(**fields, done=tuple(tuple(each.frozen) for each in records), costs=costs)

    @property
    def planned_flops(self) -> float | None:
        """Share of the whole training's FLOPs that the plan saves; None without a plan."""
        return self._planned(self.flops)

    @property
    def planned_seconds(self) -> float | None:
        """Share of the whole training's seconds that the plan saves; None where no seconds were measured for it."""
        return self._planned(self.seconds)

    @property
    def saved_flops(self) -> float | None:
        """Share of the FLOPs of the epochs up to now that freezing saved, and the cache; None before the first."""
        if not self.done or not self.flops:
            return None
        share = [self.flops[front_of(self.blocks, frozen)] / self.flops[0] for frozen in self.done]
        spent = [cost.flops for cost in self.costs] or share
        computed = [cost.flops + cost.spared for cost in self.costs] or share  # without a cache
        return 1 - sum(spent) / sum(each / left for each, left in zip(computed, share, strict=True))

    @property
    def saved_seconds(self) -> float | None:
        """Share of the seconds of the epochs up to now that freezing saved; None where that cannot be told.

        Against the median seconds of a sample in epochs with nothing frozen, of which the first, with the time that
        starting takes, only counts if it is alone.
        """
        costs = list(zip(self.costs, self.done, strict=False))
        whole = [cost.seconds / cost.samples for cost, frozen in costs if not frozen]
        if not whole:
            return None
        sample = statistics.median(whole[1:] or whole)
        frozen = [cost for cost, names in costs if names]
        return sum(sample * c.samples - c.seconds for c in frozen) / sum(
            sample * c.samples if names else c.seconds for c, names in costs
        )

    @classmethod
    def of_records(cls, records: Sequence[Record]) -> FreezeReport:
        """What a run's records tell by themselves, of a freezer that is not known: the blocks as they froze first."""
        blocks = tuple(dict.fromkeys(name for record in records for name in record.frozen))
        return cls("a freezer", blocks, (), (), ()).after(records)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without what records of epochs hold too."""
        return {name: value for name, value in asdict(self).items() if name not in ("done", "costs")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], records: Iterable[Record] = ()) -> FreezeReport:
        """What `to_dict` gave, with a run's records.

        Raises:
            ValueError: they are no values of a report.
        """
        try:
            made = cls(
                method=str(values["method"]),
                blocks=tuple(map(str, values["blocks"])),
                planned=tuple(tuple(map(str, frozen)) for frozen in values["planned"]),
                done=(),
                flops=tuple(map(float, values["flops"])),
                seconds=tuple(map(float, values["seconds"])),
                reason=str(values["reason"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected the values of a freezing report, got {error!r}, try a fresh run") from error
        return made.after(records)

    @property
    def savings(self) -> str:
        """What was planned and saved, in words; empty where nothing is known."""
        parts = []
        for unit, planned, saved in (
            ("FLOPs", self.planned_flops, self.saved_flops),
            ("seconds", self.planned_seconds, self.saved_seconds),
        ):
            told = [
                f"{share:.1%} {word}" for share, word in ((planned, "planned"), (saved, "saved")) if share is not None
            ]
            parts += [f"{unit}: {', '.join(told)}"] if told else []
        hits, asked = sum(c.hits for c in self.costs), sum(c.hits + c.misses for c in self.costs)
        if asked:
            parts.append(
                f"cache: {hits / asked:.1%} of {asked:,} found, {show(max(c.held for c in self.costs))} at most"
            )
        return "; ".join(parts)

    def __str__(self) -> str:
        epochs = max(len(self.planned), len(self.done))
        now = f" in epoch {len(self.done) - 1}" if self.done else ""
        count = len(self.done[-1]) if self.done else 0
        lines = [f"{self.method}: {count} of {len(self.blocks)} blocks frozen{now}"]
        width = max(map(len, self.blocks), default=0)
        step = max(1, math.ceil(epochs / COLUMNS))
        for name in self.blocks if epochs else ():
            signs = (self._sign(name, range(start, min(start + step, epochs))) for start in range(0, epochs, step))
            lines.append(f"  {name:{width}}  {''.join(signs)}")
        if epochs:
            each = f", {PARTLY} some of the {step} epochs of a sign" if step > 1 else f"; epochs 0 to {epochs - 1}"
            lines.append(f"  {FROZEN} frozen, {PLANNED} planned, {ACTIVE} active{each}")
        return "\n".join([*lines, *(text for text in (self.savings, self.reason) if text)])

    def figure(self) -> Figure:
        """The timeline, a row for each block."""
        from spfde._figures import INK, MUTED, STYLE, matplotlib_for

        matplotlib = matplotlib_for("timeline of freezing")
        with matplotlib.rc_context(STYLE):
            drawing = matplotlib.figure.Figure(figsize=(6, 1.2 + 0.2 * len(self.blocks)))
            self.draw(drawing.add_subplot(), INK, MUTED)
        return drawing

    def draw(
        self, axes: Axes, frozen: str, planned: str, names: Sequence[str] | None = None, size: float | None = None
    ) -> None:
        """Draws the timeline: bars where blocks were frozen, outlines where that is planned.

        Args:
            axes: where.
            frozen: colour of the bars.
            planned: colour of the outlines.
            names: of the blocks, as they are to be written.
            size: of the names, in points.
        """
        for row, name in enumerate(self.blocks):
            for start, stop in _spans(name, self.planned):
                axes.barh(row, stop - start, 0.8, start - 0.5, color="none", edgecolor=planned, linewidth=0.8)
            for start, stop in _spans(name, self.done):
                axes.barh(row, stop - start, 0.5, start - 0.5, color=frozen)
        epochs = max(len(self.planned), len(self.done), 1)
        axes.set_xlim(-0.5, epochs - 0.5)
        axes.set_ylim(len(self.blocks) - 0.4, -0.6)
        axes.set_yticks(range(len(self.blocks)), names or self.blocks, fontsize=size)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("epoch")

    def _planned(self, costs: Sequence[float]) -> float | None:
        fronts = [front_of(self.blocks, frozen) for frozen in self.planned]
        if not fronts or max(fronts) >= len(costs):
            return None
        return 1 - sum(costs[front] for front in fronts) / (costs[0] * len(fronts))

    def _sign(self, name: str, epochs: range) -> str:
        known = [name in self.done[epoch] for epoch in epochs if epoch < len(self.done)]
        if not known:
            return PLANNED if any(name in self.planned[epoch] for epoch in epochs) else ACTIVE
        return FROZEN if all(known) else PARTLY if any(known) else ACTIVE


def _spans(name: str, sets: Sets) -> Iterator[tuple[int, int]]:
    """Epochs [start, stop) in which a block is frozen without a break."""
    start = None
    for epoch, frozen in enumerate((*sets, ())):
        if name in frozen and start is None:
            start = epoch
        elif name not in frozen and start is not None:
            yield start, epoch
            start = None
