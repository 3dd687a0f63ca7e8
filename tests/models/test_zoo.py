"""The zoo as a whole: published sizes, and what the rest of the library does with every family."""

from __future__ import annotations

import copy

import pytest
import torch
from models.zoo import CASES
from torch import nn

import spfde
from spfde import models
from spfde.freezing import blocks, freeze
from spfde.nn import SparseConv2d, SparseLayer, SparseLinear

COUNTS = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet18_cifar": 11_173_962,
    "resnet50_cifar": 23_520_842,
    "vgg19_bn": 143_678_248,
    "vgg19_bn_cifar": 20_040_522,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v2_cifar": 2_236_682,
    "vit_tiny": 5_717_416,
    "vit_small": 22_050_664,
    "vit_tiny_cifar": 5_362_762,
    "vit_small_cifar": 21_342_346,
    "gpt2": 124_439_808,
    "gpt_mini": 10_745_088,
    "gpt_micro": 1_844_928,
}
LARGE = ("resnet18", "resnet50", "vgg19_bn", "mobilenet_v2", "vit_tiny", "vit_small")


def test_every_name_has_a_published_count():
    assert COUNTS.keys() == models.MODELS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_shapes_are_the_published_ones(name):
    with torch.device("meta"):
        model = models.create(name)
        if name.startswith("gpt"):
            tokens = {"gpt2": 50257, "gpt_mini": 65, "gpt_micro": 256}[name]
            x, outputs = torch.zeros(2, 9, dtype=torch.long), (2, 9, tokens)
        else:
            size = 224 if name in LARGE else 32
            x, outputs = torch.randn(2, 3, size, size), (2, 1000 if name in LARGE else 10)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert model(x).shape == outputs


