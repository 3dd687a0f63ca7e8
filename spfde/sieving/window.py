"""What a sample showed of itself within one interval: presentations, correct ones, forgetting events, loss.

The bookkeeping is in numpy: on a batch of 64 its calls cost a fraction of torch's, and this runs at every
step.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

SHOWN, CORRECT, FORGOTTEN, LOSS = range(4)  # columns of `counts`


class Window:
    """Counters of every sample since the last reset.

    Attributes:
        counts: float32 [num_samples, 4]: presentations, correct ones, forgetting events, sum of losses.
        last: bool [num_samples]: whether the latest presentation was correct.
    """

    def __init__(self, num_samples: int) -> None:
        self.counts = np.zeros((num_samples, 4), np.float32)
        self.last = np.zeros(num_samples, bool)

    def reset(self) -> None:
        """Sets every counter to zero."""
        self.counts.fill(0)
        self.last.fill(False)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of the counters."""
        return {"counts": torch.from_numpy(self.counts.copy()), "last": torch.from_numpy(self.last.copy())}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on from `state_dict`'s values."""
        self.counts, self.last = state["counts"].numpy().copy(), state["last"].numpy().copy()

    def add(self, samples: np.ndarray, loss: np.ndarray, correct: np.ndarray | None) -> None:
        """Counts presentations in batch order; all arguments [n], a sample may appear several times.

        A forgetting event is a wrong presentation right after a correct one of the same sample.

        Raises:
            ValueError: nothing says whether the predictions were right.
        """
        if correct is None:
            raise ValueError("expected correct with losses, for forgetting events; try observe(..., correct=bool [n])")
        order = samples.argsort(kind="stable")
        samples, correct, loss = samples[order], correct[order], loss[order]
        before = self.last[samples]
        np.copyto(before[1:], correct[:-1], where=samples[1:] == samples[:-1])
        seen = np.empty((len(samples), 4), np.float32)
        seen[:, SHOWN], seen[:, CORRECT] = 1, correct
        seen[:, FORGOTTEN], seen[:, LOSS] = before > correct, loss
        np.add.at(self.counts, samples, seen)
        self.last[samples] = correct  # of repeated indices the last assignment stays


def outcome(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, correct) [n]: the cross-entropy of logits [n, classes], and whether the largest one is the target's."""
    logits, targets = logits.detach().float(), targets.to(logits.device)
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(1) == targets


def easiest(counts: np.ndarray, limit: int) -> np.ndarray:
    """Rows of `counts` [n, 4] with the `limit` easiest samples, easiest first; never one that was not shown.

    Fewest forgetting events first, a sample that was never correct after all others (it has not been learnt);
    then the lower mean loss; then the lower row.
    """
    shown, correct, forgotten, loss = counts.T.astype(np.float64)
    hardness = np.where(correct > 0, forgotten, np.inf)
    order = np.lexsort((loss / np.maximum(shown, 1), hardness))  # stable: equal samples stay in row order
    return order[shown[order] > 0][:limit]
