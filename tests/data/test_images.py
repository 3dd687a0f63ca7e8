"""The in-memory data set and how a DataLoader meets it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from spfde.data import Images


@pytest.fixture
def images():
    return Images(torch.randn(10, 1, 4, 4), torch.arange(10) % 3)


def test_items_are_pairs(images):
    image, target = images[4]
    assert torch.equal(image, images.images[4])
    assert target == 1
    assert isinstance(target, int)
    assert len(images) == 10


@pytest.mark.parametrize("indices", [[3, 1, 3], [], torch.tensor([9, 0])])
def test_a_batch_equals_its_items(images, indices):
    batch = images.__getitems__(indices)
    assert len(batch) == len(indices)
    for (image, target), index in zip(batch, indices, strict=True):
        assert torch.equal(image, images[int(index)][0])
        assert target == images[int(index)][1]


def test_a_data_loader_sees_every_item_in_order(images):
    batches = list(DataLoader(images, batch_size=4))
    assert torch.equal(torch.cat([image for image, _ in batches]), images.images)
    assert torch.equal(torch.cat([target for _, target in batches]), images.targets)


def test_wrong_types_and_shapes_are_refused():
    with pytest.raises(TypeError, match=r"expected float32 images and int64 targets, got torch.float64"):
        Images(torch.zeros(2, 1, 4, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"got torch.float32 and torch.int32"):
        Images(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"expected images \[N, C, H, W\].*got \[2, 4, 4\]"):
        Images(torch.zeros(2, 4, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \[2, 1, 4, 4\] and \[3\]"):
        Images(torch.zeros(2, 1, 4, 4), torch.zeros(3, dtype=torch.int64))
