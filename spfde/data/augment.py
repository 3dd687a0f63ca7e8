"""Random crops and mirror images of a batch, each sample with a seed of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CropFlip:
    """Pads images by `crop` zeros, cuts the old size out at random, and mirrors half of them if `flip`.

    What happens to a sample is a function of (seed, epoch, its index) alone: batches, order, worker processes and
    a resumed run make no difference. 0 is the mean colour of normalised images.

    variants: how many different images a sample has in all, the same ones in turn; None for a new one in every epoch.
    The k of them are those that the first k epochs have without the limit.

    Raises:
        ValueError: `variants` is no whole number >= 1.
    """

    crop: int = 0
    flip: bool = False
    seed: int = 0
    variants: int | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.variants, int) and not isinstance(self.variants, bool)
        if self.variants is not None and not (whole and self.variants > 0):
            raise ValueError(f"expected variants to be an integer >= 1 or None, got {self.variants!r}, try 4")

    @property
    def inputs(self) -> int | None:
        """How many images a sample has over all epochs: 1 without augmentation, `variants` with it, None is any."""
        return self.variants if self.crop or self.flip else 1

    def variant(self, indices: Tensor, epoch: int) -> Tensor:
        """Which of its images each of the samples has in `epoch`: int64 [b] in [0, inputs).

        Raises:
            ValueError: there are any number of them.
        """
        if self.inputs is None:
            raise ValueError(
                "expected a fixed number of images of a sample, got a new one in every epoch, try variants=4"
            )
        if self.inputs == 1:
            return torch.zeros_like(indices)
        # Samples start at different ones, so that a batch has some of each. Images come from epochs before `variants`.
        start = draws(self.seed, self.inputs, indices) % np.uint64(self.inputs)
        return (torch.from_numpy(start.astype(np.int64)) + epoch) % self.inputs

    def __call__(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Return the batch [b, c, h, w] of samples `indices` [b] as `epoch` has it.

        Raises:
            ValueError: the images are not [b, c, h, w].
        """
        if not self.crop and not self.flip:
            return images
        if images.ndim != 4 or len(images) != len(indices):
            raise ValueError(
                f"expected images [b, c, h, w] and their indices [b], got {list(images.shape)} and "
                f"{list(indices.shape)}, try crop=0 and flip=False for what is no image"
            )
        bits = draws(self.seed, epoch if self.variants is None else self.variant(indices, epoch).numpy(), indices)
        if self.flip:
            mirrored = torch.from_numpy((bits & np.uint64(1)).astype(bool))
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if self.crop:
            height, width = images.shape[2:]
            places = np.uint64(2 * self.crop + 1)
            down, across = (
                torch.from_numpy((bits >> np.uint64(shift) & np.uint64(2**31 - 1)) % places).long() for shift in (1, 32)
            )
            windows = F.pad(images, (self.crop,) * 4).unfold(2, height, 1).unfold(3, width, 1)
            images = windows[torch.arange(len(images)), :, down, across]
        return images


def draws(seed: int, epoch: int | np.ndarray, indices: Tensor) -> np.ndarray:
    """64 random bits for each sample: a hash of (seed, epoch or those of each [b], index), uint64 [b]."""
    state = _mix(np.array([seed], np.uint64))
    state = _mix(state + np.asarray(epoch).astype(np.uint64))
    return _mix(state + indices.numpy().astype(np.uint64))


def _mix(state: np.ndarray) -> np.ndarray:
    # SplitMix64 (Steele, Lea and Flood, 2014): every output bit depends on every input bit.
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
