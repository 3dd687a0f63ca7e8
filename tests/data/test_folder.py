"""Image folders: classes, decoding, and what happens to a file that is no image."""

import os
import warnings

import numpy as np
import pytest
import torch

from spfde import data
from spfde.data import UnreadableImage
from spfde.data.folder import decode
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
        ({"train": 11}, r"expected train in \[1, 10\], all there are, got 11, try 10"),
    ],
)
def test_options_are_checked(root, options, said):
    with pytest.raises(ValueError, match=said):
        data.load("folder", data_dir=str(root), **options)


def test_a_photo_is_decoded_as_it_is_shown(tmp_path):
    shown = np.zeros((8, 8, 3), np.uint8)
    shown[:4] = 255
    tag = Image.Exif()
    tag[0x0112] = 6  # stored a quarter turn to the left
    Image.fromarray(np.rot90(shown, 1).copy()).save(tmp_path / "a.png", exif=tag)
    assert np.array_equal(decode(tmp_path / "a.png", 8), shown.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_sixteen_bits_keep_their_meaning(tmp_path, kind):
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(levels).save(tmp_path / f"a.{kind}")
    assert np.array_equal(decode(tmp_path / f"a.{kind}", 8), np.stack([np.rint(levels / 257)] * 3))


def test_floats_are_read_in_one_range_and_deeper_integers_refused(tmp_path):
    levels = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "a.tiff")
    assert np.array_equal(decode(tmp_path / "a.tiff", 8)[0], np.rint(levels * 255))
    for wrong, said in ((levels * 255, "floats in .*, not in"), (levels * np.nan, "floats in .nan")):
        Image.fromarray(wrong).save(tmp_path / "a.tiff")
        with pytest.raises(UnreadableImage, match=said):
            decode(tmp_path / "a.tiff", 8)
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(tmp_path / "a.tiff")
    with pytest.raises(UnreadableImage, match="32-bit integers"):
        decode(tmp_path / "a.tiff", 8)


def test_links_are_followed_and_strays_are_no_classes(root):
    more = root / "more"
    (root / "train" / "cat" / "deep").rename(more)
    (root / "train" / "cat" / "linked").symlink_to(more)
    for stray in ("train/__MACOSX/cat", "train/.git", "test/__MACOSX"):
        (root / stray).mkdir(parents=True)
    (root / "train" / "__MACOSX" / "cat" / "._0.png").write_text("no image")
    (root / "train" / "cat" / "Thumbs.db").write_text("no image")
    (root / "train" / "cat" / "._0.png").write_text("no image")
    sets = load(root)
    assert (sets.num_classes, len(sets.train), len(sets.test)) == (2, 10, 6)
    (more / "round").symlink_to(root / "train" / "cat")
    with pytest.raises(ValueError, match="expected folders that end, got a link back to .*cat in .*round, try"):
        load(root)


def test_what_is_no_file_is_named_and_never_waited_for(root):
    (root / "train" / "cat" / "gone.png").symlink_to(root / "gone.png")
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    with pytest.warns(UserWarning, match=r"left out 2 of 12 .*: cat/gone\.png, cat/pipe\.png"):
        assert len(load(root, bad_images="skip").train) == 10
    with pytest.raises(UnreadableImage, match=r"(gone|pipe)\.png, got a file that cannot be decoded"):
        batch(load(root, train=12).train)


def test_a_class_without_an_image_is_refused(root):
    (root / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"every class folder of .*train, got none in 'dog' \(1 of 3\), try removing"):
        load(root)


def test_a_folder_of_one_picture_is_told(root):
    for path in (root / "train").rglob("[0-9].*"):
        Image.new("L", (8, 8), 255).save(path)
    with pytest.warns(UserWarning, match="all 10 training images looked at are the same"):
        load(root)
