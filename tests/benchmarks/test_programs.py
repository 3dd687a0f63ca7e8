"""The programs, on small layers: what they write, draw and print."""

from __future__ import annotations

from dataclasses import replace

import layers
import memory
import networks
import overhead
import plot
import pytest
import scaling
import step
import sweep
import torch
import update
from benchmarks.records import cell, record
from cases import SPARSITIES, Layer, conv, sparse_case
from record import Record
from timing import summarise
from torch import nn

from spfde.topology import METHODS

SMALL = [Layer("linear", 32, (32, 48)), conv(16, (8, 8), 4, 3)]


@pytest.fixture
def small(monkeypatch):
    """Two small layers, and no torch.compile: it takes seconds per layer."""
    eager = {"linear": ["dense"], "conv": ["dense", "dense channels_last"]}
    monkeypatch.setattr(layers, "LAYERS", SMALL)
    monkeypatch.setattr(layers, "dense_names", lambda layer: eager[layer.kind])


def test_layers_writes_what_plot_draws(small, tmp_path, capsys):
    path = tmp_path / "layers.json"
    layers.main(["--threads", "1", "--rounds", "2", "--sparsities", "0.8,0.9", "--patterns", "unstructured",
                 "--variants", "native,masked,csr", "--json", str(path)])  # fmt: skip
    written = Record.read(path)
    assert [(c.layer, c.sparsity) for c in written.cells] == [(str(la), s) for la in SMALL for s in (0.8, 0.9)]
    assert list(written.cells[0].seconds) == ["dense", "native", "masked", "torch csr"]
    assert list(written.cells[-1].seconds) == ["dense", "dense channels_last", "native", "masked"]
    assert written.machine["threads"] == 1 and written.rounds == 2
    assert capsys.readouterr().out.count("best dense:") == 2
    plot.main([str(path)])
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_layers_reports_a_refused_pattern_and_times_nothing(small, capsys):
    [some] = layers.measure(SMALL[0], "no-such-pattern", [0.9], layers.Options(rounds=1))
    assert some.seconds == {}
    assert some.absent.keys() == {"native", "masked", "auto"}
    assert "no-such-pattern" in some.absent["native"]


def test_a_filter_that_matches_nothing_is_refused():
    assert [str(layer) for layer in layers.select(["1x1 64x256"])] == ["conv 1x1 64x256 32px b64"]
    with pytest.raises(SystemExit, match="expected --layers to match one of linear 1024x1024 b128, .*, got conv 9x9"):
        layers.select(["conv 9x9"])


def test_a_plot_has_break_even_targets_and_a_line_per_layer():
    cells = [cell(s, dense=10, native=5, sparseprop=20) for s in SPARSITIES]
    blocks = [cell(0.9, "block:4x1", dense=10, native=2), cell(0.7, "block:4x1", dense=10, native=4)]
    first, second = plot.draw(record(*cells, *blocks)).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in first.get_lines()}
    assert lines["8x8 4px b2"] == pytest.approx([2] * 5)
    assert lines["sparseprop (mean)"] == pytest.approx([0.5] * 5)
    assert lines["target"] == [1, 2, 3.5, 6, 9]
    assert [1, 1] in lines.values()
    shown = {line.get_label(): list(line.get_ydata()) for line in second.get_lines()}
    assert shown["8x8 4px b2"] == pytest.approx([2.5, 5])
    assert shown["target"] == [5.5]
    assert [tick.get_text() for tick in second.get_xticklabels()] == ["60%", "70%", "80%", "90%", "95%", "98%"]


def test_a_plot_of_nothing_is_refused():
    with pytest.raises(SystemExit, match="expected cells with the native kernel, got none"):
        plot.draw(record(cell(dense=10)))


def test_sweep_finds_each_distinct_layer_once_without_computing():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.Flatten(2),
        nn.Linear(16, 5),
    )
    assert sweep.layers_of(model, 8, 6) == [
        Layer("conv", 6, (3, 8), 8, 3, 2, 1, bias=False),
        Layer("conv", 6, (8, 8), 4, 1, groups=2),
        Layer("linear", 48, (16, 5)),
    ]
    assert next(model.parameters()).is_meta


@pytest.mark.parametrize("conv", [nn.Conv2d(3, 4, (1, 3)), nn.Conv2d(3, 4, 3, dilation=2), nn.Conv2d(3, 4, 3, (1, 2))])
def test_sweep_refuses_what_a_layer_cannot_say(conv):
    with pytest.raises(ValueError, match="expected a square, undilated convolution"):
        sweep.layers_of(conv, 8, 1)


def test_sweep_times_auto_under_the_kernel_it_took():
    for some in sweep.measure(SMALL[1], [0.5, 0.95], rounds=1):
        assert sweep.auto(some) in some.seconds
        assert {"dense", "dense channels_last"} < some.seconds.keys()
        assert len(some.seconds) == 3


