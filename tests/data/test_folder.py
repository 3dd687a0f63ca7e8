"""Image folders: classes, decoding, and what happens to a file that is no image."""

import warnings

import numpy as np
import pytest
import torch

from spfde import data
from spfde.data import UnreadableImage
from spfde.train.data import source

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def root(tmp_path):
    """Two classes of solid colours, of several sizes, modes and formats."""
    random = np.random.default_rng(0)
    for half, count in (("train", 5), ("test", 3)):
        for name, mode in (("cat", "RGB"), ("ox", "L")):
            folder = tmp_path / half / name / "deep"
            folder.mkdir(parents=True)
            for i in range(count):
                shape = (9 + i, 12, 3) if mode == "RGB" else (12, 9 + i)
                image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
                image.save(folder.parent / f"{i}.png" if i % 2 else folder / f"{i}.bmp")
    (tmp_path / "train" / "cat" / ".hidden").write_text("not an image")
    return tmp_path


def load(root, **options):
    return data.load("folder", data_dir=str(root), image_size=8, **options)


def batch(dataset, workers=0):
    return next(source(dataset, workers).batches(torch.arange(len(dataset)), 100))


def test_classes_are_the_folders_and_images_are_square(root):
    sets = load(root)
    assert (sets.num_classes, sets.shape, len(sets.train), len(sets.test)) == (2, (3, 8, 8), 10, 6)
    images, targets, _ = batch(sets.train)
    assert targets.tolist() == [0] * 5 + [1] * 5
    assert images.shape == (10, 3, 8, 8) and images.dtype == torch.float32
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4


def test_an_image_of_that_size_keeps_its_pixels(root):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "train" / "cat" / "0.png")
    sets = load(root)
    index = next(i for i, (path, _) in enumerate(sets.train.files) if path.name == "0.png")
    image, target = sets.train[index]
    assert target == 0
    assert torch.equal(image, sets.train.normalise(torch.from_numpy(pixels.transpose(2, 0, 1).copy())))


def test_val_will_do_for_test_and_parts_hold_every_class(root):
    (root / "test").rename(root / "val")
    sets = load(root, train=4, test=2)
    assert [target for _, target in sets.train.files] == [0, 0, 1, 1]
    assert [target for _, target in sets.test.files] == [0, 1]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_file_that_cannot_be_decoded_is_named(root, damage, workers):
    path = root / "test" / "ox" / "1.png"
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "text": b"hello", "empty": b""}[damage])
    sets = load(root)
    with pytest.raises(UnreadableImage, match=rf"expected an image in {path}, got .*, try replacing it") as error:
        batch(sets.test, workers)
    assert "\n" not in str(error.value), "a worker's traceback is no message"


def test_skipping_leaves_bad_files_out_and_says_so(root):
    for name in ("3.png", "a.txt", "b.txt", "c.txt"):
        (root / "train" / "cat" / name).write_text("hello")
    with pytest.warns(UserWarning, match=r"left out 4 of 13 .*train .*: cat/3\.png, cat/a\.txt, cat/b\.txt, \.\.\."):
        sets = load(root, bad_images="skip")
    assert len(sets.train) == 9 and len(batch(sets.train)[0]) == 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(root, bad_images="skip", train=1, test=1)
    for path in (root / "test").rglob("*.*"):
        path.write_text("hello")
    with pytest.raises(ValueError, match="expected images in .*test, got none that can be decoded, try other files"):
        load(root, bad_images="skip", train=1)


def test_workers_make_no_difference(root):
    alone, helped = batch(load(root).train), batch(load(root).train, workers=1)
    assert all(map(torch.equal, alone, helped))


def test_folders_that_do_not_fit_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match="expected a folder .*train with a folder for each class, got none, try"):
        load(tmp_path / "none")
    (root / "test" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"only class folders in .*test .*, got a class that train has not, 'dog'"):
        load(root)
    (root / "test" / "dog").rmdir()
    (root / "train" / "readme.md").touch()
    with pytest.raises(ValueError, match=r"only class folders in .*train .*, got a file, 'readme\.md', try moving"):
        load(root)
    (root / "empty" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="expected images in the class folders of .*train, got none, try"):
        load(root / "empty")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": 0}, "expected image_size to be an integer >= 1, got 0, try"),
        ({"image_size": 8.0}, "expected image_size to be an integer >= 1, got 8.0, try"),
        ({"bad_images": "drop"}, "expected bad_images to be one of raise, skip, got 'drop', try"),
        ({"train": 11}, r"expected train in \[1, 10\], the images there are, got 11, try 10"),
    ],
)
def test_options_are_checked(root, options, said):
    with pytest.raises(ValueError, match=said):
        data.load("folder", data_dir=str(root), **options)
