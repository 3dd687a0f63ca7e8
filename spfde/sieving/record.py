"""What a run keeps of its sieve, for the report page: figures, and pictures of what was never learnt."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from spfde.sieving.pictures import picture, png, thumbnail
from spfde.sieving.report import SieveReport

SHOWN = 48  # samples that are kept one by one


@dataclass(frozen=True)
class NeverLearned:
    """A sample that was presented and never predicted right; png in base64, empty where it is no image."""

    sample: int
    label: str
    presentations: int
    png: str = ""


@dataclass(frozen=True)
class SieveRecord:
    """A `SieveReport` in a few kilobytes: of what was never learnt the number, and the first SHOWN of them."""

    method: str
    num_samples: int
    saved: float
    reason: str
    extra_seconds: float
    never_learned: int
    first: tuple[NeverLearned, ...] = ()

    @classmethod
    def of(cls, report: SieveReport, items: Iterable[tuple[Any, Any]]) -> SieveRecord:
        """The record of `report`; items: (image, label) of `report.never_learned[:SHOWN]`, in their order."""
        pairs = zip(items, report.never_learned, report.presentations, strict=False)
        first = tuple(NeverLearned(sample, str(label), shown, _png(image)) for (image, label), sample, shown in pairs)
        return cls(
            report.method,
            report.num_samples,
            report.saved,
            report.reason,
            report.extra_seconds,
            len(report.never_learned),
            first,
        )


def _png(image: Any) -> str:
    try:
        return base64.b64encode(png(thumbnail(picture(image)))).decode()
    except ValueError:  # no image: a row of figures
        return ""
