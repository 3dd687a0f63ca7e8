"""What a data set is to the rest of the library: images and classes, or sequences, in a train and a test half."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


def _check(images: Tensor, targets: Tensor, dtype: torch.dtype, hint: str) -> None:
    if images.dtype != dtype or targets.dtype != torch.int64:
        wanted = str(dtype).removeprefix("torch.")
        raise TypeError(
            f"expected {wanted} images and int64 targets, got {images.dtype} and {targets.dtype}, try {hint}"
        )
    if images.ndim != 4 or targets.shape != images.shape[:1]:
        raise ValueError(
            f"expected images [N, C, H, W] and targets [N], got {list(images.shape)} and "
            f"{list(targets.shape)}, try images.unsqueeze(1) if the channel is missing"
        )


class Images(Dataset):
    """A data set held in memory: `images` float32 [N, C, H, W], normalised, and `targets` int64 [N].

    Both tensors are public, so that a loop can index a batch at once. An item is (image [C, H, W], int).

    Raises:
        TypeError: `images` is not float32 or `targets` is not int64.
        ValueError: the shapes are not [N, C, H, W] and [N].
    """

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        _check(images, targets, torch.float32, ".float() and .long()")
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Fetch a batch in one indexing operation; torch's DataLoader looks for this name."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return list(zip(self.images[index], self.targets[index].tolist(), strict=True))


@dataclass(frozen=True)
class Normalise:
    """(images / 255 - mean) / deviation per channel, from uint8 [..., C, H, W] to float32."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images normalised; a channel that never varies is only centred."""
        mean = torch.tensor(self.mean)[:, None, None]
        deviation = torch.tensor([value or 1.0 for value in self.deviation])[:, None, None]
        return images.float().div_(255).sub_(mean).div_(deviation)

    @classmethod
    def of(cls, images: np.ndarray) -> Normalise:
        """Measure mean and deviation of every channel of uint8 [N, C, H, W]."""
        # Integer sums are exact in any order; a float mean would depend on the number of threads.
        levels = np.arange(256)
        counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in images.swapaxes(0, 1)])
        pixels = images.size // images.shape[1]
        mean, square = counts @ levels / pixels, counts @ levels**2 / pixels
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        return cls(tuple((mean / 255).tolist()), tuple((deviation / 255).tolist()))


class Pixels(Dataset):
    """A data set of raw pixels: `images` uint8 [N, C, H, W], in memory or mapped from a file, and `targets` int64 [N].

    A quarter of the memory of `Images`: a batch is normalised when it is fetched. An item is (image float32
    [C, H, W], int).

    Raises:
        TypeError: `images` is not uint8 or `targets` is not int64.
        ValueError: the shapes are not [N, C, H, W] and [N].
    """

    def __init__(self, images: Tensor, targets: Tensor, normalise: Normalise) -> None:
        _check(images, targets, torch.uint8, "spfde.data.Images for float32 images, and .long()")
        self.images, self.targets, self.normalise = images, targets, normalise

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.normalise(self.images[index]), int(self.targets[index])


class Sequences(Dataset):
    """A data set of `tokens` [N, T + 1], of any integer type: an item is (tokens int64 [T], the next ones int64 [T]).

    Raises:
        TypeError: `tokens` are no integers.
        ValueError: the shape is not [N, T + 1].
    """

    def __init__(self, tokens: Tensor) -> None:
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise TypeError(f"expected tokens as integers, got {tokens.dtype}, try tokens.long()")
        if tokens.ndim != 2 or tokens.shape[1] < 2:
            raise ValueError(
                f"expected tokens [N, T + 1] with T >= 1, got {list(tokens.shape)}, try text.unfold(0, T + 1, T)"
            )
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        tokens = self.tokens[index].long()
        return tokens[:-1], tokens[1:]


@dataclass(frozen=True)
class DataSets:
    """A named task: `train` and `test` yield (image float32 [C, H, W], int label), and `shape` is (C, H, W).

    Or they yield (tokens int64 [T], the next ones int64 [T]), `shape` is (T,) and `num_classes` the number of tokens.
    """

    name: str
    train: Dataset
    test: Dataset
    num_classes: int
    shape: tuple[int, ...]


def positions(half: str, wanted: int | None, available: int) -> np.ndarray:
    """Numbers of `wanted` samples out of `available`, evenly spaced: every sample when `wanted` is None.

    Raises:
        TypeError: `wanted` is not an int.
        ValueError: it is out of range.
    """
    wanted = available if wanted is None else wanted
    if not isinstance(wanted, int) or isinstance(wanted, bool):
        raise TypeError(f"expected {half} to be an int, got {wanted!r}, try {half}={available}")
    if not 1 <= wanted <= available:
        raise ValueError(f"expected {half} in [1, {available}], all there are, got {wanted}, try {available}")
    return np.arange(wanted) * available // wanted


def warn_of_constant(where: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Warn of a set that teaches nothing: `images` [n, C, H, W] that are one picture, or `labels` [N] of one class."""
    found = []
    if (images == images[:1]).all() and (len(images) > 1 or images.min() == images.max()):
        found.append(f"all {len(images)} training images looked at are the same")
    if len(labels) > 1 and labels.min() == labels.max():
        found.append(f"all {len(labels)} training labels are {int(labels[0])}")
    if found:
        warnings.warn(f"expected images to learn from in {where}, but {' and '.join(found)}", stacklevel=4)
