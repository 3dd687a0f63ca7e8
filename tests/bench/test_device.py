"""A device profile is filled with what it lacks, kept after each layer, and refused on another device."""

import json

import pytest

from spfde.bench import conv, device_ops, linear
from spfde.bench.device import LAYERS, fill, usual_layers
from spfde.tuning.device_profile import load
from spfde.tuning.timing import TimeLimit

NETWORKS = (("resnet20", 2, 8),)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Ops on little, so that they do not take long."""
    monkeypatch.setattr(device_ops, "IMAGES", ((1, 8, 4),))
    monkeypatch.setattr(device_ops, "LARGEST", 2**10)
    monkeypatch.setattr(device_ops, "HEADS", ((1, 2, 4, 8),))


LAYERS_HERE = [linear("8x8", 2), conv("8x4x3x3@6/2", 2)]


def filled(path, layers, seconds=1000.0, say=lambda text: None):
    how = {"layers": layers, "networks": NETWORKS, "repeats": 1, "say": say}
    return fill(path, "cpu", "spfde bench", TimeLimit(seconds), **how)


def test_a_profile_is_filled_and_gone_on_with(tmp_path):
    path = tmp_path / "device.json"
    first = filled(path, LAYERS_HERE[:1])
    assert first == load(path) and {row.kernel for row in first.layers} >= {"torch"}
    ops = {row.op for row in first.ops}
    assert {"aten::native_batch_norm", "aten::native_batch_norm channels_last", "aten::silu", "optimizer"} <= ops
    assert {"spfde::norm_act", "spfde::norm_act_grad"} <= ops
    said = []
    second = filled(path, LAYERS_HERE, say=said.append)
    assert said == ["conv 8x4x3x3@6/2 on 2"] and second.layers[: len(first.layers)] == first.layers
    assert second.layers[-1].size == (3, 3) and second.layers[-1].stride == 2
    assert {row.kernel for row in second.layers} >= {"torch", "torch channels_last"}
    assert all(row.training > 0 for row in second.layers)
    with_norm = {(len(row.shape), row.pattern) for row in second.layers if row.normed}
    assert with_norm == {(4, "unstructured")}, "of sparse convolutions"
    said.clear()
    filled(path, LAYERS_HERE, say=said.append)
    assert said == []


def test_what_there_is_no_time_for_is_left(tmp_path):
    said = []
    made = filled(tmp_path / "device.json", LAYERS_HERE, 0.0, said.append)
    assert not made.layers and made.ops and "out of time" in said[-1]


@pytest.mark.parametrize("other", [{"name": "an abacus"}, {"facts": {"isa": "an abacus's"}}])
def test_another_device_is_refused(other, tmp_path):
    path = tmp_path / "device.json"
    made = filled(path, [])
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "device": {**values["device"], **other}}))
    with pytest.raises(ValueError, match="an abacus"):
        filled(path, [])
    assert made.device.name != "an abacus"


def test_the_usual_layers_are_different_ones():
    layers = usual_layers()
    assert len({str(layer) for layer in layers}) == len(layers) == len(LAYERS)
