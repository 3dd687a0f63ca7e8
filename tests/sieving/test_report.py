"""What was never learnt: wrong labels among it, as a record and as pictures."""

import base64
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from spfde.data import Images
from spfde.report import compare
from spfde.sieving import Circular, Random, SieveRecord
from spfde.sieving.pictures import LONGEST, picture, png, thumbnail
from spfde.train import Recipe, fit


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (3, 5, 7), (5, 7, 3)])
def test_pictures_are_png_files_of_the_image(shape):
    image = torch.randn(shape)
    pixels = opened(png(picture(image)))
    assert pixels.shape[:2] == (5, 7) and pixels.min() == 0 and pixels.max() == 255
    channels_last = image.permute(1, 2, 0) if shape[0] == 3 else image.view(5, 7, -1).squeeze(-1)
    scaled = (channels_last - image.min()) / (image.max() - image.min())
    assert np.abs(pixels - 255 * scaled.numpy()).max() <= 0.51


def test_large_pictures_are_means_of_patches():
    drawn = picture(torch.arange(200 * 300.0).view(200, 300))
    small = thumbnail(drawn)
    assert max(small.shape) <= LONGEST and small.shape == (50, 75)
    assert small[1, 2] == pytest.approx(drawn[4:8, 8:12].mean())
    assert thumbnail(np.ones((1, 500), np.float32)).shape[1] <= LONGEST
    with pytest.raises(ValueError, match=r"images \[channels, height, width\] of 1 or 3 channels, got \[4, 5, 6\]"):
        picture(torch.zeros(4, 5, 6))


def test_wrong_labels_are_what_is_never_learnt():
    samples, wrong = 300, list(range(0, 300, 20))
    labels = torch.arange(samples) % 3
    noisy = labels.clone()
    noisy[wrong] = (labels[wrong] + 1) % 3
    sieve = Circular(samples, fraction=0.2, interval=1)
    for _ in range(8):
        order = sieve.order()
        sieve.observe(order, 4.0 * F.one_hot(labels[order], 3), noisy[order])  # a network that has learnt the rule
        sieve.end_epoch()
    report = sieve.report()
    assert sorted(report.never_learned) == wrong
    assert list(report.presentations) == sorted(report.presentations, reverse=True)
    assert "shown and never predicted right" in str(report) and report.saved == pytest.approx(0.2)
    figure = report.figure([(torch.randn(1, 4, 4), int(label)) for label in noisy], limit=7)
    assert len(figure.axes) == 7
    record = SieveRecord.of(report, [(torch.randn(3), 1)])  # no images
    assert record.never_learned == len(wrong) and record.first[0].png == ""
    silent = Random(5)
    silent.observe(silent.order(), losses=torch.ones(silent.volume))  # neither right nor wrong
    assert silent.report().never_learned == ()
    with pytest.raises(ValueError, match="never predicted right, got none"):
        silent.report().figure([])


def test_a_run_keeps_pictures_of_what_was_never_learnt(tmp_path):
    images, labels = torch.rand(24, 1, 12, 12), torch.arange(24) % 2
    images[labels == 1] += 2
    labels[3] = 0  # one of the bright ones
    data = Images(images, labels)
    recipe = Recipe(
        method="spfde",
        sparsity=0.0,
        freeze=0.0,
        sieve=0.2,
        sieve_by="random",
        epochs=4,
        batch_size=8,
        lr=0.02,
        crop=0,
        flip=False,
        out=str(tmp_path / "run"),
    )
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[-2.0], [2.0]]))
        model[2].bias.copy_(torch.tensor([3.0, -3.0]))
    fit(recipe, model=model, train_set=data, test_set=data)
    html = compare([tmp_path / "run"]).html()
    assert "1 of 24 samples presented and never predicted right" in html and "3: 0 (" in html
    drawn = html.split("data:image/png;base64,")[1].split('"')[0]
    assert np.abs(opened(base64.b64decode(drawn)) - 255.0 * picture(images[3])).max() <= 0.51
