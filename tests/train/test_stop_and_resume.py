"""A run that was stopped and resumed equals the one that was not, to the bit; and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from train.runs import OPTIONS, Stop, bits, figures, last_state, recipe, same, stop_after

from spfde import data, models, sparsify
from spfde.train import CheckpointError, Recipe, checkpoint, fit
from spfde.train import run_dir as run_files
from spfde.train.run_dir import checkpoint_path, checkpoints

EPOCHS = OPTIONS["epochs"]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train=128, test=32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run without a break: its directory and its result."""
    out = tmp_path_factory.mktemp("whole")
    return out, fit(recipe(out=out))


@pytest.fixture
def stopped(whole, tmp_path):
    """A copy of the run as it was after epoch 2."""
    out = tmp_path / "stopped"
    shutil.copytree(whole[0], out)
    for path in checkpoints(out)[3:]:
        path.unlink()
    (out / run_files.RESULT).unlink()
    return out


def assert_same_run(out: Path, result, whole) -> None:
    assert same(bits(result.model), bits(whole[1].model))
    assert same(last_state(out), last_state(whole[0]))
    assert [figures(e) for e in result.epochs] == [figures(e) for e in whole[1].epochs]
    lines = [json.loads(line) for line in (out / run_files.METRICS).read_text().splitlines()]
    assert lines == [e.to_dict() for e in result.epochs] and len(lines) == EPOCHS


def test_the_run_has_every_lever(whole):
    events = {event.kind for record in whole[1].epochs for event in record.events}
    assert events == {"topology", "freeze", "sieve"}
    assert len(whole[1].epochs[-1].frozen) >= 3 and not whole[1].epochs[1].frozen
    assert all(record.sieved == 32 for record in whole[1].epochs)


@pytest.mark.parametrize("epoch", [0, EPOCHS - 1])
def test_stopped_after_any_epoch_and_resumed(epoch, whole, tmp_path):
    stop_after(epoch, tmp_path)
    assert checkpoints(tmp_path)[-1] == checkpoint_path(tmp_path, epoch)
    assert_same_run(tmp_path, fit(recipe(out=tmp_path), resume=True), whole)


def test_stopped_after_every_epoch(whole, tmp_path):
    stop_after(0, tmp_path)
    for epoch in range(1, EPOCHS - 1):
        stop_after(epoch, tmp_path, resume=True)
    assert_same_run(tmp_path, fit(recipe(out=tmp_path), resume=True), whole)


def test_resuming_a_finished_run_trains_nothing(whole, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(whole[0], out)
    seen = []
    result = fit(recipe(out=out), resume=True, on_epoch=seen.append)
    assert not seen
    assert_same_run(out, result, whole)


def test_a_moved_run_directory_and_another_random_state_make_no_difference(stopped, whole):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert_same_run(stopped, fit(recipe(out=stopped, keep_checkpoints=2), resume=True), whole)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(checkpoints(stopped)) == 2


def test_a_crash_between_checkpoint_and_metrics_loses_no_line(whole, tmp_path, monkeypatch):
    append = run_files.append_line

    def crash(path, record):
        if record["epoch"] == 3:
            with open(path, "a") as file:
                file.write('{"epoch": 3, "train_lo')
            raise Stop
        append(path, record)

    monkeypatch.setattr(run_files, "append_line", crash)
    with pytest.raises(Stop):
        fit(recipe(out=tmp_path))
    monkeypatch.undo()
    result = fit(recipe(out=tmp_path), resume=True)
    assert_same_run(tmp_path, result, whole)
    kept, lost = (result.epochs[epoch].seconds["checkpoint"] for epoch in (2, 3))
    assert 0 <= lost < kept / 2  # the checkpoint does not know what it took itself, only that each step asked for one


@pytest.mark.parametrize("key", ["train_loss", "frozen", "seconds"])
def test_a_line_of_metrics_that_lacks_something_gives_way_to_the_checkpoints(key, stopped, whole):
    path = stopped / run_files.METRICS
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[1][key]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert_same_run(stopped, fit(recipe(out=stopped), resume=True), whole)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "pickle"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_goes_on(damage, stopped, whole):
    newest = checkpoints(stopped)[-1]
    content = newest.read_bytes()
    if damage == "pickle":
        torch.save(Stop, newest)
    else:
        newest.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello\n"}[damage])
    bad = newest.read_bytes()
    told = r"complete spfde checkpoint at .*epoch-002\.pt.*set aside as epoch-002\.pt\.refused, .* from .*epoch-001\.pt"
    with pytest.warns(RuntimeWarning, match=told):
        result = fit(recipe(out=stopped), resume=True)
    assert_same_run(stopped, result, whole)
    assert newest.with_name("epoch-002.pt.refused").read_bytes() == bad


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ([1], "got another kind of file"),
        ({"model": {}}, "got another kind of file"),
        ({"format": "spfde.train", "version": 1}, "version 3 checkpoint .*, got version 1"),
    ],
)
def test_where_no_checkpoint_can_be_used_nothing_is_touched(state, words, stopped):
    for path in checkpoints(stopped):
        torch.save(state, path)
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=f"{words}.*; 2 older ones cannot be used either"):
        fit(recipe(out=stopped), resume=True)
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


