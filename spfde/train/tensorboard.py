"""A run for TensorBoard: one point per epoch, and what the levers did as text."""

from __future__ import annotations

from pathlib import Path

from spfde.train.metrics import Epoch
from spfde.train.progress import Silent
from spfde.train.recipe import Recipe


def scalars(record: Epoch) -> dict[str, float]:
    """Return an epoch's figures by the name of their chart; charts of one group share a prefix."""
    return {
        "accuracy/test": record.test_accuracy,
        "accuracy/train": record.train_accuracy,
        "loss/train": record.train_loss,
        "learning rate": record.lr,
        "epoch/flops": record.flops,
        "epoch/samples": record.samples,
        "epoch/training seconds": record.training_seconds,
        "epoch/memory": record.memory,
        "levers/frozen blocks": len(record.frozen),
        "levers/sieved samples": record.sieved,
        "levers/sparsity": record.sparsity,
        **{f"seconds/{name}": value for name, value in record.seconds.items()},
        **{f"sparsity/{name}": value for name, value in record.layers.items()},
    }


class TensorBoard(Silent):
    """Progress that writes event files: `tensorboard --logdir DIRECTORY` shows them.

    A run that is resumed into the same directory takes the place of the epochs it repeats.

    Raises:
        ImportError: tensorboard is missing.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"expected tensorboard, got no such module ({error}), try pip install spfde[tensorboard]"
            ) from error
        self.directory, self._writer = directory, SummaryWriter
        self._files: SummaryWriter | None = None

    def start(self, recipe: Recipe, first_epoch: int, note: str) -> None:
        """Open the event file."""
        self._files = self._writer(self.directory, purge_step=first_epoch)

    def epoch(self, record: Epoch) -> None:
        """Write an epoch's figures, and what each lever did and why: a resumed epoch's record has that of its start."""
        for event in record.events:
            self._files.add_text(f"levers/{event.kind}", f"{event.text} ({event.reason})", record.epoch)
        for name, value in scalars(record).items():
            self._files.add_scalar(name, value, record.epoch)
        self._files.flush()

    def close(self) -> None:
        """Close the event file, if the run got as far as opening it."""
        if self._files is not None:
            self._files.close()
