"""What a data set is to the rest of the library: two tensors, and a train and a test half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Images(Dataset):
    """A data set held in memory: `images` float32 [N, C, H, W], normalised, and `targets` int64 [N].

    Both tensors are public, so that a loop can index a batch at once. An item is (image [C, H, W], int).

    Raises:
        TypeError: `images` is not float32 or `targets` is not int64.
        ValueError: the shapes are not [N, C, H, W] and [N].
    """

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        if images.dtype != torch.float32 or targets.dtype != torch.int64:
            raise TypeError(
                f"expected float32 images and int64 targets, got {images.dtype} and {targets.dtype}, "
                "try .float() and .long()"
            )
        if images.ndim != 4 or targets.shape != images.shape[:1]:
            raise ValueError(
                f"expected images [N, C, H, W] and targets [N], got {list(images.shape)} and "
                f"{list(targets.shape)}, try images.unsqueeze(1) if the channel is missing"
            )
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
class DataSets:
    """A named task: `train` and `test` yield (image float32 [C, H, W], int label); `shape` is (C, H, W)."""

    name: str
    train: Dataset
    test: Dataset
    num_classes: int
    shape: tuple[int, int, int]
