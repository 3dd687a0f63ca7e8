import pytest
import torch
from train.runs import recipe

from spfde._machine import Machine
from spfde.kernels.dispatch import in_use
from spfde.kernels.dispatch.table import Table
from spfde.train import CheckpointError, Recipe, WriteError, checkpoint, fit, run_dir

STATE = {"weights": torch.arange(1000.0), "name": "a", "numbers": [1, 2.5, None]}


@pytest.fixture
def saved(tmp_path):
    run_dir.check_directory(tmp_path, resume=False, overwrite=False)
    path = run_dir.checkpoint_path(tmp_path, 0)
    checkpoint.save(path, STATE)
    return path


def test_plain_torch_reads_it_without_trust(saved):
    state = torch.load(saved, weights_only=True)
    assert torch.equal(state["weights"], STATE["weights"])
    assert state["numbers"] == checkpoint.load(saved)["numbers"] == [1, 2.5, None]


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(saved):
    whole = saved.read_bytes()
    before = checkpoint.load(saved)
    refused = 0
    for at in range(0, len(whole), 61):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        saved.write_bytes(damaged)
        try:
            state = checkpoint.load(saved)
        except CheckpointError as error:
            refused += 1
            assert str(saved) in str(error) and ", try an older checkpoint or a new run" in str(error)
        else:
            assert torch.equal(state.pop("weights"), before["weights"])  # padding, a date
            assert state == {key: value for key, value in before.items() if key != "weights"}
    assert refused > 4000 / 61


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_by_name(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=rf"expected a complete spfde checkpoint at .*{saved.name}, got .*, try"):
        checkpoint.load(saved)


def test_foreign_files_are_refused_by_name(saved):
    saved.write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=rf"expected a complete spfde checkpoint at .*{saved.name}"):
        checkpoint.load(saved)
    for foreign in ({"model": {}}, torch.zeros(3), [1]):
        torch.save(foreign, saved)
        with pytest.raises(CheckpointError, match=rf"that spfde train wrote at .*{saved.name}, got another kind"):
            checkpoint.load(saved)


def test_a_file_that_would_run_code_is_refused(saved):
    torch.save({"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "state": print}, saved)
    with pytest.raises(CheckpointError, match="expected a complete spfde checkpoint"):
        checkpoint.load(saved)


def test_another_version_is_refused(saved):
    torch.save({"format": checkpoint.FORMAT, "version": checkpoint.VERSION + 1}, saved)
    with pytest.raises(CheckpointError, match="expected a version 3 checkpoint at .*, got version 4, try the spfde"):
        checkpoint.load(saved)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="expected a checkpoint at .*, got no file, try without resume"):
        checkpoint.load(tmp_path / "epoch-000.pt")


def test_a_full_disk_leaves_the_last_checkpoint(saved, monkeypatch):
    def full(value, file):
        file.write(b"some of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        WriteError, match=r"expected to write .*epoch-001.*No space left.*what was kept before stands, try freeing"
    ):
        checkpoint.save(run_dir.checkpoint_path(saved.parents[1], 1), STATE)
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    assert torch.equal(checkpoint.load(saved)["weights"], STATE["weights"])


def test_only_the_newest_are_kept_where_asked(saved):
    out = saved.parents[1]
    for epoch in range(1, 4):
        checkpoint.save(run_dir.checkpoint_path(out, epoch), STATE)
        checkpoint.prune(out, keep=2)
    assert [p.name for p in run_dir.checkpoints(out)] == ["epoch-002.pt", "epoch-003.pt"]


def test_within_an_epoch_two_are_kept_and_none_once_it_is_done(saved):
    out = saved.parents[1]
    for step in (5, 10, 100):
        checkpoint.save(run_dir.checkpoint_path(out, 1, step), STATE)
        checkpoint.prune(out)
    names = [p.name for p in run_dir.checkpoints(out)]
    assert names == ["epoch-000.pt", "epoch-001-step-000010.pt", "epoch-001-step-000100.pt"]
    checkpoint.prune(out, keep=1)
    assert [p.name for p in run_dir.checkpoints(out)] == names
    checkpoint.save(run_dir.checkpoint_path(out, 1), STATE)
    checkpoint.prune(out)
    assert [p.name for p in run_dir.checkpoints(out)] == ["epoch-000.pt", "epoch-001.pt"]


def test_another_recipe_is_refused_by_its_fields(tmp_path):
    state = Recipe(lr=0.1, seed=1).to_dict()
    checkpoint.require_same_recipe(state, Recipe(lr=0.1, seed=1, out="elsewhere"), tmp_path)
    with pytest.raises(CheckpointError, match=r"\(lr: 0\.1, got 0\.2; seed: 1, got 0\), try the kept values"):
        checkpoint.require_same_recipe(state, Recipe(lr=0.2), tmp_path)


def test_extending_the_epochs_is_refused_with_the_reason(tmp_path):
    state = Recipe(epochs=20).to_dict()
    with pytest.raises(CheckpointError, match=r"epochs: 20, got 30.*need a new run, since the .* cosine is spread"):
        checkpoint.require_same_recipe(state, Recipe(epochs=30), tmp_path)


def test_another_data_set_is_refused(tmp_path):
    checkpoint.require_same_samples(90, 90, tmp_path)
    with pytest.raises(CheckpointError, match="expected the 90 training samples of .*, got 91, try the same data"):
        checkpoint.require_same_samples(90, 91, tmp_path)


def test_the_tables_that_choose_kernels_are_named(monkeypatch, tmp_path):
    table = Table(Machine.of_cpu(), ())
    made = recipe(epochs=1, freeze=0, train_images=32, out=str(tmp_path))
    kept = []
    for tables in ({}, {"": table}):
        monkeypatch.setattr(in_use, "_process", tables)
        fit(made, overwrite=True)
        kept.append(checkpoint.load(run_dir.checkpoints(tmp_path)[-1])["machine"]["tables"])
    assert kept == [None, [table.name]]
