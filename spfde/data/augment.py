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
    """

    crop: int = 0
    flip: bool = False
    seed: int = 0

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
        bits = draws(self.seed, epoch, indices)
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


def draws(seed: int, epoch: int, indices: Tensor) -> np.ndarray:
    """64 random bits for each sample: a hash of (seed, epoch, index), uint64 [b]."""
    state = _mix(np.array([seed], np.uint64))
    state = _mix(state + np.uint64(epoch))
    return _mix(state + indices.numpy().astype(np.uint64))


def _mix(state: np.ndarray) -> np.ndarray:
    # SplitMix64 (Steele, Lea and Flood, 2014): every output bit depends on every input bit.
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
