"""What `Topology.report()` draws and logs: counts over time, maps, files."""

import json
import sys

import pytest
import torch
from topology.networks import OPTIMIZERS, net, train_step
from torch import nn

from spfde import sparsify
from spfde.topology import GMP, SET
from spfde.topology.report import CELLS, map_of


def pruned():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    topology = GMP(model, optimizer, total_steps=8, every=2, end=0.5)
    for step in range(6):
        train_step(model, optimizer, step)
        topology.step()
    return topology


def test_counts_over_time():
    """Layer "2" has 216 weights and keeps 65: 65 + 151 (1 - t/4)^3 after steps 2 and 4."""
    topology = pruned()
    assert topology.report().layers["2"].over_time == ((0, 65), (0, 216), (2, 84), (4, 65))
    state = topology.state_dict()
    other = pruned()
    other.load_state_dict(state)
    assert other.report().layers == topology.report().layers
    for history in state["history"].values():
        del history["over_time"]  # as older versions saved it
    other.load_state_dict(state)
    assert other.report().layers["2"].over_time == ((0, 65),)


def test_a_map_counts_cells():
    """130 outputs and 2 channels of 3 x 3: 64 rows of cells, each over 3 outputs or so; the stored ones are in two."""
    layer = sparsify(nn.Conv2d(2, 130, 3), 0.5)
    layer.move_to(torch.cat([torch.arange(9), torch.tensor([130 * 18 - 1])]))
    cells = map_of(layer)
    assert list(cells.shape) == [CELLS, 2]
    assert cells[0].tolist() == pytest.approx([1 / 3, 0]) and cells[-1].tolist() == pytest.approx([0, 1 / 27])
    assert not cells[1:-1].any()


def test_the_figure_shows_every_layer(tmp_path):
    report = pruned().report()
    path = report.plot(tmp_path / "masks.svg")
    assert path.read_text().startswith("<?xml")
    lines, *maps = report.figure().axes
    assert [axes.get_title(loc="left") for axes in maps if axes.images] == list(report.layers)
    assert [line.get_label() for line in lines.lines] == list(report.layers)
    assert lines.lines[1].get_xdata().tolist() == [0, 0, 2, 4, 6]
    assert lines.lines[1].get_ydata().tolist() == pytest.approx([1 - n / 216 for n in (65, 216, 84, 65, 65)])
    shown = [axes.images[0].get_array() for axes in maps if axes.images]
    assert len(shown) == len(report.maps)
    assert all((image == cells.numpy()).all() for image, cells in zip(shown, report.maps.values(), strict=True))
    json.dumps(report.as_dict())


@pytest.mark.parametrize("shape", [(1, 1), (3, 0), (0, 2)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_odd_layers_are_drawn(shape, tmp_path):
    layer = sparsify(nn.Linear(*shape), 0.0)
    report = SET(layer, torch.optim.SGD(layer.parameters(), lr=0.1), total_steps=9).report()
    assert report.plot(tmp_path / "odd.png").stat().st_size > 0


def test_a_logger_takes_the_scalars(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = pruned().report()
    with tensorboard.SummaryWriter(tmp_path) as writer:
        for name, value in report.scalars().items():
            writer.add_scalar(name, value, report.step)
        writer.add_figure("masks", report.figure(), report.step)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Scalars("stored/2")[0].step == 6
    assert events.Scalars("stored/2")[0].value == pytest.approx(65 / 216)
    assert events.Tags()["images"] == ["masks"]


def test_without_matplotlib_it_says_so(monkeypatch):
    report = pruned().report()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"expected matplotlib, which draws the report.*try pip install spfde.report"):
        report.figure()
