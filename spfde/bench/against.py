"""How two files of `spfde bench` differ: rows that both have, by their speed-up over the dense baseline beside them."""

from __future__ import annotations

from dataclasses import dataclass

from spfde.bench.record import Record, Row
from spfde.tuning.samples import RESOLUTION, Ratio

DOUBTS = 3  # times the doubt of a file's own ratios that two files may differ by without meaning anything


@dataclass(frozen=True)
class Change:
    """A part of a row then and now, as speed-ups over the fastest dense variant of the same file."""

    row: Row
    part: str
    before: Ratio
    now: Ratio
    resolution: float = RESOLUTION

    @property
    def factor(self) -> float:
        """How many times as fast as before."""
        return self.now.value / self.before.value

    @property
    def significant(self) -> bool:
        """Whether it is beyond doubt: the intervals do not meet, and one is the faster by more than `resolution`.

        The intervals know what differs from round to round; the resolution is for what differs from process to process,
        such as where memory lies and what else runs.
        """
        return self.before.differs(self.now) and max(self.factor, 1 / self.factor) - 1 > self.resolution

    @property
    def slower(self) -> bool:
        """Whether it became slower beyond doubt."""
        return self.significant and self.factor < 1


def changes(before: Record, now: Record) -> list[Change]:
    """The sparse rows and parts that both have; what counts is 5%, or three times the usual doubt of the noisier file.

    Raises:
        ValueError: there are none.
    """
    known = {row.key: row for row in before.rows}
    resolution = max(RESOLUTION, DOUBTS * before.doubt, DOUBTS * now.doubt)
    found = []
    for row in now.rows:
        old = known.get(row.key)
        if old is None or row.dense:
            continue
        for part in row.seconds:
            ratios = before.speedup(old, part), now.speedup(row, part)
            if ratios[0] and ratios[1]:
                found.append(Change(row, part, *ratios, resolution))
    if not found:
        raise ValueError("expected rows that both files have, got none, try the same options as then")
    return found
