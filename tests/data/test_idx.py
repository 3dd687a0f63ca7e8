"""IDX files, MNIST's format: read right, compressed or not, and checked before use."""

import gzip
import struct

import numpy as np
import pytest
import torch

from spfde import data
from spfde.data import idx


def encode(values):
    """An IDX file of bytes, as the format's description has it."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(root, packed=False, prefix="", test="t10k", first=0, counts=(12, 6)):
    """Random images of 5x4 in 3 classes, all of them present; the arrays by file name."""
    random = np.random.default_rng(0)
    arrays = {}
    for half, count in (("train", counts[0]), (test, counts[1])):
        arrays[f"{half}-images-idx3-ubyte"] = random.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        arrays[f"{half}-labels-idx1-ubyte"] = np.arange(first, first + count, dtype=np.uint8) % 3 + first
    for name, values in arrays.items():
        content = encode(values)
        end = ".gz" if packed else ""
        (root / f"{prefix}{name}{end}").write_bytes(gzip.compress(content) if packed else content)
    return arrays


@pytest.mark.parametrize("packed", [False, True])
def test_images_and_labels_are_those_of_the_files(packed, tmp_path):
    arrays = write(tmp_path, packed)
    sets = data.load("idx", data_dir=str(tmp_path))
    assert (sets.name, sets.num_classes, sets.shape) == ("idx", 3, (1, 5, 4))
    pixels = arrays["train-images-idx3-ubyte"] / 255
    for half, name in ((sets.train, "train"), (sets.test, "t10k")):
        images, labels = arrays[f"{name}-images-idx3-ubyte"], arrays[f"{name}-labels-idx1-ubyte"]
        assert len(half) == len(images)
        assert half.targets.tolist() == labels.tolist()
        for index in (0, len(images) - 1):
            image, target = half[index]
            expected = (images[index] / 255 - pixels.mean()) / pixels.std()
            np.testing.assert_allclose(image.numpy()[0], expected, rtol=0, atol=2e-6)
            assert image.dtype == torch.float32 and target == labels[index]
    part = data.load("idx", data_dir=str(tmp_path), train=4, test=2)
    assert torch.equal(part.train.images, sets.train.images[::3])
    assert torch.equal(part.test.targets, sets.test.targets[::3])
    assert part.train.normalise == sets.train.normalise


def test_one_of_several_sets_is_named_by_its_path_and_labels_from_1_are_moved(tmp_path):
    for prefix in ("emnist-digits-", "emnist-letters-"):
        arrays = write(tmp_path, True, prefix, "test", first=1)
    sets = data.load("idx", data_dir=str(tmp_path / "emnist-letters"))
    assert sets.num_classes == 3
    assert sets.train.targets.tolist() == (arrays["train-labels-idx1-ubyte"] - 1).tolist()
    assert sets.test.targets.tolist() == (arrays["test-labels-idx1-ubyte"] - 1).tolist()
    with pytest.raises(ValueError, match=r"expected a file .*train-images-idx3-ubyte \(or .gz\), got none, try the"):
        data.load("idx", data_dir=str(tmp_path))


def test_what_is_compressed_is_known_by_its_bytes(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    (tmp_path / "plain.gz").write_bytes(encode(values))
    (tmp_path / "packed").write_bytes(gzip.compress(encode(values)))
    for name in ("plain.gz", "packed"):
        assert np.array_equal(idx.read(tmp_path / name, 3), values)


WHOLE = encode(np.arange(24, dtype=np.uint8).reshape(4, 3, 2))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (WHOLE[:-1], "expected 24 values after the header of .*, its 4 x 3 x 2, got fewer, try"),
        (WHOLE + b"\0", "expected 24 values .*, got more, try"),
        (WHOLE[:16], "expected 24 values .*, got fewer, try"),
        (WHOLE[:15], "starts with 00 00 08 03, in .*, got 00 00 08 03, try"),
        (b"", "expected an IDX file of bytes in 3 dimensions, .*, got nothing, try"),
        (b"\0\0\x0d" + WHOLE[3:], "got 00 00 0d 03, try"),  # floats
        (b"\0\0\x08\1" + WHOLE[4:], "got 00 00 08 01, try"),  # labels
        (b"\x89PNG" + WHOLE[4:], "got 89 50 4e 47, try"),
        (WHOLE[:4] + bytes(4) + WHOLE[8:], "expected values in .*, got 0 x 3 x 2, try"),
        (WHOLE[:4] + b"\xff" * 12 + WHOLE[16:], "got fewer, try"),  # 2**96 bytes are never asked for
        (WHOLE[:4] + b"\x00\xff\xff\xff" + WHOLE[8:], "got fewer, try"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(content, said, packed, tmp_path):
    (tmp_path / "images").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=said):
        idx.read(tmp_path / "images", 3)


PACKED = gzip.compress(WHOLE)


@pytest.mark.parametrize(
    "content",
    [PACKED[:-4], PACKED[:20], PACKED[:3], PACKED[:10] + b"\xff" * 30, PACKED[:-8] + b"\0" * 4 + PACKED[-4:]],
    ids=["no length", "half", "header", "no deflate", "checksum"],
)
def test_a_compressed_file_that_is_cut_short_or_damaged_is_refused(content, tmp_path):
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected an IDX file in .*, got an error \(.*\), try getting it again"):
        idx.read(tmp_path / "images", 3)


def test_what_is_no_regular_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got no regular file, try"):
        idx.read(tmp_path, 3)


LABELS = {"train": np.arange(12, dtype=np.uint8) % 3, "t10k": np.arange(6, dtype=np.uint8) % 3}


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("train-labels-idx1-ubyte", LABELS["train"][:11], "expected a label for each of the 12 images in .*, got 11"),
        ("t10k-labels-idx1-ubyte", LABELS["train"], "expected a label for each of the 6 images in .*, got 12"),
        ("train-labels-idx1-ubyte", LABELS["train"] * 2, "from 0 or 1 to 4 without a gap in .*, got none that is 1"),
        ("t10k-labels-idx1-ubyte", LABELS["t10k"] + 1, r"expected labels in \[0, 3\), .*t10k-labels.*, got 3, try"),
        ("train-labels-idx1-ubyte", LABELS["train"] + 1, r"expected labels in \[1, 4\), .*t10k-labels.*, got 0, try"),
        ("t10k-images-idx3-ubyte", np.zeros((6, 4, 4), np.uint8), "expected images of 5 x 4 pixels, .*, got 4 x 4"),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(name, values, said, tmp_path):
    write(tmp_path)
    (tmp_path / name).write_bytes(encode(values))
    with pytest.raises(ValueError, match=said):
        data.load("idx", data_dir=str(tmp_path))
