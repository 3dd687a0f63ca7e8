"""Event files for TensorBoard, read back with TensorBoard's own reader."""

import dataclasses
import sys

import pytest
from train.runs import OPTIONS, recipe, stop_within
from typer.testing import CliRunner

from spfde.cli import build
from spfde.levers import Decision
from spfde.train import Epoch, Recipe, fit
from spfde.train.progress import MultiProgress, NullProgress, TensorBoard, scalars
from spfde.train.stats import CATEGORIES

RECORD = Epoch(
    epoch=0,
    train_loss=0.25,
    train_accuracy=0.5,
    test_accuracy=0.75,
    lr=0.1,
    samples=90,
    flops=1e9,
    seconds=dict.fromkeys(CATEGORIES, 1.0),
    frozen=("layer1.0",),
    sieved=3,
    sparsity=0.9,
    events=(),
    layers={"conv1": 0.0, "conv2": 0.9},
    memory=2**20,
)


def read(directory):
    """The charts of a directory, as TensorBoard shows them."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError)
    reader = module.EventAccumulator(str(directory))
    reader.Reload()
    return reader


def points(reader, name):
    return [(point.step, pytest.approx(point.value)) for point in reader.Scalars(name)]


def test_a_run_can_be_read_by_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    result = fit(recipe(epochs=2, freeze=0), progress=TensorBoard(tmp_path / "events"))
    reader = read(tmp_path / "events")
    assert set(reader.Tags()["scalars"]) == set(scalars(result.epochs[0]))
    assert points(reader, "accuracy/test") == [(e.epoch, e.test_accuracy) for e in result.epochs]
    assert "levers/topology/text_summary" in reader.Tags()["tensors"]
    (first,) = [e for e in result.epochs[0].events if e.kind == "topology"]
    told = reader.Tensors("levers/topology/text_summary")[0].tensor_proto.string_val[0].decode()
    assert told == f"{first.text} ({first.reason})"


def test_the_flag_writes_next_to_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    flags = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = ["train", *flags, "--epochs", "2", "--freeze", "0", "--layout", "contiguous"]
    done = CliRunner().invoke(build("train"), [*command, "--tensorboard", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert len(points(read(tmp_path / "tensorboard"), "accuracy/test")) == 2


def test_a_resumed_run_takes_the_place_of_what_it_repeats(tmp_path):
    pytest.importorskip("tensorboard")
    for first, accuracies in ((0, (0.1, 0.2, 0.3)), (1, (0.7, 0.8))):
        board = TensorBoard(tmp_path)
        board.start(Recipe(), first, "")
        for epoch, accuracy in enumerate(accuracies, start=first):
            board.epoch(dataclasses.replace(RECORD, epoch=epoch, test_accuracy=accuracy))
        board.close()
    assert points(read(tmp_path), "accuracy/test") == [(0, 0.1), (1, 0.7), (2, 0.8)]


def test_a_run_resumed_within_an_epoch_tells_what_the_levers_did_at_its_start(tmp_path):
    pytest.importorskip("tensorboard")
    fields, run, events = {"epochs": 2, "freeze": 0}, tmp_path / "run", tmp_path / "events"
    stop_within(1, 2, run, fields=fields)
    result = fit(recipe(out=run, **fields), resume=True, progress=TensorBoard(events))
    assert [event.kind for event in result.epochs[1].events if event.kind == "sieve"]
    assert "levers/sieve/text_summary" in read(events).Tags()["tensors"]


def test_missing_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"expected tensorboard.*try pip install spfde\[tensorboard\]"):
        TensorBoard(tmp_path)


def test_the_flag_needs_a_directory():
    result = CliRunner().invoke(build("train"), ["train", "--tensorboard"])
    assert isinstance(result.exception, ValueError)
    assert "expected a run directory with --tensorboard, got none" in str(result.exception)


def test_all_watchers_are_told_in_order():
    heard = []

    class Ear(NullProgress):
        def __init__(self, name):
            self.name = name

        def __getattribute__(self, call):
            name = object.__getattribute__(self, "name")
            return lambda *arguments: heard.append((name, call, *arguments))

    both = MultiProgress(Ear("a"), Ear("b"))
    event = Decision("freeze", "froze layer1.0", "planned")
    both.start(Recipe(), 2, "note")
    both.step(2, 0, 5, 64, 0.5)
    both.event(2, event)
    both.epoch(RECORD)
    both.warn("told once")
    both.close()
    heard.remove(("a", "warn", "told once"))
    assert [h[1:] for h in heard if h[0] == "a"] == [h[1:] for h in heard if h[0] == "b"]
    assert heard[::2] == [
        ("a", "start", Recipe(), 2, "note"),
        ("a", "step", 2, 0, 5, 64, 0.5),
        ("a", "event", 2, event),
        ("a", "epoch", RECORD),
        ("a", "close"),
    ]
