"""Python's own source as a text: files split once and for all, sequences that hand each byte on, tokens checked."""

import re
from pathlib import PurePosixPath

import pytest
import torch

from spfde import data
from spfde.data import Sequences, stdlib


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library of 60 small files, and of some that are left out."""
    for i in range(60):
        path = tmp_path / ("json" if i % 2 else ".") / f"part{i:02}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {i:02} " + "abcdefgh" * 5)
    for left_out in ("test/x.py", "json/tests/x.py", "site-packages/x.py", "config-3-x/x.py", "_sysconfigdata_x.py"):
        (tmp_path / left_out).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / left_out).write_text("left out")
    (tmp_path / "json" / "note.txt").write_text("no source")
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: {"stdlib": str(tmp_path)}[name])
    return tmp_path


def test_files_are_split_by_a_hash_of_their_path_alone(library):
    train, test = stdlib.split(library)
    assert len(train) + len(test) == 60 and not set(train) & set(test) and len(test) > 1
    assert train == sorted(train) and test == sorted(test)
    for path in library.glob("*.py"):
        path.write_text("other text")
    (library / "part99.py").write_text("a new file")
    assert {PurePosixPath(path) for path in test} <= {PurePosixPath(path) for path in stdlib.split(library)[1]}


def test_every_byte_but_the_first_is_predicted_once_within_its_half(library):
    sets = data.load("stdlib", context=7)
    assert (sets.name, sets.num_classes, sets.shape) == ("stdlib", 256, (7,))
    for half, files in zip((sets.train, sets.test), stdlib.split(library), strict=True):
        text = b"\0".join((library / path).read_bytes() for path in files)
        assert len(half) == (len(text) - 1) // 7
        pairs = [half[index] for index in range(len(half))]
        inputs, targets = (bytes(torch.cat(each).tolist()) for each in zip(*pairs, strict=True))
        assert (inputs, targets) == (text[: len(half) * 7], text[1 : len(half) * 7 + 1])
    part = data.load("stdlib", context=7, train=3, test=1)
    chosen = torch.arange(3) * len(sets.train) // 3
    assert torch.equal(part.train.tokens, sets.train.tokens[chosen]) and len(part.test) == 1


def test_what_this_python_really_has_is_text():
    sets = data.load("stdlib", train=50, test=10)
    inputs, targets = sets.train[7]
    assert inputs.dtype == targets.dtype == torch.int64 and inputs.shape == targets.shape == (128,)
    text = b" ".join(bytes(sets.train[i][0].tolist()) for i in range(50)).decode(errors="replace")
    assert re.search(r"\bself\b", text) and re.search(r"\breturn\b", text)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"context": 0}, ValueError, "expected context >= 1, got 0, try"),
        ({"context": 10**9}, ValueError, r"expected context < \d+, the bytes there are, got 1000000000, try"),
        ({"context": 2.0}, TypeError, "expected context to be an int, got 2.0, try"),
        ({"train": 10**6}, ValueError, r"expected train in \[1, \d+\], all there are, got 1000000, try"),
        ({"data_dir": "x"}, ValueError, "expected no data_dir with the data set 'stdlib'"),
    ],
)
def test_what_does_not_fit_is_refused(library, options, error, said):
    with pytest.raises(error, match=said):
        data.load("stdlib", **options)


def test_a_python_without_sources_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match="expected source files of Python's standard library in .*, got 0, try"):
        data.load("stdlib")


def test_sequences_are_integers_of_two_tokens_or_more():
    assert [each.tolist() for each in Sequences(torch.tensor([[3, 1, 4]], dtype=torch.int16))[0]] == [[3, 1], [1, 4]]
    with pytest.raises(TypeError, match="expected tokens as integers, got torch.float32, try"):
        Sequences(torch.zeros(2, 3))
    for shape in ((3,), (3, 1)):
        with pytest.raises(ValueError, match=r"expected tokens \[N, T \+ 1\] with T >= 1, got .*, try"):
            Sequences(torch.zeros(shape, dtype=torch.uint8))
