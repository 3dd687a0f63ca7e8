"""Training samples for what training itself does not compute: a lever that looks at those it has left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spfde.train.data import Batch

if TYPE_CHECKING:
    from spfde.train.session import Session

AT_ONCE = 256


def batches(session: Session, indices: Tensor) -> Iterator[Batch]:
    """Yield indices [n], inputs [n, ...] without augmentation and targets [n], on the device of the network."""
    for images, targets, samples in session.train.batches(
        indices, AT_ONCE, key=(session.recipe.seed, session.epoch, 1)
    ):
        yield samples, session.device.put(session.layout.images(images)), session.device.put(targets)


def predictions(session: Session, indices: Tensor) -> Iterator[Batch]:
    """Yield indices [n], outputs [n, ...] in evaluation mode and targets [n], without a graph."""
    training = session.model.training
    session.model.eval()
    try:
        for samples, inputs, targets in batches(session, indices):
            with torch.no_grad(), session.device.autocast():
                yield samples, session.model(inputs), targets
    finally:
        session.model.train(training)
