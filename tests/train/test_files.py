import os
import stat

import pytest

from spfde.train import files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})

    def half(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, half)
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
    files.write_atomically(tmp_path / "x", lambda file: file.write(b"x"))
    assert calls == ["file", "rename", "directory"]


def test_files_get_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    files.write_json(tmp_path / "ours", 1)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_lines_are_written_and_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    files.write_lines(path, [{"epoch": 0}])
    files.append_line(path, {"epoch": 1})
    assert path.read_text() == '{"epoch": 0}\n{"epoch": 1}\n'


def test_checkpoints_are_listed_by_epoch_whatever_else_lies_there(tmp_path):
    for name in ("epoch-002.pt", "epoch-1000.pt", "epoch-010.pt", "epoch-x.pt", ".epoch-011.pt.9.partial", "notes"):
        path = tmp_path / files.CHECKPOINTS / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [p.name for p in files.checkpoints(tmp_path)] == ["epoch-002.pt", "epoch-010.pt", "epoch-1000.pt"]
    assert files.checkpoint_path(tmp_path, 2) in files.checkpoints(tmp_path)


def test_a_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a run directory that can be written, got .*file.* try another out"):
        files.check_directory(tmp_path / "file" / "run", resume=False, overwrite=False)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="expected a run directory that can be written, got .*Permission denied"):
        files.check_directory(tmp_path, resume=False, overwrite=False)


def test_a_run_is_not_replaced_unasked(tmp_path):
    files.check_directory(tmp_path, resume=False, overwrite=False)
    files.checkpoint_path(tmp_path, 0).touch()
    with pytest.raises(ValueError, match=r"expected a run directory without a run, got .*epoch-000\.pt.*try resume"):
        files.check_directory(tmp_path, resume=False, overwrite=False)
    files.check_directory(tmp_path, resume=True, overwrite=False)
    files.check_directory(tmp_path, resume=False, overwrite=True)
    assert files.checkpoints(tmp_path), "checking removes nothing"


def test_resuming_nothing_is_refused(tmp_path):
    for name in (files.RUN, files.METRICS):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="expected a checkpoint to resume in .*, got none, try without resume"):
        files.check_directory(tmp_path, resume=True, overwrite=False)


def test_clearing_takes_a_runs_files_and_leaves_others(tmp_path):
    files.check_directory(tmp_path, resume=False, overwrite=False)
    for path in (files.checkpoint_path(tmp_path, 0), *(tmp_path / name for name in (*files.FILES, "mine.txt"))):
        path.touch()
    (tmp_path / ".run.json.7.partial").touch()
    files.clear(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["mine.txt"]
