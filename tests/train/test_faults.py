"""A run directory that is in use, full or half made: told before training starts, or with the last checkpoint kept."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from train.runs import bits, figures, last_state, recipe, same
from typer.testing import CliRunner

from spfde import cli
from spfde.train import CheckpointError, WriteError, fit, run_dir
from spfde.train.run_dir import locked

SHORT = {"epochs": 2, "freeze": 0, "checkpoint_every_steps": 2}


def content(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@contextmanager
def held(out):
    """A directory that another process holds."""
    code = (  # as run_dir.locked does, without the seconds that importing torch takes
        "import fcntl, os, sys\n"
        f"handle = os.open({str(out / run_dir.LOCK)!r}, os.O_RDWR | os.O_CREAT)\n"
        "fcntl.lockf(handle, fcntl.LOCK_EX)\n"
        "os.write(handle, str(os.getpid()).encode())\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen([sys.executable, "-c", code], **pipes)
    try:
        assert child.stdout.readline() == "held\n"
        yield child
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()


def test_two_runs_in_one_directory_are_refused_until_the_first_is_gone(tmp_path):
    with held(tmp_path) as child:
        before = content(tmp_path)
        for options in ({}, {"overwrite": True}):
            with pytest.raises(ValueError, match=f"no other run uses, got .*, in use by process {child.pid}, try"):
                fit(recipe(out=tmp_path, **SHORT), **options)
        assert content(tmp_path) == before
    fit(recipe(out=tmp_path, **SHORT))
    with locked(tmp_path):
        pass


def test_a_comparison_holds_the_directory_above_its_runs(tmp_path):
    flags = f"--compare dense --epochs 2 --freeze 0 --train-images 64 --test-images 32 --width 0.25 --out {tmp_path}"
    with held(tmp_path):
        result = CliRunner().invoke(cli.build("train"), ["train", *flags.split()])
        assert "expected a run directory that no other run uses" in str(result.exception)
        assert not (tmp_path / run_dir.RUN).exists()


def test_where_a_file_system_has_no_locks_a_run_goes_without(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("spfde.train.run_dir.fcntl.lockf", refuse)
    with locked(tmp_path):
        pass


@contextmanager
def largest_file(size):
    """No file of this process may grow past `size` bytes: what a full disk is to a checkpoint."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_directory_without_room_is_refused_before_training_and_before_anything_is_replaced(tmp_path):
    fit(recipe(out=tmp_path, **SHORT))
    run_dir.checkpoints(tmp_path)[-1].unlink()
    before = content(tmp_path)
    size = run_dir.checkpoints(tmp_path)[-1].stat().st_size
    room = r"expected room for a checkpoint of .* MiB in .*, got File too large, try freeing space"
    with largest_file(size), pytest.raises(ValueError, match=room):
        fit(recipe(out=tmp_path, **SHORT), overwrite=True)
    with largest_file(size), pytest.raises(ValueError, match=room):
        fit(recipe(out=tmp_path, **SHORT), resume=True)
    assert content(tmp_path) == before


def test_a_directory_without_room_is_told_from_one_that_is_gone(tmp_path):
    with pytest.raises(ValueError, match="got No such file or directory, try a directory that can be written"):
        run_dir.require_space(tmp_path / "gone", 2**20)


def test_a_disk_that_fills_up_later_keeps_the_last_checkpoint(whole, tmp_path):
    def fill(record):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    told = r"expected to write .*epoch-001-step-000002\.pt, got File too large; what was kept before stands"
    with largest_file(2**30), pytest.raises(WriteError, match=told):
        fit(recipe(out=tmp_path, **SHORT), on_epoch=fill)
    assert [path.name for path in (tmp_path / run_dir.CHECKPOINTS).iterdir()] == ["epoch-000.pt"]
    assert_same_run(tmp_path, fit(recipe(out=tmp_path, **SHORT), resume=True), whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, fit(recipe(out=out, **SHORT))


def assert_same_run(out, result, whole):
    assert same(bits(result.model), bits(whole[1].model))
    assert same(last_state(out), last_state(whole[0]))
    assert [figures(e) for e in result.epochs] == [figures(e) for e in whole[1].epochs]
    assert len((out / run_dir.METRICS).read_text().splitlines()) == len(result.epochs)
    assert not list(out.rglob("*.partial")) and (out / run_dir.RESULT).exists()


def is_file(handle):
    return os.path.isfile(f"/proc/self/fd/{handle}")


# run.json, recipe.toml, two checkpoints within and one after each of two epochs, layers.json, result.json
@pytest.mark.parametrize("write", [1, 2, 3, 4, 7, 8])
def test_any_write_may_fail_and_the_run_is_resumed(write, whole, tmp_path, monkeypatch):
    sync, seen = os.fsync, []

    def full(handle):
        if is_file(handle):
            seen.append(handle)
            if len(seen) == write:
                raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"expected to write .*, got No space left on device; what was kept before"):
        fit(recipe(out=tmp_path, **SHORT))
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.partial"))
    resume = run_dir.begun(tmp_path) or bool(run_dir.checkpoints(tmp_path))
    assert resume == (write > 1)
    assert_same_run(tmp_path, fit(recipe(out=tmp_path, **SHORT), resume=resume), whole)


def test_a_metrics_line_that_does_not_fit_is_told_and_mended(whole, tmp_path, monkeypatch):
    append = run_dir.append_line

    def half(path, record):
        with largest_file(100):
            append(path, record)

    monkeypatch.setattr(run_dir, "append_line", half)
    with pytest.raises(WriteError, match=r"expected to write .*metrics\.jsonl, got File too large"):
        fit(recipe(out=tmp_path, **SHORT))
    monkeypatch.undo()
    assert len((tmp_path / run_dir.METRICS).read_bytes()) == 100
    assert_same_run(tmp_path, fit(recipe(out=tmp_path, **SHORT), resume=True), whole)


def test_metrics_that_turned_to_noise_come_back_from_the_checkpoint(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / run_dir.METRICS).write_bytes(b"\xff\x00" * 300)
    assert_same_run(tmp_path, fit(recipe(out=tmp_path, **SHORT), resume=True), whole)


def test_a_run_that_ended_before_its_first_checkpoint_starts_again(whole, tmp_path):
    def begin():
        for path in run_dir.checkpoints(tmp_path):
            path.unlink()
        (tmp_path / run_dir.RUN).write_bytes((whole[0] / run_dir.RUN).read_bytes())

    begin()
    with pytest.raises(CheckpointError, match=r"expected the recipe of .*run\.json, got another one \(lr: 0.05, got"):
        fit(recipe(out=tmp_path, **{**SHORT, "lr": 0.3}), resume=True)
    assert_same_run(tmp_path, fit(recipe(out=tmp_path, **SHORT), resume=True), whole)


def test_the_recipe_in_a_json_file_is_the_same_with_milestones(tmp_path):
    options = {**SHORT, "schedule": "step", "milestones": (0.5, 0.75)}
    (tmp_path / run_dir.RUN).write_text(json.dumps({"recipe": recipe(**options).to_dict()}))
    assert len(fit(recipe(out=tmp_path, threads=1, **options), resume=True).epochs) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": 3}'])
def test_a_run_that_began_with_no_readable_recipe_is_refused(text, tmp_path):
    (tmp_path / run_dir.RUN).write_text(text)
    with pytest.raises(CheckpointError, match=r"expected a run's recipe in .*run\.json, got .*, try without resume"):
        fit(recipe(out=tmp_path, **SHORT), resume=True)