def test_another_machine_is_told(stopped, whole):
    newest = checkpoints(stopped)[-1]
    state = checkpoint.load(newest)
    checkpoint.save(newest, {**state, "machine": {**state["machine"], "isa": "abacus"}})
    with pytest.warns(RuntimeWarning, match="expected isa 'abacus', as the checkpoint was made with, got .* last bits"):
        result = fit(recipe(out=stopped), resume=True)
    assert len(result.epochs) == EPOCHS


def test_a_kernel_that_was_forced_is_told(tmp_path, digits):
    def run(kernel, **options):
        torch.manual_seed(1)
        model = sparsify(models.create("resnet20", in_channels=1, width=0.25), 0.7)
        model.layer1[0].conv1.kernel = kernel
        data = {"train_set": digits.train, "test_set": digits.test}
        return fit(recipe(out=tmp_path, epochs=2, freeze=0), model=model, **data, **options)

    def stop(record):
        raise Stop

    with pytest.raises(Stop):
        run("dense", on_epoch=stop)
    with pytest.warns(RuntimeWarning, match=r"expected kernels \{'layer1\.0\.conv1': 'dense'\}, .*, got \{\}"):
        run("auto", resume=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.2}, r"\(lr: 0.05, got 0.2\), try the kept values"),
        ({"seed": 1, "batch_size": 16}, "batch_size: 32, got 16; seed: 0, got 1"),
        ({"epochs": 8}, "epochs: 5, got 8.*; other epochs need a new run"),
        ({"method": "dense", "sparsity": 0, "freeze": 0, "sieve": 0}, "method: 'spfde', got 'dense'"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(options, words, stopped):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=words):
        fit(recipe(out=stopped, **options), resume=True)
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


def test_a_checkpoint_of_other_data_or_another_network_is_refused(stopped, digits):
    model = models.create("resnet20", in_channels=1, width=0.25)
    half = torch.utils.data.Subset(digits.train, range(64))
    with pytest.raises(CheckpointError, match="expected the 128 training samples of .*, got 64"):
        fit(recipe(out=stopped), model=model, train_set=half, test_set=digits.test, resume=True)
    with pytest.raises(CheckpointError, match="expected the checkpoint of this network"):
        fit(recipe(out=stopped), model=models.create("resnet20", in_channels=1, width=0.5), resume=True)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "lr": 0.003, "accumulate": 3, "clip": 1.0, "label_smoothing": 0.1, "sieve_by": "random"},
        {"precision": "bfloat16", "schedule": "step", "fuse": True, "crop": 2, "flip": True, "nesterov": True},
    ],
)
def test_every_option_goes_on_where_it_was(options, tmp_path):
    whole = fit(recipe(out=tmp_path / "whole", **options))

    def stop(record):
        if record.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(recipe(out=tmp_path / "parts", **options), on_epoch=stop)
    kept = json.loads((tmp_path / "parts" / run_files.RUN).read_text())["recipe"]
    parts = fit(Recipe.from_dict(kept), resume=True)
    assert_same_run(tmp_path / "parts", parts, (tmp_path / "whole", whole))


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ValueError, match="expected a checkpoint to resume in .*, got none, try without resume"):
        fit(recipe(out=tmp_path / "none"), resume=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="run directory to resume, got out=None"):
        fit(recipe(), resume=True)
    with pytest.raises(ValueError, match="got overwrite"):
        fit(recipe(out=tmp_path), resume=True, overwrite=True)


class Noisy(Dataset):
    """Digits with an augmentation drawn from torch's random state."""

    def __init__(self, digits):
        self.digits = digits

    def __len__(self):
        return len(self.digits)

    def __getitem__(self, index):
        image, target = self.digits[index]
        return image + 0.1 * torch.randn(image.shape), target


def test_a_random_augmentation_goes_on_where_it_was(digits, tmp_path):
    def run(out, **options):
        torch.manual_seed(1)
        model = models.create("resnet20", in_channels=1, width=0.25)
        data = {"train_set": Noisy(digits.train), "test_set": digits.test}
        return fit(recipe(out=out, epochs=3, freeze=0), model=model, **data, **options)

    def stop(record):
        raise Stop

    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "parts", on_epoch=stop)
    parts = run(tmp_path / "parts", resume=True)
    assert same(last_state(tmp_path / "parts"), last_state(tmp_path / "whole"))
    assert [figures(e) for e in parts.epochs] == [figures(e) for e in whole.epochs]
