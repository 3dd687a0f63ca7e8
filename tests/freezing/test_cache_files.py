"""The activation cache's files: what is damaged, torn, foreign or in use is refused and never read."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from spfde.freezing import ActivationCache
from spfde.freezing.cache import files
from spfde.freezing.cache.store import INDEX

SAMPLES, SHAPE = 10, (3, 2, 2)
KINDS = ("float32", "bfloat16", "int8")
EVERY = torch.arange(SAMPLES)


def made(seed=0, count=SAMPLES):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def opened(path, dtype="float32", key="front", **options):
    cache = ActivationCache(path, **{"dtype": dtype, "budget": 2**20, **options})
    cache.open(key, SAMPLES, SHAPE, torch.float32)
    return cache


def filled(path, dtype="float32"):
    """A closed cache of six samples; what it gives for them."""
    cache = opened(path, dtype)
    rows = cache.write(EVERY[:6], made()[:6])
    cache.close()
    return rows


@pytest.mark.parametrize("dtype", KINDS)
def test_files_are_plain_arrays_that_the_next_cache_goes_on_with(tmp_path, dtype):
    rows = filled(tmp_path / "new", dtype)
    assert np.load(tmp_path / "new" / files.HOLDERS).tolist() == [1, 2, 3, 4, 5, 6, 0, 0, 0, 0]
    assert np.load(tmp_path / "new" / files.CODES, mmap_mode="r").shape == (SAMPLES, *SHAPE)
    cache = opened(tmp_path / "new", dtype)
    assert cache.reason == f"went on with 6 samples in {tmp_path / 'new'}"
    assert torch.equal(cache.read(EVERY[:6]), rows)
    cache.write(EVERY[6:], made()[6:])
    assert cache.lookup(EVERY).all()
    cache.close()


@pytest.mark.parametrize("budget", [2**20, "auto"])
def test_the_budget_of_files_is_kept_or_they_begin_anew(tmp_path, budget):
    filled(tmp_path)
    assert opened(tmp_path, budget=budget).stats.held == 6
    cache = opened(tmp_path, budget=5 * (48 + INDEX))
    assert "got 10" in cache.reason
    assert (cache.stats.held, cache.stats.capacity) == (0, 5)
    cache.close()


@pytest.mark.parametrize("name", [files.CODES, files.SCALES, files.CHECKSUMS, files.HOLDERS])
def test_any_changed_byte_costs_its_sample_alone(tmp_path, name):
    rows = filled(tmp_path / "whole", "int8")
    array = np.load(tmp_path / "whole" / name, mmap_mode="r")
    each = array.nbytes // SAMPLES
    for byte in range(2 * each, 3 * each):  # those of the third sample
        path = shutil.copytree(tmp_path / "whole", tmp_path / str(byte))
        content = bytearray((path / name).read_bytes())
        content[array.offset + byte] ^= 0x10
        (path / name).write_bytes(content)
        cache = opened(path, "int8")
        assert cache.lookup(EVERY).tolist() == [True, True, False, True, True, True] + [False] * 4
        assert torch.equal(cache.read(EVERY[[0, 1, 3, 4, 5]]), rows[[0, 1, 3, 4, 5]])
        if name != files.HOLDERS:  # a holder out of range is none
            assert cache.stats.rejected == 1
            assert f"1 samples were damaged in {path}" in cache.reason
        assert torch.equal(cache.write(EVERY[2:3], made()[2:3]), rows[2:3])
        assert torch.equal(cache.read(EVERY[:6]), rows)
        cache.close()


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"0")


def empty(path):
    path.write_bytes(b"")


def scribble(path):
    path.write_bytes(b"\x93NUMPY not quite")


def other_type(path):
    np.save(path, np.load(path).astype(np.float64))


def other_shape(path):
    np.save(path, np.load(path)[:-1])


def pickled(path):
    np.save(path, np.array([{}, None]), allow_pickle=True)


def directory(path):
    path.unlink()
    path.mkdir()


DAMAGES = (cut, lengthen, empty, scribble, other_type, other_shape, pickled, os.unlink)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("name", [files.CODES, files.CHECKSUMS, files.HOLDERS])
def test_a_broken_array_is_made_anew(tmp_path, name, damage):
    filled(tmp_path)
    damage(tmp_path / name)
    cache = opened(tmp_path)
    assert "new store" in cache.reason
    assert name in cache.reason
    assert not cache.lookup(EVERY).any()
    cache.write(EVERY, made())
    assert torch.equal(cache.read(EVERY), made())
    cache.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:40], "expected JSON in"),
        (lambda text: "[]", "another checksum"),
        (lambda text: text.replace('"capacity": 10', '"capacity": 11'), "another checksum"),
        (lambda text: text.replace("front", "other"), "another checksum"),
        (lambda text: "\xff", "expected JSON in"),
        (lambda text: "[" * 100_000, "expected JSON in"),
    ],
)
def test_a_broken_header_makes_the_store_anew(tmp_path, change, said):
    filled(tmp_path)
    header = tmp_path / files.HEADER
    header.write_text(change(header.read_text()), encoding="latin-1")
    cache = opened(tmp_path)
    assert said in cache.reason
    assert cache.stats.held == 0
    cache.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": "unfrozen since"}, "expected key 'unfrozen since' in .*, got 'front'"),
        ({"dtype": "bfloat16"}, "expected stored 'bfloat16' in .*, got 'float32'"),
        ({"variants": 2}, "expected variants 2 in .*, got 1"),
    ],
)
def test_files_of_another_store_are_made_anew(tmp_path, options, said):
    filled(tmp_path)
    cache = opened(tmp_path, **options)
    assert cache.stats.held == 0
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(cache.reason)
    cache.close()
    assert opened(tmp_path).stats.held == 0


def test_rows_of_another_store_under_this_header_are_damaged_rows(tmp_path):
    rows = filled(tmp_path / "a")
    opened(tmp_path / "b", key="other front").close()
    for name in (files.CODES, files.CHECKSUMS, files.HOLDERS):
        shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)
    cache = opened(tmp_path / "b", key="other front")
    assert not cache.lookup(EVERY).any()
    assert cache.stats.rejected == len(rows)
    cache.close()


class Killed(BaseException):
    """Where a process ended."""


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_process_that_ends_at_any_write_leaves_old_rows_new_ones_or_none(tmp_path, dtype, monkeypatch):
    whole, write = tmp_path / "whole", os.pwrite
    old = filled(whole, dtype)
    shutil.copytree(whole, tmp_path / "after")
    cache = opened(tmp_path / "after", dtype)
    new = cache.write(EVERY[4:8], made(1)[:4])
    cache.close()
    ended, last = 0, False
    while not last:
        left = ended

        def fragile(file, data, place):
            nonlocal left
            if left == 0:
                write(file, bytes(data)[: len(data) // 2], place)
                raise Killed
            left -= 1
            return write(file, data, place)

        path = shutil.copytree(whole, tmp_path / f"{dtype}-{ended}")
        cache = opened(path, dtype)
        monkeypatch.setattr(os, "pwrite", fragile)
        try:
            cache.write(EVERY[4:8], made(1)[:4])
            last = True
        except Killed:
            pass
        monkeypatch.setattr(os, "pwrite", write)
        cache.close()
        cache = opened(path, dtype)
        there = cache.lookup(EVERY)
        assert there[:4].all()
        assert torch.equal(cache.read(EVERY[:4]), old[:4])
        for sample in EVERY[4:][there[4:]].tolist():
            row = cache.read(torch.tensor([sample]))[0]
            assert any(torch.equal(row, each[i]) for each, i in ((old, sample), (new, sample - 4)) if i < len(each))
        cache.close()
        ended += 1
    assert ended >= (6 if dtype == "int8" else 5)


def test_a_full_disk_ends_what_is_taken_in_and_nothing_else(tmp_path, monkeypatch):
    cache, write = opened(tmp_path), os.pwrite
    rows = cache.write(EVERY[:4], made()[:4])

    def full(file, data, place):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    new = made(1)[:3]
    assert cache.write(EVERY[4:7], new) is new
    monkeypatch.setattr(os, "pwrite", write)
    assert cache.reason == f"No space left on device after 4 samples in {tmp_path}"
    cache.write(EVERY[7:], made()[7:])
    assert cache.stats.held == cache.stats.capacity == 4
    assert torch.equal(cache.read(EVERY[:4]), rows)
    cache.close()


def test_no_room_for_the_files_themselves_is_a_cache_of_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "open_memmap", full)
    cache = opened(tmp_path)
    assert cache.reason == f"no store in {tmp_path}: No space left on device"
    cache.write(EVERY, made())
    assert not cache.lookup(EVERY).any()
    cache.close()


def test_dropping_removes_the_files_and_no_others(tmp_path):
    filled(tmp_path)
    (tmp_path / "notes.txt").write_text("kept")
    cache = opened(tmp_path)
    assert cache.stats.held == 6
    cache.drop()
    assert sorted(os.listdir(tmp_path)) == [".lock", "notes.txt"]
    cache.close()


def test_what_is_not_written_takes_no_blocks(tmp_path):
    cache = ActivationCache(tmp_path, budget=2**40)
    cache.open("front", 10**6, (2**12,), torch.float32)
    cache.write(torch.tensor([7, 10**6 - 1]), torch.ones(2, 2**12))
    blocks = sum((tmp_path / name).stat().st_blocks * 512 for name in os.listdir(tmp_path))
    assert blocks < 2**18
    cache.close()


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / files.HOLDERS).write_bytes(b"mine")
    with pytest.raises(
        ValueError, match=r"expected an empty directory or that of a cache, got .* with samples.npy, try"
    ):
        ActivationCache(tmp_path)
    with pytest.raises(ValueError, match="expected a directory that can be written, got .*, try another path"):
        ActivationCache(tmp_path / files.HOLDERS)
    assert (tmp_path / files.HOLDERS).read_bytes() == b"mine"


def test_a_directory_has_one_cache_at_a_time(tmp_path):
    text = "expected a directory that no other cache uses, got .*, in use by process {}, try a path for each rank"
    first = opened(tmp_path)
    with pytest.raises(ValueError, match=text.format(os.getpid())):
        ActivationCache(os.path.relpath(tmp_path))
    program = f"""
import fcntl, os
file = os.open({str(tmp_path / ".lock")!r}, os.O_RDWR)
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("refused")
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "refused\n"
    first.close()
    second = opened(tmp_path)
    with pytest.raises(ValueError, match=text.format(os.getpid())):
        first.open("front", SAMPLES, SHAPE, torch.float32)
    second.close()
    first.open("front", SAMPLES, SHAPE, torch.float32)
    del first, second
    opened(tmp_path).close()


def test_the_header_says_what_the_arrays_are(tmp_path):
    filled(tmp_path, "int8")
    header = json.loads((tmp_path / files.HEADER).read_text())
    del header["checksum"]
    assert header == {
        **{"format": 1, "capacity": SAMPLES, "key": "front", "samples": SAMPLES, "variants": 1},
        **{"shape": list(SHAPE), "dtype": "float32", "stored": "int8", "channels_last": False},
    }
