import pytest
import torch

from spfde.data import Images
from spfde.train import Diverged, fit
from spfde.train.stops import diagnose_nonfinite


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
