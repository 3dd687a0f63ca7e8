"""Arrays of a directory, mapped into memory."""

import os

import numpy as np
import pytest
import torch

from spfde import data
from spfde.data import Images, Pixels
from spfde.train.data import source


def write(root, dtype=np.uint8, shape=(3, 6, 5), train=12, test=8, label=np.uint8):
    random = np.random.default_rng(0)
    arrays = {}
    for half, count in (("train", train), ("test", test)):
        images = random.uniform(0, 256, (count, *shape))
        arrays[half] = images.astype(dtype), (np.arange(count) % 4).astype(label)
        np.save(root / f"{half}_images.npy", arrays[half][0])
        np.save(root / f"{half}_labels.npy", arrays[half][1])
    return arrays


def load(root, **options):
    return data.load("arrays", data_dir=str(root), **options)


@pytest.mark.parametrize("label", [np.uint8, np.int16, np.int64, ">u4"])
def test_bytes_are_normalised_with_the_training_sets_statistics(tmp_path, label):
    arrays = write(tmp_path, label=label)
    sets = load(tmp_path)
    assert (sets.num_classes, sets.shape) == (4, (3, 6, 5))
    assert type(sets.train) is Pixels
    pixels = arrays["train"][0].astype(np.float64)
    mean, deviation = (f(pixels, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    for half, (images, labels) in (("train", arrays["train"]), ("test", arrays["test"])):
        order = torch.arange(len(images)).flip(0)
        ((batch, targets, indices),) = source(getattr(sets, half)).batches(order, 100)
        expected = (images[::-1] - mean) / deviation
        np.testing.assert_allclose(batch.numpy(), expected, rtol=0, atol=5e-6)
        assert targets.tolist() == labels[::-1].tolist() and torch.equal(indices, order)
        assert torch.equal(getattr(sets, half)[2][0], batch[len(images) - 3])


def test_floats_are_taken_as_they_are_and_mapped(tmp_path):
    arrays = write(tmp_path, np.float32, shape=(1, 4, 4))
    sets = load(tmp_path)
    assert type(sets.train) is Images
    assert np.array_equal(sets.test.images.numpy(), arrays["test"][0])
    before = (tmp_path / "train_images.npy").read_bytes()
    sets.train.images.zero_()
    assert (tmp_path / "train_images.npy").read_bytes() == before, "what is mapped is never written back"


def test_parts_are_evenly_spaced(tmp_path):
    arrays = write(tmp_path)
    sets = load(tmp_path, train=4, test=1)
    assert np.array_equal(sets.train.images.numpy(), arrays["train"][0][::3])
    assert len(sets.test) == 1
    with pytest.raises(ValueError, match=r"expected test in \[1, 8\], all there are, got 9, try 8"):
        load(tmp_path, test=9)


def test_a_channel_that_never_varies_is_only_centred(tmp_path):
    arrays = write(tmp_path)
    arrays["train"][0][:, 1] = 7
    np.save(tmp_path / "train_images.npy", arrays["train"][0])
    image, _ = load(tmp_path).train[0]
    assert image.isfinite().all() and not image[1].any()


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        (
            "train_images",
            np.zeros((12, 6, 5), np.uint8),
            r"uint8 or float32 images .*, got uint8 \[12, 6, 5\]",
        ),
        ("train_images", np.zeros((12, 3, 6, 5)), r"got float64 \[12, 3, 6, 5\], try images.astype"),
        ("test_images", np.zeros((0, 3, 6, 5), np.uint8), "expected uint8 or float32 images .*, try one image"),
        ("test_images", np.zeros((8, 3, 6, 6), np.uint8), r"expected test images like the training .*\[3, 6, 6\], try"),
        ("test_images", np.zeros((8, 3, 6, 5), np.float32), "expected test images like .*, got float32"),
        (
            "train_labels",
            np.zeros(11, np.int64),
            r"12 integer labels \[N\] in .*train_labels.*, got int64 \[11\], try images and labels of the same",
        ),
        ("train_labels", np.zeros(12), "expected 12 integer labels .*, got float64"),
        ("train_labels", np.zeros((12, 1), np.int64), r"got int64 \[12, 1\], try labels.reshape"),
        ("train_labels", np.arange(12, dtype=np.uint64) + np.uint64(2**63), r"labels below 2\*\*63 in .*, got 9223"),
        ("train_labels", np.arange(12) * 10**8, r"without large gaps in .*, got the label 1100000000 for 12 images"),
        ("train_labels", np.arange(12) % 2 == 0, "expected 12 integer labels .*, got bool"),
        ("train_images", np.zeros((12, 6, 5, 3), np.uint8), r"channels come last, try images.transpose\(0, 3, 1, 2\)"),
        ("train_images", np.zeros((12, 6, 5, 1), np.float32), "channels come last"),
        ("train_images", np.zeros((12, 3, 6, 5), np.uint16), r"got uint16 .*, try \(images / images.max\(\)\).astype"),
        ("train_images", np.zeros((12, 3, 6, 5), ">f4"), "got >f4 .*, try .*astype"),
        ("train_labels", np.full(12, -1), "expected labels >= 0 in .*, got -1, try"),
        ("test_labels", np.full(8, 4), r"expected labels in \[0, 4\), those of training, in .*, got 4, try"),
        ("train_images", np.array([print], object), "expected a numpy array in .*, got an error .*, try numpy.save"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(name, array, said, tmp_path):
    write(tmp_path)
    np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=said):
        load(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY", b"hello"])
def test_files_that_are_no_arrays_are_refused_by_name(content, tmp_path):
    write(tmp_path)
    (tmp_path / "test_labels.npy").unlink()
    if content is not None:
        (tmp_path / "test_labels.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected an? (numpy )?array in .*test_labels\.npy, got .*, try numpy.save"):
        load(tmp_path)


def test_what_is_no_file_of_an_array_is_refused_and_never_waited_for(tmp_path):
    write(tmp_path)
    np.savez(tmp_path / "x.npz", np.zeros(3))
    (tmp_path / "x.npz").replace(tmp_path / "train_images.npy")
    with pytest.raises(ValueError, match=r"array in .*train_images\.npy, got an \.npz archive, try numpy\.save"):
        load(tmp_path)
    (tmp_path / "train_images.npy").unlink()
    os.mkfifo(tmp_path / "train_images.npy")
    with pytest.raises(ValueError, match=r"array in .*train_images\.npy, got no regular file"):
        load(tmp_path)


def test_arrays_in_fortran_order_are_the_same_images(tmp_path):
    arrays = write(tmp_path)
    for half in ("train", "test"):
        np.save(tmp_path / f"{half}_images.npy", np.asfortranarray(arrays[half][0]))
    assert np.array_equal(load(tmp_path).train.images.numpy(), arrays["train"][0])


def test_a_set_that_is_constant_is_told(tmp_path):
    write(tmp_path)
    np.save(tmp_path / "train_images.npy", np.full((12, 3, 6, 5), 255, np.uint8))
    with pytest.warns(UserWarning, match="but all 12 training images looked at are the same$"):
        load(tmp_path)
    for half, count in (("train", 12), ("test", 8)):
        np.save(tmp_path / f"{half}_labels.npy", np.zeros(count, int))
    with pytest.warns(UserWarning, match="the same and all 12 training labels are 0"):
        load(tmp_path)
