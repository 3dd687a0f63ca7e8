"""Networks by name, with inputs that fit them, and the layers that are timed of them."""

import pytest
import torch
from torch import nn

from spfde.bench import Workload, layers_of, workload


def test_inputs_are_those_of_the_network():
    assert workload("resnet20", 2).inputs.shape == (2, 3, 32, 32)
    assert workload("vit_tiny_cifar", 2).inputs.shape == (2, 3, 32, 32)
    assert workload("vit_tiny_cifar", 2, 16).inputs.shape == (2, 3, 16, 16)
    assert workload("mobilenet_v2", 1).inputs.shape == (1, 3, 224, 224)
    assert workload("torch.nn:Identity", shape="3", usual=7).inputs.shape == (7, 3)
    load = workload("gpt_mini", 2, 8)
    assert load.inputs.shape == (2, 8) and load.loss_fn(load.model(load.inputs)).dim() == 0


def test_any_output_has_a_loss():
    load = workload("torch.nn:Identity", 2, shape="3")
    for output in ({"a": torch.ones(2, requires_grad=True)}, (torch.ones(2, requires_grad=True), torch.ones(1).long())):
        assert load.loss_fn(output).requires_grad


def test_a_shape_or_a_batch_beside_those_of_a_network_is_refused(tmp_path, monkeypatch):
    (tmp_path / "with_a_batch.py").write_text(
        "import torch\nmade = lambda: (torch.nn.Linear(3, 2), torch.ones(5, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert workload("with_a_batch:made").batch == workload("with_a_batch:made", 5).batch == 5
    with pytest.raises(ValueError, match="no --batch with 'with_a_batch:made', which has its own batch of 5, got 4,"):
        workload("with_a_batch:made", 4)
    with pytest.raises(ValueError, match="expected no --input with with_a_batch:made, which returns its batch, got 3,"):
        workload("with_a_batch:made", shape="3")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("torch.nn:Identity", 2, None, "3x0"), "sizes"),
        (("narrow:net", 2, None, "1x8x8"), "expected samples that net takes, got 1x8x8 .*3 channels.*another --input"),
        (("narrow:net", 2, None, "8"), "expected samples that net takes, got 8 "),
        (("vgg19_bn_cifar", 2, 8), "expected samples that vgg19_bn_cifar takes, got 3x8x8 .*another --size"),
        (("gpt_micro", 2, 4096), "4096"),
    ],
)
def test_an_impossible_shape_is_told(arguments, named, tmp_path, monkeypatch):
    (tmp_path / "narrow.py").write_text("import torch\nnet = lambda: torch.nn.Conv2d(3, 4, 3)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=named):
        workload(*arguments)


def test_layers_are_the_different_ones_that_are_converted():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, 2),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    found = layers_of(Workload("net", model, torch.randn(2, 3, 11, 11), torch.sum))
    assert [(str(layer), layer.count) for layer in found] == [
        ("conv 4x4x3x3@9 on 2", 1), ("conv 4x4x3x3@7 on 2", 1), ("conv 4x4x3x3@5/2 on 2", 1),
    ]  # fmt: skip
    assert found[-1].flops["forward"] == 2 * 2 * 2 * 2 * 4 * 4 * 9
