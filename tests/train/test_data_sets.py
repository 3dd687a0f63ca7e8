"""Local data sets by a recipe's word: trained on, augmented, stopped and resumed."""

import gzip
import re
import struct

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from train.runs import Stop, bits, figures, same

from spfde import models
from spfde.train import Recipe, fit

Image = pytest.importorskip("PIL.Image")


def write_arrays(root):
    random = np.random.default_rng(0)
    for half, count in (("train", 24), ("test", 8)):
        np.save(root / f"{half}_images.npy", random.integers(0, 256, (count, 3, 16, 16), dtype=np.uint8))
        np.save(root / f"{half}_labels.npy", np.arange(count) % 3)


def write_folder(root):
    random = np.random.default_rng(0)
    for half, count in (("train", 12), ("test", 4)):
        for name in ("a", "b"):
            (root / half / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (20, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / half / name / f"{i}.png")


def write_idx(root):
    random = np.random.default_rng(0)
    for half, count in (("train", 24), ("t10k", 8)):
        images = random.integers(0, 256, (count, 16, 16), dtype=np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", np.arange(count, dtype=np.uint8) % 3)):
            header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            (root / f"{half}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))


@pytest.mark.parametrize(
    ("dataset", "write", "options"),
    [("arrays", write_arrays, {}), ("idx", write_idx, {}), ("folder", write_folder, {"image_size": 16, "workers": 1})],
)
def test_a_run_is_stopped_and_resumed_to_the_same_bits(dataset, write, options, tmp_path):
    write(tmp_path)

    def run(out, **more):
        recipe = Recipe(
            dataset=dataset,
            data_dir=tmp_path,
            width=0.25,
            epochs=2,
            batch_size=8,
            freeze=0,
            crop=2,
            flip=True,
            threads=1,
            out=tmp_path / out,
            **options,
        )
        return fit(recipe, **more)

    def stop(record):
        raise Stop

    whole = run("whole")
    with pytest.raises(Stop):
        run("parts", on_epoch=stop)
    parts = run("parts", resume=True)
    assert same(bits(parts.model), bits(whole.model))
    assert [figures(e) for e in parts.epochs] == [figures(e) for e in whole.epochs]
    plain = fit(Recipe(**{**whole.recipe.to_dict(), "crop": 0, "flip": False, "out": None}))
    assert plain.epochs[0].train_loss != whole.epochs[0].train_loss


@pytest.mark.parametrize(("dtype", "remedy"), [(torch.uint8, "float32) / 255"), (torch.float64, "float32)")])
def test_images_of_another_precision_than_the_model_are_refused(dtype, remedy):
    images = TensorDataset(torch.ones(8, 3, 8, 8, dtype=dtype), torch.arange(8) % 2)
    model = models.create("resnet20", num_classes=2, width=0.25)
    got = rf"expected inputs of torch.float32 as the model's weights, got {dtype}, try .*{re.escape(remedy)}$"
    with pytest.raises(TypeError, match=got):
        fit(Recipe(epochs=1, freeze=0, sieve=0), model=model, train_set=images, test_set=images)
