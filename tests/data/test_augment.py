"""Crops and mirror images: what they do to a sample is a function of seed, epoch and index."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spfde.data import CropFlip
from spfde.data.augment import draws

IMAGES = torch.randn(40, 3, 7, 5, generator=torch.Generator().manual_seed(0))
INDICES = torch.arange(40)


def candidates(image, crop, flip):
    """Every image that a crop and a flip can make of one."""
    height, width = image.shape[1:]
    sides = [image, image.flip(-1)] if flip else [image]
    padded = [F.pad(side, (crop,) * 4) for side in sides]
    return [
        p[:, y : y + height, x : x + width] for p in padded for y in range(2 * crop + 1) for x in range(2 * crop + 1)
    ]


@pytest.mark.parametrize(("crop", "flip"), [(2, True), (2, False), (0, True), (9, True)])
def test_every_image_is_a_crop_of_the_padded_or_mirrored_one(crop, flip):
    for image, got in zip(IMAGES, CropFlip(crop, flip)(IMAGES, INDICES, 3), strict=True):
        assert any(torch.equal(got, candidate) for candidate in candidates(image, crop, flip))


def test_nothing_asked_for_is_nothing_done():
    assert CropFlip()(IMAGES, INDICES, 0) is IMAGES
    table = torch.randn(40, 3)
    assert CropFlip()(table, INDICES, 0) is table


def test_the_batch_a_sample_comes_in_makes_no_difference():
    augment = CropFlip(2, True, seed=5)
    whole = augment(IMAGES, INDICES, 1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for part in order.split(7):
        assert torch.equal(augment(IMAGES[part], part, 1), whole[part])
    random = torch.get_rng_state()
    augment(IMAGES, INDICES, 2)
    assert torch.equal(torch.get_rng_state(), random)


def test_memory_format_makes_no_difference():
    last = IMAGES.contiguous(memory_format=torch.channels_last)
    assert torch.equal(CropFlip(2, True)(last, INDICES, 0), CropFlip(2, True)(IMAGES, INDICES, 0))


def test_epochs_seeds_and_samples_differ():
    first = CropFlip(4, True, seed=0)(IMAGES, INDICES, 0)
    assert not torch.equal(first, CropFlip(4, True, seed=0)(IMAGES, INDICES, 1))
    assert not torch.equal(first, CropFlip(4, True, seed=1)(IMAGES, INDICES, 0))
    same = IMAGES[:1].expand(40, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in CropFlip(4, True)(same, INDICES, 0)}) > 25


def test_variants_are_a_fixed_set_in_turn():
    free, augment = CropFlip(2, True, seed=3), CropFlip(2, True, seed=3, variants=3)
    known = torch.stack([free(IMAGES, INDICES, epoch) for epoch in range(3)], 1)
    which = torch.stack([augment.variant(INDICES, epoch) for epoch in range(6)], 1)
    for epoch in range(6):
        assert torch.equal(augment(IMAGES, INDICES, epoch), known[INDICES, which[:, epoch]])
    assert torch.equal(which[:, :3].sort(1).values, torch.arange(3).expand(40, 3))
    assert torch.equal(which[:, 3:], which[:, :3])
    assert len(which[:, 0].unique()) == 3  # a batch has some of each
    part = torch.tensor([7, 3])
    assert torch.equal(augment(IMAGES[part], part, 4), augment(IMAGES, INDICES, 4)[part])


def test_how_many_images_a_sample_has():
    assert (CropFlip().inputs, CropFlip(variants=4).inputs, CropFlip(1).inputs, CropFlip(1, variants=4).inputs) == (
        *(1, 1, None, 4),
    )
    assert torch.equal(CropFlip().variant(INDICES, 5), torch.zeros(40, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected a fixed number of images of a sample, got .*, try variants=4"):
        CropFlip(flip=True).variant(INDICES, 0)
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="expected variants to be an integer >= 1 or None, got .*, try 4"):
            CropFlip(1, variants=wrong)


def test_places_and_sides_are_drawn_evenly():
    marked = torch.zeros(1, 1, 5, 5)
    marked[0, 0, 2, 1] = 1
    count = 20_000
    images = CropFlip(1, True)(marked.expand(count, -1, -1, -1), torch.arange(count), 0)
    _, _, row, column = images.nonzero().T
    assert len(row) == count
    for row_share in torch.bincount(row, minlength=5)[1:4]:
        assert row_share / count == pytest.approx(1 / 3, abs=0.02)
    assert (column >= 2).float().mean().item() == pytest.approx(4 / 6, abs=0.02)  # 0, 1, 2 or, mirrored, 2, 3, 4


def test_bits_are_those_of_splitmix():
    # The first three outputs of the reference generator from state 0 (Vigna's splitmix64.c).
    from spfde.data.augment import _mix

    step = np.uint64(0x9E3779B97F4A7C15)
    states = np.arange(3, dtype=np.uint64) * step
    assert [hex(value) for value in _mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]
    assert len(set(draws(0, 0, torch.arange(10_000)).tolist())) == 10_000


@pytest.mark.parametrize(("images", "indices"), [(torch.zeros(4, 3), torch.arange(4)), (IMAGES, torch.arange(3))])
def test_what_is_no_batch_of_images_is_refused(images, indices):
    with pytest.raises(ValueError, match=r"expected images \[b, c, h, w\] and their indices \[b\], got .*, try crop=0"):
        CropFlip(1)(images, indices, 0)
