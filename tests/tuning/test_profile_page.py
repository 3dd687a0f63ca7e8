"""The page of a device profile."""

from dataclasses import replace

import pytest

from spfde.energy.cost import TrainingCost, Window
from spfde.energy.series import State
from spfde.tuning.device_profile import Device, DeviceProfile, load
from spfde.tuning.profile_page import markdown, stem

DEVICE = Device("NVIDIA Jetson Orin Nano", "cuda", 8, 2**33, "15W", {"l4t": "36.4.3", "power": "VDD_IN"})
HOT = State({"gpu-thermal": (45.0, 51.0)}, {"GPU clock": (6e8, 6e8)})
SLOWED = replace(HOT, slowed=("GPU clock fell from 612 to 306 MHz",))


def cost(sparsity, joules, states=(HOT,), seconds=2.0, why=""):
    windows = tuple(Window(10, seconds, {}, joules, why, state) for state in states)
    pattern = "unstructured" if sparsity else "dense"
    return TrainingCost("resnet32", 8, sparsity, pattern, "float32", {"cuda": 30}, windows, 2**28, 3.0 * 2**28)


PROFILE = DeviceProfile(
    DEVICE, {"torch": "2.13.0"}, "2026-11-29", "spfde bench --device-profile .", {"float32": 1e12}, 5e10, 1e-5,
    idle_watts=5.0, training=(cost(0.0, 40.0), cost(0.9, 20.0, seconds=1.0)),
)  # fmt: skip


def rows(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "resnet32" in line[:12]]


def test_dense_beside_sparse():
    dense, sparse = rows(markdown(PROFILE, 80))
    assert dense[:9] == ["resnet32, 8", "dense", "200", "1.00x", "4", "3", "1.00x", "0.04", "0.03"]
    assert sparse[:9] == ["resnet32, 8", "unstructured 90%", "100", "2.00x", "2", "1.5", "2.00x", "0.02", "0.015"]
    assert sparse[9:] == ["256 MiB", "768 MiB", "45, 51", "cuda 30"]
    assert "Idle: 5.00 W" in markdown(PROFILE)


def test_what_is_unknown_is_not_zero():
    unknown = replace(
        PROFILE, idle_watts=None, training=(cost(0.0, None, why="no sensor"),),
        device=replace(DEVICE, absent={"clocks": "the kernel shows none"}),
    )  # fmt: skip
    text = markdown(unknown)
    [dense] = rows(text)
    assert dense[4:9] == ["not available", "not available", "-", "not available", "not available"]
    assert "Energy: not available: no sensor." in text
    assert "- clocks: not available: the kernel shows none" in text
    assert "Idle: not available" in text


@pytest.mark.parametrize(("states", "said"), [((SLOWED, HOT), "do not count"), ((SLOWED, SLOWED), "do not trust")])
def test_throttling_is_told(states, said):
    text = markdown(replace(PROFILE, training=(cost(0.9, 20.0, states),)))
    assert "fell from 612 to 306 MHz" in text
    assert said in text
    assert rows(text)[0][3] == "-"  # no dense network beside it


def test_names_of_files():
    assert stem(DEVICE) == "nvidia-jetson-orin-nano-8sm-15w"
    assert stem(Device("AMD EPYC (x)", "cpu", 2, 1)) == "amd-epyc-x-2t"


def test_training_comes_back_from_a_file(tmp_path):
    assert load(PROFILE.save(tmp_path / "nano.json")) == PROFILE