@pytest.mark.parametrize("name", COUNTS)
def test_options_are_those_that_create_takes(name):
    options = models.options(name)
    given = {"num_classes": 3, "in_channels": 2, "vocab_size": 5}
    given = {option: value for option, value in given.items() if option in options}
    assert given
    with torch.device("meta"):
        model = models.create(name, **given)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert last.out_features == given.get("num_classes", 5)


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_reach_every_parameter(name):
    case = CASES[name]
    model = case.make()
    y = model(case.input())
    assert y.shape == case.outputs
    assert y.isfinite().all()
    (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert sum(bool(p.grad.any()) for p in model.parameters()) > 0.9 * len(list(model.parameters()))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sparse", [False, True])
def test_blocks_run_front_to_back(name, sparse):
    case = CASES[name]
    model = case.make()
    if sparse:
        spfde.sparsify(model, 0.6)
    found = blocks(model, case.input())
    assert [block.name for block in found] == case.blocks
    assert [layer.work.name for layer in found[0].rest] == case.rest
    owned = {id(p) for block in found for _, m in block.modules for p in m.parameters()}
    owned |= {id(p) for block in found for _, p in block.parameters}
    head = [n for n, p in model.named_parameters() if id(p) not in owned]
    assert {n.split(".")[0] for n in head} <= {
        "fc",
        "classifier",
        "norm",
        "head",
        "last",
        "token",
    }  # what lies behind, and what is tied to it


@pytest.mark.parametrize("name", CASES)
def test_sparse_and_back_gives_the_same_function(name):
    case = CASES[name]
    model = case.make().eval()
    names = list(model.state_dict())
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding)]
    dense = [n for n in layers if not isinstance(model.get_submodule(n), nn.Embedding)]
    spfde.sparsify(model, 0.7)
    sparse = [n for n, m in model.named_modules() if isinstance(m, SparseLayer)]
    last = next(n for n in reversed(dense) if isinstance(model.get_submodule(n), nn.Linear))
    assert sparse == [n for n in dense if n not in (layers[0], last)]
    y = model(case.input())
    spfde.densify(model)
    assert list(model.state_dict()) == names
    assert not any(isinstance(m, SparseLayer) for m in model.modules())
    torch.testing.assert_close(model(case.input()), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sparse", [False, True])
def test_copies_and_states_carry_the_network(name, sparse):
    case = CASES[name]
    model, other = case.make().eval(), case.make().eval()
    if sparse:
        spfde.sparsify(model, 0.7, seed=0)
        spfde.sparsify(other, 0.7, seed=1)
    y = model(case.input())
    assert not torch.equal(other(case.input()), y)
    twin = copy.deepcopy(model)
    other.load_state_dict(model.state_dict())
    for same in (twin, other):
        assert torch.equal(same(case.input()), y)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(model(case.input()), y)


@pytest.mark.parametrize("name", CASES)
def test_fx_traces_the_same_function(name):
    case = CASES[name]
    model = case.make().eval()
    assert torch.equal(torch.fx.symbolic_trace(model)(case.input()), model(case.input()))


@pytest.mark.parametrize("name", CASES)
def test_compile_takes_the_whole_graph(name):
    case = CASES[name]
    model = case.make().eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    try:
        torch.testing.assert_close(compiled(case.input()), model(case.input()))
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("name", CASES)
def test_the_same_seed_gives_the_same_network(name):
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(CASES[name].make().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_transformers_become_sparse_in_every_linear():
    model = models.ViT(24, 2, heads=3, image_size=8, patch_size=4)
    spfde.sparsify(model, 0.5, exclude=("patch", "head"), distribution="erk")
    layers = ("attention.q", "attention.k", "attention.v", "attention.proj", "mlp.fc1", "mlp.fc2")
    assert all(isinstance(model.get_submodule(f"blocks.{i}.{n}"), SparseLinear) for i in range(2) for n in layers)


def test_depthwise_convolutions_can_be_sparse_or_excluded():
    model = spfde.sparsify(models.create("mobilenet_v2_cifar", width=0.35), 0.5)
    assert isinstance(model.blocks[3].depthwise[0], SparseConv2d)
    model = spfde.sparsify(models.create("mobilenet_v2_cifar", width=0.35), 0.5, exclude=("*.depthwise",))
    assert isinstance(model.blocks[3].depthwise[0], nn.Conv2d)
    assert isinstance(model.blocks[3].expand[0], SparseConv2d)


def test_a_tied_head_stays_dense():
    model = spfde.sparsify(CASES["gpt"].make(), 0.5, distribution="erk")
    assert isinstance(model.blocks[0].mlp.fc1, SparseLinear) and model.head.weight is model.token.weight
    free = models.GPT(24, 2, heads=3, vocab_size=31, context=16, tied=False)
    spfde.sparsify(free, 0.5, distribution="erk")
    assert isinstance(free.head, SparseLinear)


def test_the_tie_survives_copies_and_freezing_follows_it():
    model = copy.deepcopy(CASES["gpt"].make())
    assert model.head.weight is model.token.weight
    freeze(model.token)
    assert not model.head.weight.requires_grad


def test_unknown_names_options_and_forms_are_refused():
    for ask in (models.create, models.options):
        with pytest.raises(ValueError, match=r"expected a model to be one of .*, got 'vgg19', try 'vgg19_bn'"):
            ask("vgg19")
    with pytest.raises(ValueError, match=r"an option of 'vit_tiny'.*got 'patch', try 'patch_size'"):
        models.create("vit_tiny", patch=8)
    with pytest.raises(ValueError, match=r"an option of 'vgg19_bn'.*got 'form'"):
        models.create("vgg19_bn", form="cifar")
    for family in (models.VGG19, models.MobileNetV2, lambda form: models.ImageNetResNet(18, form)):
        with pytest.raises(
            ValueError, match=r"expected form to be one of cifar, imagenet, got 'image', try 'imagenet'"
        ):
            family("image")
    for family in (models.VGG19, models.MobileNetV2, lambda **given: models.ImageNetResNet(18, **given)):
        with pytest.raises(ValueError, match="expected num_classes >= 1, got 0"):
            family(num_classes=0)
        with pytest.raises(ValueError, match="expected in_channels >= 1, got 0"):
            family(in_channels=0)
