"""Seconds from a profile made by hand: what was measured, what lies between, and what is only a roofline."""

from dataclasses import replace

import pytest

from spfde.planning.estimate import BETWEEN, MEASURED, ROOFLINE, Estimator, Shape
from spfde.tuning.device_profile import Device, DeviceProfile, LayerSeconds, OpSeconds


def row(shape, batch, size, kernel, density, seconds, stride=1, groups=1):
    how = ("float32", "unstructured", density, kernel, seconds, 2 * seconds, 3 * seconds, 0.01)
    return LayerSeconds(shape, batch, size, stride, groups, *how)


ROWS = (
    row((64, 64), 128, (1, 1), "torch", 1.0, 1e-3),
    row((256, 64), 128, (1, 1), "torch", 1.0, 4e-3),
    row((64, 64), 128, (1, 1), "native", 0.1, 2e-4),
    row((64, 64), 128, (1, 1), "native", 0.4, 8e-4),
    row((64, 64, 3, 3), 4, (8, 8), "torch", 1.0, 1e-2),
    row((64, 1, 3, 3), 4, (8, 8), "torch", 1.0, 5e-3, groups=64),
)
OPS = (OpSeconds("aten::relu", 100, 1e-6), OpSeconds("aten::relu", 10_000, 1e-4))
PROFILE = DeviceProfile(
    Device("x", "cpu", 1, 2**30), {}, "2026-11-29", "by hand", {"float32": 1e10}, 1e12, 3e-9, ROWS, OPS
)
ESTIMATOR = Estimator(PROFILE)


def test_what_was_measured_is_told_as_it_is():
    found = ESTIMATOR.layer(Shape((64, 64), 128), "native", 0.1)
    assert found.source == MEASURED
    assert (found.forward, found.input_grad, found.weight_grad) == pytest.approx((2e-4, 4e-4, 6e-4), rel=1e-3)
    assert found.step == pytest.approx(1.2e-3, rel=1e-3) and found.scaled(2).step == pytest.approx(2.4e-3, rel=1e-3)
    assert ESTIMATOR.kernels == ("native",)


def test_a_step_is_what_was_measured_in_one_call():
    whole = replace(ROWS[0], training=5e-3, normed=6e-3)
    found = Estimator(replace(PROFILE, layers=(whole,))).layer(Shape((64, 64), 128), "torch")
    assert (found.forward, found.step, found.norm) == pytest.approx((1e-3, 5e-3, 1e-3), rel=1e-3)
    assert found.needing(True, True) == found.step and found.needing(False, False) == found.forward
    assert (
        found.needing(False, True) == pytest.approx(5e-3 * 4 / 6)
        and ESTIMATOR.layer(Shape((64, 64), 128), "torch").norm is None
    )


def test_as_many_positions_in_images_of_another_size_are_not_that_measurement():
    small = Estimator(replace(PROFILE, layers=(row((8, 8, 3, 3), 16, (2, 2), "torch", 1.0, 1e-3),)))
    found = [small.layer(Shape((8, 8, 3, 3), batch, (side, side)), "torch").source for batch, side in ((16, 2), (1, 8))]
    assert found == [MEASURED, BETWEEN]


def test_between_two_measurements_the_ratio_to_the_roofline_is_kept():
    found = ESTIMATOR.layer(Shape((128, 64), 128), "torch")
    assert found.source == BETWEEN and found.forward == pytest.approx(2e-3, rel=1e-3)
    assert ESTIMATOR.layer(Shape((64, 64), 128), "native", 0.2).forward == pytest.approx(4e-4, rel=1e-3)
    assert ESTIMATOR.layer(Shape((64, 64), 256), "torch").forward == pytest.approx(2e-3, rel=1e-3)


def test_a_kind_without_measurements_leans_on_others_but_not_on_depthwise_ones():
    found = ESTIMATOR.layer(Shape((64, 64, 5, 5), 4, (8, 8)), "torch")
    assert found.source == BETWEEN and found.forward == pytest.approx(1e-2 * 25 / 9, rel=1e-2)
    deep = ESTIMATOR.layer(Shape((64, 1, 3, 3), 4, (8, 8), 1, 64), "torch")
    assert deep.forward == pytest.approx(5e-3, rel=1e-3)


def test_what_is_far_from_all_is_the_roofline():
    shape = Shape((8192, 8192), 8192)
    found = ESTIMATOR.layer(shape, "torch")
    assert found.source == ROOFLINE and found.forward == pytest.approx(2 * 8192**3 / 1e10, rel=1e-3)
    assert ESTIMATOR.layer(Shape((64, 64), 128), "triton", 0.1).source == ROOFLINE


@pytest.mark.parametrize(("amount", "seconds"), [(10, 1e-6), (100, 1e-6), (1000, 1e-5), (10_000, 1e-4), (20_000, 2e-4)])
def test_an_op_is_interpolated_in_logarithms(amount, seconds):
    assert ESTIMATOR.op("aten::relu", amount) == (pytest.approx(seconds), BETWEEN)


def test_an_unknown_op_is_its_bytes():
    assert ESTIMATOR.op("aten::exotic", 10**12) == (pytest.approx(1.0, rel=1e-3), ROOFLINE)
