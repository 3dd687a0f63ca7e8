"""CIFAR from its official binary files: read right, checked before use, never unpickled."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from spfde import data
from spfde.data import cifar

SMALL = [
    dataclasses.replace(cifar.CIFAR10, train_records=4, test_records=6),
    dataclasses.replace(cifar.CIFAR100, train_records=10, test_records=6),
]


def write(root, version, seed=0):
    """Random records in every file of a version; return them by file name."""
    random = np.random.default_rng(seed)
    records = {}
    for names, count in ((version.train, version.train_records), (version.test, version.test_records)):
        for name in names:
            labels = np.stack([random.integers(0, classes, count) for classes in version.labels], 1)
            records[name] = np.concatenate([labels, random.integers(0, 256, (count, 3072))], 1).astype(np.uint8)
            records[name].tofile(root / name)
    return records


@pytest.fixture(params=SMALL, ids=lambda version: version.name)
def version(request):
    return request.param


@pytest.mark.parametrize("inside", [True, False])
def test_images_and_classes_are_those_of_the_records(version, inside, tmp_path):
    root = tmp_path / version.folder if inside else tmp_path
    root.mkdir(exist_ok=True)
    records = write(root, version)
    sets = cifar.load(version, str(tmp_path))
    assert (sets.name, sets.num_classes, sets.shape) == (version.name, version.labels[-1], (3, 32, 32))
    mean, deviation = (np.reshape(v, (3, 1, 1)) for v in (version.normalise.mean, version.normalise.deviation))
    for half, names in ((sets.train, version.train), (sets.test, version.test)):
        rows = np.concatenate([records[name] for name in names])
        assert len(half) == len(rows)
        for index in (0, len(rows) // 2, len(rows) - 1):
            image, target = half[index]
            pixels = rows[index, len(version.labels) :].astype(np.float64).reshape(3, 32, 32)
            assert image.dtype == torch.float32
            np.testing.assert_allclose(image.numpy(), (pixels / 255 - mean) / deviation, rtol=0, atol=2e-6)
            assert target == rows[index, len(version.labels) - 1]


def test_a_part_is_evenly_spaced(version, tmp_path):
    write(tmp_path, version)
    whole, part = cifar.load(version, str(tmp_path)), cifar.load(version, str(tmp_path), train=2, test=3)
    assert torch.equal(part.train.images, whole.train.images[:: len(whole.train) // 2])
    assert torch.equal(part.test.targets, whole.test.targets[::2])
    for wanted in (0, 1000):
        with pytest.raises(ValueError, match=rf"expected train in \[1, {len(whole.train)}\].*, got {wanted}, try"):
            cifar.load(version, str(tmp_path), train=wanted)
    with pytest.raises(TypeError, match="expected test to be an int, got 2.0, try"):
        cifar.load(version, str(tmp_path), test=2.0)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_refused_by_name(version, change, tmp_path):
    write(tmp_path, version)
    for name in (version.train[-1], version.test[0]):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1] if change < 0 else content + b"\0")
        said = rf"expected .*{name} to have {len(content)} bytes .*, got {len(content) + change}, try"
        with pytest.raises(ValueError, match=said):
            cifar.load(version, str(tmp_path))
        (tmp_path / name).write_bytes(content)


def test_a_label_out_of_range_is_refused_with_its_record(version, tmp_path):
    for column, classes in enumerate(version.labels):
        records = write(tmp_path, version)[version.test[0]]
        records[3, column] = classes
        records.tofile(tmp_path / version.test[0])
        with pytest.raises(ValueError, match=rf"labels in \[0, {classes}\) in .*, got {classes} in record 3, try"):
            cifar.load(version, str(tmp_path))


def test_missing_files_and_the_pickled_version_are_refused(version, tmp_path):
    with pytest.raises(ValueError, match=rf"expected {version.name}'s binary file .*, got no such file, try the"):
        cifar.load(version, str(tmp_path))
    with open(tmp_path / version.train[0].removesuffix(".bin"), "wb") as file:
        pickle.dump({"data": print}, file)
    with pytest.raises(ValueError, match="got the pickled python version, try the official binary version"):
        cifar.load(version, str(tmp_path))


def test_full_sizes_are_the_official_ones(tmp_path):
    for name in (*cifar.CIFAR100.train, *cifar.CIFAR100.test):
        with open(tmp_path / name, "wb") as file:
            file.truncate({"train.bin": 153_700_000, "test.bin": 30_740_000}[name])
    sets = data.load("cifar100", data_dir=str(tmp_path), train=100, test=10)
    assert (len(sets.train), len(sets.test)) == (100, 10)
    sizes = {10_000 * (1 + 3072), cifar.CIFAR10.train_records * (1 + 3072)}
    assert sizes == {30_730_000}
    with pytest.raises(ValueError, match=r"expected cifar10's binary file .*data_batch_1\.bin"):
        data.load("cifar10", data_dir=str(tmp_path))


def test_a_directory_is_needed():
    with pytest.raises(ValueError, match="expected data_dir with the data set 'cifar10', got none, try data_dir="):
        data.load("cifar10")
