"""Circular data sieving: the samples that were forgotten least leave, the ones that waited longest return."""

from __future__ import annotations

import numpy as np

from spfde.sieving.queue import QueueSieve
from spfde.sieving.window import HARDER, lowest

__all__ = ["Circular"]


class Circular(QueueSieve):
    """Sends the easiest active samples to the tail of the queue and takes as many back from its head.

    Easy is a sample with few forgetting events (a wrong presentation after a correct one) within this
    interval; one that was never correct is the hardest. Ties, which are most samples, are broken by the lower
    mean loss of the interval, then by the lower index. A sample that was not observed in the interval stays.
    Counters start from zero at every interval, so that newcomers are treated as the others. Where predictions are
    neither right nor wrong (losses alone, soft labels), the mean loss decides.

    Source: SpFDE (NeurIPS 2022), "Circular Data Sieving"; the rule for samples that were never correct is
    that of Toneva et al. (ICLR 2019).
    """

    def _leaving(self, active: np.ndarray, limit: int) -> tuple[np.ndarray, str]:
        keys = self.window.hardness(active)
        rows = lowest(keys, limit)
        if not len(rows):
            return rows, "no sample is out" if limit == 0 else "no sample was observed: none moved"
        if self.window.judged:
            known = np.count_nonzero(keys >> HARDER == 0)
            easy = f"right and not forgotten since the last swap ({known} samples), and the lower the loss the easier"
        else:
            easy = "the lower the mean loss since the last swap the easier, as predictions are not right or wrong"
        return rows, (
            f"the {len(rows)} easiest of {len(active)} go out, as many come back, those out longest; easy: {easy}"
        )
