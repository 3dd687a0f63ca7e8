"""Device profiles: written and read, and every way in which a file can be none."""

import json
from dataclasses import replace

import pytest

from spfde.tuning import device_profile
from spfde.tuning.device_profile import Device, DeviceProfile, LayerSeconds, OpSeconds, load, named
from spfde.tuning.this_device import this_device

LAYER = LayerSeconds((8, 4, 3, 3), 2, (5, 5), 1, 1, "float32", "unstructured", 0.1, "native", 1e-3, 2e-3, 3e-3, 0.02)
PROFILE = DeviceProfile(
    Device("a board", "cuda", 16, 2**34, "MAXN", {"l4t": "39.2"}, {"power": "NVML: not supported"}),
    {"torch": "2.13.0", "spfde": "0.1.0"}, "2026-11-29T00:00:00+00:00", "spfde bench --device-profile",
    {"float32": 1e12}, 1e11, 1e-5, (LAYER,), (OpSeconds("relu", 1024, 1e-6),), 4.5,
)  # fmt: skip


def test_a_profile_comes_back_as_it_was(tmp_path):
    path = PROFILE.save(tmp_path / "deep" / "board.json")
    assert load(path) == PROFILE == named(path)
    assert list(json.loads(path.read_text()))[:2] == ["format", "version"]
    assert PROFILE.device.label == "a board, 16 multiprocessors, MAXN"
    assert LAYER.step == pytest.approx(6e-3) and LAYER.multiply_adds == 2 * 25 * 8 * 4 * 9


def test_profiles_of_a_device_join():
    assert PROFILE.joined(replace(PROFILE, layers=(LAYER, LAYER), ops=())).layers == (LAYER,) * 3


def test_the_least_of_two_runs():
    slow = replace(LAYER, forward=5e-3, weight_grad=1e-3, training=4e-3)
    other = replace(LAYER, batch=4)
    ops = OpSeconds("relu", 1024, 2e-6), OpSeconds("relu", 8, 1e-7)
    made = PROFILE.least(replace(PROFILE, layers=(slow, other), ops=ops))
    assert made.layers == (replace(LAYER, weight_grad=1e-3, training=4e-3), other)
    assert made.layers[0].step == 4e-3 and made.ops == (*PROFILE.ops, ops[1])


@pytest.mark.parametrize(
    ("change", "named_"),
    [
        ({"format": "a recipe"}, "got another file"),
        ({"version": 2}, "version 1"),
        ({"bandwidth": 0.0}, "bandwidth"),
        ({"bandwidth": "fast"}, "bandwidth"),
        ({"peak": {}}, "peak"),
        ({"layers": [{"shape": [1, 2]}]}, "layers"),
        ({"layers": [{**json.loads(json.dumps(PROFILE.to_dict()))["layers"][0], "forward": -1.0}]}, "positive seconds"),
        ({"layers": [{**json.loads(json.dumps(PROFILE.to_dict()))["layers"][0], "normed": 0.0}]}, "positive seconds"),
        ({"ops": [{"op": "relu", "amount": 4, "seconds": 0.0}]}, "positive seconds"),
        ({"device": {"name": "x"}}, "kind"),
        ({"device": {"name": "x", "kind": "tpu", "units": 1, "memory": 1}}, "tpu"),
    ],
)
def test_a_damaged_profile_is_named(tmp_path, change, named_):
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps({**PROFILE.to_dict(), **change}))
    with pytest.raises(ValueError, match=named_) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 100_000])
def test_what_is_no_json_is_told(tmp_path, text):
    path = tmp_path / "cut.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="device profile"):
        load(path)


def test_names():
    for name in device_profile.shipped():
        assert named(name).device.name
    with pytest.raises(OSError):
        named("nowhere/to/be.json")
    with pytest.raises(ValueError, match="no-such-device"):
        named("no-such-device")


def test_this_machine_has_a_name():
    here = this_device("cpu")
    assert here.kind == "cpu" and here.units >= 1 and here.memory > 2**20 and here.facts["isa"]
