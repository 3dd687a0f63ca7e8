import os
import stat

import pytest

from spfde.train import run_dir


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    run_dir.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        run_dir.write_json(path, {"a": object()})

    def half(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_dir.write_atomically(path, half)
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_a_file_is_on_disk_before_it_takes_the_name_and_then_its_directory(tmp_path, monkeypatch):
    calls = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (calls.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"), real_sync(fd)),
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), real_replace(a, b)))
    run_dir.write_atomically(tmp_path / "x", lambda file: file.write(b"x"))
    assert calls == ["file", "rename", "directory"]


def test_files_get_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    run_dir.write_json(tmp_path / "ours", 1)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_lines_are_written_and_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    run_dir.write_lines(path, [{"epoch": 0}])
    run_dir.append_line(path, {"epoch": 1})
    assert path.read_text() == '{"epoch": 0}\n{"epoch": 1}\n'


def test_checkpoints_are_listed_by_epoch_whatever_else_lies_there(tmp_path):
    for name in ("epoch-002.pt", "epoch-1000.pt", "epoch-010.pt", "epoch-x.pt", ".epoch-011.pt.9.partial", "notes"):
        path = tmp_path / run_dir.CHECKPOINTS / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [p.name for p in run_dir.checkpoints(tmp_path)] == ["epoch-002.pt", "epoch-010.pt", "epoch-1000.pt"]
    assert run_dir.checkpoint_path(tmp_path, 2) in run_dir.checkpoints(tmp_path)


def test_a_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a run directory that can be written, got .*file.* try another out"):
        run_dir.check_directory(tmp_path / "file" / "run", resume=False, overwrite=False)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="expected a run directory that can be written, got .*Permission denied"):
        run_dir.check_directory(tmp_path, resume=False, overwrite=False)


def test_a_run_is_not_replaced_unasked(tmp_path):
    run_dir.check_directory(tmp_path, resume=False, overwrite=False)
    run_dir.checkpoint_path(tmp_path, 0).touch()
    with pytest.raises(ValueError, match=r"expected a run directory without a run, got .*epoch-000\.pt.*try resume"):
        run_dir.check_directory(tmp_path, resume=False, overwrite=False)
    run_dir.check_directory(tmp_path, resume=True, overwrite=False)
    run_dir.check_directory(tmp_path, resume=False, overwrite=True)
    assert run_dir.checkpoints(tmp_path), "checking removes nothing"


def test_resuming_nothing_is_refused(tmp_path):
    for name in (run_dir.RUN, run_dir.METRICS):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="expected a checkpoint to resume in .*, got none, try without resume"):
        run_dir.check_directory(tmp_path, resume=True, overwrite=False)


def test_clearing_takes_a_runs_files_and_leaves_others(tmp_path):
    run_dir.check_directory(tmp_path, resume=False, overwrite=False)
    for path in (run_dir.checkpoint_path(tmp_path, 0), *(tmp_path / name for name in (*run_dir.FILES, "mine.txt"))):
        path.touch()
    (tmp_path / ".run.json.7.partial").touch()
    run_dir.clear(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["mine.txt"]
