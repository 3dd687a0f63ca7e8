"""The pieces that make an image: placement, clutter, determinism of the draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spfde.data import compose, digits


def pose(side=16.0, angle=0.0, shear=0.0, x=0.0, y=0.0):
    return compose.Pose(*(np.array([v], np.float32) for v in (side, angle, shear, x, y)))


def centre_of_mass(image):
    axis = torch.arange(compose.SIZE) - (compose.SIZE - 1) / 2
    mass = image.sum()
    return (image.sum(0) @ axis / mass).item(), (image.sum(1) @ axis / mass).item()


@settings(deadline=None)
@given(x=st.floats(-5, 5), y=st.floats(-5, 5), angle=st.floats(-3, 3), side=st.floats(10, 13))  # inside, however turned
def test_a_centred_source_lands_where_the_pose_says(x, y, angle, side):
    image = compose.place(torch.ones(1, 8, 8), pose(side, angle, x=x, y=y))[0]
    assert centre_of_mass(image) == pytest.approx((x, y), abs=0.15)
    assert image.sum().item() == pytest.approx(side**2, rel=0.05)


def test_placement_at_the_size_of_the_image_without_turning_is_a_plain_resize():
    source = torch.rand(1, 8, 8)
    placed = compose.place(source, pose(side=32.0))
    resized = torch.nn.functional.interpolate(source[None], size=32, mode="bilinear")[0]
    inner = slice(2, -2)  # outside it, placement fades to the empty surround and interpolate repeats the edge
    torch.testing.assert_close(placed[:, inner, inner], resized[:, inner, inner])


def test_a_quarter_turn_turns_the_source():
    source = torch.rand(1, 8, 8)
    turned = compose.place(source, pose(angle=np.pi / 2))
    upright = compose.place(torch.rot90(source, -1, (1, 2)), pose())
    torch.testing.assert_close(turned, upright, atol=1e-5, rtol=0)


def test_shear_keeps_the_area_and_moves_the_rows_apart():
    upright, sheared = (compose.place(torch.ones(1, 8, 8), pose(shear=s))[0] for s in (0.0, 0.4))
    assert sheared.sum().item() == pytest.approx(upright.sum().item(), rel=0.02)
    columns = torch.arange(compose.SIZE, dtype=torch.float32)
    top, bottom = ((sheared[row] @ columns / sheared[row].sum()).item() for row in (10, 21))
    assert abs(top - bottom) == pytest.approx(0.4 * 11, abs=0.3)


def test_clutter_is_cut_from_other_training_scans_only():
    train, test = digits.split(0)
    for scans in (train, test):
        drawn = compose.draw(np.random.default_rng(0), 4000, scans, train)
        assert np.isin(drawn.scan, scans).all()
        assert np.isin(drawn.piece, train).all()
        assert not (drawn.piece == drawn.scan[:, None]).any()


def test_a_fragment_is_at_most_a_quarter_of_a_scan():
    source = digits.scans()[0]
    drawn = compose.draw(np.random.default_rng(0), 50, *digits.split(0))
    pieces = compose.cut(source, drawn.piece, drawn.corner)
    assert pieces.shape == (50 * compose.FRAGMENTS, compose.FRAGMENT, compose.FRAGMENT)
    assert pieces[0].numel() * 4 == source[0].numel()
    row, column = drawn.corner[7, 2]
    expected = source[drawn.piece[7, 2], row : row + compose.FRAGMENT, column : column + compose.FRAGMENT]
    assert torch.equal(pieces[7 * compose.FRAGMENTS + 2], expected)


def test_images_use_the_grey_scale_and_are_not_clipped_away():
    images, _ = digits.render(digits.TRAIN, 200, seed=0)
    assert images.dtype == torch.uint8
    levels = images.float().flatten(1)
    assert (levels.amax(1) - levels.amin(1)).min() > 60
    assert (levels == 255).float().mean() < 0.05