def test_sweep_names_violators_worst_first():
    cells = [cell(0.5, dense=10, **{sweep.DENSE: 10.9}), cell(0.5, dense=10, **{sweep.NATIVE: 12}),
             cell(0.5, dense=10, **{sweep.DENSE: 20})]  # fmt: skip
    lines = sweep.report("net", [*cells]).splitlines()
    assert lines[0] == "net: 1 distinct layers"
    assert lines[1].strip() == "50%: 1/3 ran sparse, 0 too slow, 0.70x over all of them"  # too few lanes to matter
    large = [type(some)(**{**vars(some), "lanes": 64}) for some in cells]
    lines = sweep.report("net", large).splitlines()
    assert "1/3 ran sparse, 2 too slow" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["0.50x", "0.83x"]


def test_sweep_says_which_networks_are_absent(monkeypatch, capsys):
    monkeypatch.setattr(sweep, "IMAGES", {"no_such_net": 32})
    sweep.main(["--threads", "1"])
    assert capsys.readouterr().out.startswith("no_such_net: absent: expected a model to be one of")


@pytest.mark.parametrize("cores, expected", [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_thread_counts(cores, expected):
    assert scaling.counts(cores) == expected


def test_scaling_shows_gain_from_threads_and_speedup_at_each_count():
    one, two = cell(dense=10, native=4), cell(dense=5, native=2.5)
    _, first, second = scaling.lines([1, 2], [one, two])[0:]
    assert first.split(" · ")[1:] == ["native 4.00 ms (1.00x)", "native over dense 2.50x"]
    assert "dense 5.00 ms (2.00x) · native 2.50 ms (1.60x) · native over dense 2.00x" in second


def test_scaling_names_layers_by_threads(small, tmp_path):
    path = tmp_path / "scaling.json"
    threads = torch.get_num_threads()
    try:
        scaling.main(["--threads", "1,2", "--rounds", "1", "--layers", "linear", "--json", str(path)])
    finally:
        torch.set_num_threads(threads)
    assert [c.layer for c in Record.read(path).cells] == [f"{SMALL[0]} t1", f"{SMALL[0]} t2"]


@pytest.mark.parametrize("route", overhead.ROUTES)
def test_parts_of_the_overhead_add_up(route):
    some = overhead.measure(overhead.LAYERS[0], route, rounds=20)
    assert some.native + some.kernels + some.autograd + some.front == pytest.approx(some.total)
    assert some.dense + some.extra == pytest.approx(some.total)
    assert some.native > 0 and some.kernels > 0


def test_the_core_is_itself_again_after_its_calls_were_timed():
    core = overhead.native()
    before = dict(vars(core))
    with pytest.raises(KeyError), overhead._core_calls() as calls:
        core.isa()
        assert len(calls) == 1
        raise KeyError
    assert dict(vars(core)) == before


def test_a_way_that_computes_something_else_is_listed_and_not_timed(small, monkeypatch):
    def wrong(layer, name, sparse):
        case = sparse_case(layer, name, sparse)
        return replace(case, x=2 * case.x) if name == "masked" else case

    monkeypatch.setattr(layers, "sparse_case", wrong)
    [some] = layers.measure(SMALL[1], "unstructured", [0.5], layers.Options(1, ("native", "masked")))
    assert list(some.seconds) == ["dense", "dense channels_last", "native"]
    assert some.absent.keys() == {"masked"}
    assert some.absent["masked"].startswith("wrong output")


def test_update_times_every_method_beside_what_is_asked(monkeypatch, capsys):
    def small():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, stride=2),
            nn.Flatten(),
            nn.Linear(32, 16),
            nn.Linear(16, 10),
        )

    monkeypatch.setattr(update, "network", small)
    monkeypatch.setattr(update, "BATCH", 2)
    monkeypatch.setattr(update, "SIZE", 8)
    update.main(["--threads", "1", "--rounds", "1"])
    head, names, *rows = capsys.readouterr().out.splitlines()
    assert head.count("1 threads") == 1 and names.split()[:2] == ["step", "ms"]
    assert [row.split()[0] for row in rows] == list(METHODS)
    update.main(["--threads", "1", "--rounds", "1", "--parts", "rigl"])
    assert "moves.py" in capsys.readouterr().out


def test_a_cost_in_steps():
    """An update step of 5 beside steps of 2 takes 1.5 steps more: 1.5% of the training at one in a hundred."""
    times = [summarise([seconds] * 3) for seconds in (2.0, 5.0)]
    cost = update.Cost(*times)
    assert (cost.update, cost.steps, cost.share(), cost.share(10)) == (3.0, 1.5, 0.015, 0.15)


def test_memory_is_the_share_of_the_leaner_dense_way(monkeypatch):
    small = networks.Network("resnet20", batch=2, size=8)
    monkeypatch.setitem(networks.NETWORKS, "small", small)
    dense, sparse = (memory.allocated("small", way) for way in ("contiguous", networks.Sparse("unstructured", 0.9)))
    assert 0 < sparse < dense
    assert memory.allocated("small", "contiguous") == dense  # alike in every run
    assert memory.share({"contiguous": 8, "channels_last": 4, "sparse": 3}) == 0.75
    case, peaks = networks.MEMORY_CASE, {"contiguous": 8, "channels_last": 4, "sparse": 3}
    held = {"contiguous": 10, "channels_last": 20, "sparse": 12}
    row = step.Row("small", case, {"contiguous": 2.0}, 1.0, (1, 1), peaks=peaks, resident=held)
    assert row.memory == 0.75
    assert step.line(row).split()[-5:] == ["75%", "<=", "75%", "pass", "120%"]
