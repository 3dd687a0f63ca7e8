"""The networks of the zoo by a recipe's word: made for the data set's images, or refused."""

from __future__ import annotations

import pytest
import torch

from spfde.models import MODELS, options
from spfde.nn import SparseConv2d
from spfde.train import Recipe
from spfde.train.build import build, network
from spfde.train.session import Inputs


@pytest.mark.parametrize("name", [name for name in MODELS if "num_classes" in options(name)])
def test_every_image_network_takes_the_data_sets_images(name):
    with torch.device("meta"):
        logits = network(Recipe(model=name), num_classes=7, shape=(1, 32, 32))(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 7)


def test_the_width_reaches_the_network():
    assert network(Recipe(model="vgg19_bn_cifar", width=0.25), 10, (3, 32, 32)).features[0].out_channels == 16


def test_what_does_not_take_images_or_a_width_is_refused():
    with pytest.raises(ValueError, match="expected a network for images, got 'gpt_mini', try 'resnet20'"):
        network(Recipe(model="gpt_mini"), 10, (3, 32, 32))
    with pytest.raises(ValueError, match=r"an option of 'vit_tiny'.*got 'width'"):
        network(Recipe(model="vit_tiny", width=2), 10, (3, 32, 32))


def test_another_family_than_the_residual_one_trains():
    recipe = Recipe(
        model="mobilenet_v2_cifar", width=0.35, train_images=4, test_images=4, batch_size=4, freeze=0.1, epochs=20
    )
    session = build(Inputs(recipe))
    assert isinstance(session.model.blocks[1].project[0], SparseConv2d)
    loss = session.model(session.example.repeat(4, 1, 1, 1)).square().mean()
    loss.backward()
    session.optimizer.step()
    assert loss.isfinite()
    assert session.blocks[0].name == "blocks.0"
