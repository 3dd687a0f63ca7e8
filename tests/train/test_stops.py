"""A loss that is not finite stops a run: with the step, what to look at, and the last checkpoint untouched."""

import pytest
import torch
from train.conftest import CLASSES
from train.runs import bits, recipe, same

from spfde import data, models
from spfde.data import Images
from spfde.train import Diverged, fit
from spfde.train.run_dir import METRICS, RESULT, checkpoints
from spfde.train.stops import diagnose_nonfinite


def images(model, train):
    train.images[5] = torch.nan
    train.images[40:] = torch.inf


def weights(model, train):
    with torch.no_grad():
        model.layer2[0].bn1.weight[0] = torch.nan


def activations(model, train):
    with torch.no_grad():
        model.fc.weight.fill_(3e38)


@pytest.mark.parametrize(
    ("poison", "words"),
    [
        (images, r"\d+ of the batch's 32 images hold NaN or infinity: look at the data set"),
        (weights, r"layer2\.0\.bn1\.weight holds NaN or infinity: .* try a lower lr or more warmup"),
        (activations, r"activations overflowed; the largest weight is 3e\+38 in fc\.weight: try a lower lr"),
    ],
)
def test_stops_with_the_step_and_what_to_look_at_and_goes_on_once_mended(poison, words, tmp_path):
    digits = data.load("digits", train=128, test=32)

    def run(out, **options):
        torch.manual_seed(3)
        model = models.create("resnet20", in_channels=1, width=0.25)
        train = Images(digits.train.images.clone(), digits.train.targets)

        def after(record):
            if poison_now and record.epoch == 1:
                kept.extend((path, path.read_bytes()) for path in checkpoints(out))
                poison(model, train)

        return fit(recipe(out=out), model=model, train_set=train, test_set=digits.test, on_epoch=after, **options)

    kept, poison_now = [], True
    message = r"expected a finite loss, got (nan|inf) at epoch 2, step 0 \(both from 0\), learning rate 0\.0\d+: "
    with pytest.raises(Diverged, match=message + ".*" + words):
        run(tmp_path / "broken")
    assert len(kept) == 2 and kept == [(path, path.read_bytes()) for path in checkpoints(tmp_path / "broken")]
    assert len((tmp_path / "broken" / METRICS).read_text().splitlines()) == 2
    assert not (tmp_path / "broken" / RESULT).exists()
    poison_now = False
    mended, sound = run(tmp_path / "broken", resume=True), run(tmp_path / "sound")
    assert same(bits(mended.model), bits(sound.model))


def test_a_learning_rate_that_is_far_too_high_is_noticed_at_its_step():
    with pytest.raises(Diverged, match=r"(at epoch \d, step \d|evaluation of epoch \d).*try a lower lr"):
        fit(recipe(lr=1e6, warmup=0))


def test_images_are_blamed_first(task):
    pixels = torch.zeros(4, 1, 12, 12)
    pixels[1, 0, 3, 3] = float("nan")
    pixels[2, 0, 0, 0] = float("inf")
    assert diagnose_nonfinite(task.model(), pixels) == (
        "2 of the batch's 4 images hold NaN or infinity: look at the data set"
    )


def test_a_broken_parameter_is_named(task):
    model = task.model()
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0, 0, 0] = float("inf")
    assert diagnose_nonfinite(model, torch.zeros(2, 1, 12, 12)).startswith(
        "layer2.0.conv1.weight holds NaN or infinity"
    )


def test_an_overflow_names_the_largest_weight(task):
    model = task.model()
    with torch.no_grad():
        model.fc.weight[0, 0] = 3e38
        model.bn1.running_mean[0] = float("nan")  # as the overflowing forward pass leaves it
    said = diagnose_nonfinite(model, torch.zeros(2, 1, 12, 12))
    assert said.startswith("images and weights are finite, the activations overflowed")
    assert "the largest weight is 3e+38 in fc.weight" in said


def test_a_step_that_is_not_finite_is_not_taken(task):
    pixels = task.train.images.clone()
    pixels[5] = float("inf")
    model = task.model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = task.recipe(method="dense", batch_size=90)
    with pytest.raises(Diverged, match="1 of the batch's 90 images hold NaN or infinity"):
        fit(recipe, model=model, train_set=Images(pixels, task.train.targets), test_set=task.test)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_evaluation_refuses_logits_that_are_nan(task, tmp_path):
    pixels = task.test.images.clone()
    pixels[3, 0, 1, 1] = torch.nan
    recipe, test = task.recipe(epochs=1, freeze=0, out=str(tmp_path)), Images(pixels, task.test.targets)
    with pytest.raises(Diverged, match=r"got NaN in the evaluation of epoch 0 .*: 1 of the batch's 64 images hold NaN"):
        fit(recipe, model=task.model(), train_set=task.train, test_set=test)


@pytest.mark.parametrize("label", [CLASSES, -1, -100])
@pytest.mark.parametrize("half", ["train", "test"])
def test_a_label_that_is_none_of_the_classes_is_refused(task, half, label):
    sets = {"train": task.train, "test": task.test}
    targets = sets[half].targets.clone()
    targets[5] = label
    sets[half] = Images(sets[half].images, targets)
    recipe = task.recipe(epochs=1, freeze=0, sieve=0)
    with pytest.raises(ValueError, match=rf"expected labels in \[0, {CLASSES}\), .*, got {label}, try"):
        fit(recipe, model=task.model(), train_set=sets["train"], test_set=sets["test"])
