"""Blocks by execution order, and what cannot be put in order."""

import copy

import pytest
import torch
from freezing.models import IMAGES, MODELS, VGG, Basic, Encoder, ResNet, ViT
from torch import nn

from spfde.convert.sparsify import sparsify
from spfde.flops import layer_work
from spfde.freezing import FreezeBlock, blocks, freeze
from spfde.nn import SparseConv2d, SparseLayer

NAMES = {
    "resnet": ["layer1.0", "layer1.1", "layer2.0", "layer2.1"],
    "vgg": ["features.0", "features.3", "features.6", "classifier.0"],
    "mobilenet": ["features.1", "features.2", "features.3", "features.4.0"],
    "vit": ["encoder.layers.0", "encoder.layers.1", "encoder.layers.2"],
}
FIRST = {
    "resnet": ["conv1", "bn1", "relu", "maxpool", "layer1.0"],
    "vgg": ["features.0", "features.1", "features.2"],
    "mobilenet": ["features.0.0", "features.0.1", "features.0.2", "features.1"],
    "vit": ["conv_proj", "encoder.dropout", "encoder.layers.0"],
}
LAST = {
    "resnet": ["layer2.1"],
    "vgg": ["classifier.0", "classifier.1", "classifier.2"],
    "mobilenet": ["features.4.0", "features.4.1", "features.4.2", "classifier.0"],
    "vit": ["encoder.layers.2"],
}
REST = {
    "resnet": ["conv1", "fc"],
    "vgg": ["classifier.3"],
    "mobilenet": ["features.0.0", "classifier.1"],
    "vit": ["conv_proj", "heads.0"],
}


def modules_of(block: FreezeBlock) -> list[str]:
    return [name for name, _ in block.modules]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sparse", [False, True])
def test_blocks_of_known_architectures_dense_and_sparse(name, sparse):
    model = MODELS[name]()
    if sparse:
        sparsify(model, sparsity=0.7)
        assert any(isinstance(m, SparseLayer) for m in model.modules())
    found = blocks(model, torch.randn(IMAGES))
    assert [b.name for b in found] == NAMES[name]
    assert modules_of(found[0]) == FIRST[name] and modules_of(found[-1]) == LAST[name]
    assert [layer.work.name for layer in found[0].rest] == REST[name]
    assert all(model.get_submodule(n) is m for b in found for n, m in b.modules)


@pytest.mark.parametrize("name", MODELS)
def test_work_is_that_of_the_layers_and_nothing_is_lost(name):
    model = MODELS[name]()
    example = torch.randn(IMAGES)
    work = layer_work(model, example)
    found = blocks(model, example)
    assert [w for b in found for w in b.work] == [w for n, w in work.items() if n not in REST[name]]
    assert all(b.forward == sum(w.forward for w in b.work) > 0 for b in found)
    assert all(b.backward == sum(w.backward for w in b.work) > 0 for b in found)


def test_flops_follow_the_density():
    model = ResNet()
    dense = blocks(model, torch.randn(IMAGES))[1]
    sparsify(model, sparsity=0.75)
    block = blocks(model, torch.randn(IMAGES))[1]
    assert block.forward == dense.forward // 4
    conv = model.layer1[1].conv1
    assert isinstance(conv, SparseConv2d)
    half = SparseConv2d.from_dense(nn.Conv2d(4, 4, 3), mask=torch.arange(144).reshape(4, 4, 3, 3) < conv.nnz // 2)
    before = block.forward
    conv.__dict__.update(half.__dict__)  # the same object, now with half of its weights
    assert block.forward == before - 2 * 16 * (36 - 18)


def test_blocks_do_not_depend_on_the_order_of_registration():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.c, self.b, self.a = Basic(4, 4), Basic(4, 4), Basic(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.c(self.b(self.a(x))).mean((2, 3)))

    assert [b.name for b in blocks(Backwards(), torch.randn(IMAGES))] == ["a", "b", "c"]


@pytest.mark.parametrize("name", MODELS)
def test_everything_about_the_model_is_as_before(name):
    model = MODELS[name]()
    freeze(next(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)))
    for i, m in enumerate(model.modules()):
        m.training = i % 2 == 0
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    random = torch.random.get_rng_state()
    blocks(model, torch.randn(IMAGES, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(random, torch.random.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_everything_is_as_before_when_the_model_fails():
    class Failing(VGG):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            torch.rand(1)
            raise RuntimeError("no")

    model = Failing()
    random = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match=r"^no$"):
        blocks(model, torch.randn(IMAGES, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_parameters_used_by_the_model_itself_belong_to_the_first_block_they_reach():
    found = blocks(ViT(), torch.randn(IMAGES))
    assert [[n for n, _ in b.parameters] for b in found] == [["class_token", "encoder.pos_embedding"], [], []]

    class Between(VGG):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.features[:6](x) * self.gain
            return self.classifier(self.avgpool(self.features[6:](x)).flatten(1))

    found = blocks(Between(), torch.randn(IMAGES))
    assert [[n for n, _ in b.parameters] for b in found] == [[], [], ["gain"], []]


def test_wrappers_are_looked_into():
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module, head: nn.Module) -> None:
            super().__init__()
            self.inner, self.head = inner, head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.inner(x))

    assert [b.name for b in blocks(Wrapper(ResNet(), nn.Identity()), torch.randn(IMAGES))] == [
        f"inner.{n}" for n in NAMES["resnet"]
    ]
    found = blocks(Wrapper(VGG(), nn.Linear(5, 2)), torch.randn(IMAGES))
    assert [b.name for b in found] == [f"inner.{n}" for n in [*NAMES["vgg"], "classifier.3"]]


def test_lists_of_lists_and_torch_s_own_encoder():
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(nn.ModuleList([Basic(3, 3), Basic(3, 3)]) for _ in range(2))
            self.head = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for stage in self.stages:
                for block in stage:
                    x = block(x)
            return self.head(x.mean((2, 3)))

    names = [b.name for b in blocks(Stacked(), torch.randn(IMAGES))]
    assert names == ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1"]
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 2))
    assert [b.name for b in blocks(model, torch.randn(2, 5, 8))] == ["0.layers.0", "0.layers.1"]


def test_a_sequential_with_a_forward_of_its_own_is_no_chain():
    class Residual(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + super().forward(x)

    parts = [Residual(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2)]
    assert [b.name for b in blocks(nn.Sequential(*parts, nn.Linear(4, 2)), torch.randn(2, 4))] == ["0", "1"]


def test_a_model_with_several_inputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(self.a(x) + y))

    assert [b.name for b in blocks(Two(), (torch.randn(2, 3), torch.randn(2, 4)))] == ["a", "b"]


def test_one_activation_for_a_whole_network_is_nobody_s():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2))
    assert [modules_of(b) for b in blocks(model, torch.randn(2, 3))] == [["0"], ["2"]]


def run_twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(3, 4), layer, nn.ReLU(), layer, nn.Linear(4, 2))


def shared_inside() -> nn.Module:
    encoder = Encoder(5, 8, 3)
    encoder.layers[2].mlp = encoder.layers[0].mlp
    return nn.Sequential(nn.Linear(8, 8), encoder, nn.Linear(8, 2))


def one_norm() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    return nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 4), norm, nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("make", "shape", "words"),
    [
        (run_twice, (2, 3), "'1' in block '1' and again in block '1'"),
        (shared_inside, (2, 5, 8), "'1.layers.2.mlp' in block '1.layers.0' and again in block '1.layers.2'"),
        (one_norm, (2, 3), "'1' in block '0' and again in block '2'"),
    ],
)
def test_what_runs_in_two_blocks_is_refused_by_name(make, shape, words):
    with pytest.raises(ValueError, match=rf"expected a module to run in one block only, got {words}.*try"):
        blocks(make(), torch.randn(shape))


class Bare(nn.Module):
    """Weights that no module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(3, 2),
        nn.Sequential(nn.Linear(3, 2)),
        nn.Sequential(nn.ReLU(), nn.Softmax(1)),
        nn.ReLU(),
        Bare(),
    ],
)
def test_a_model_without_blocks_is_refused(model):
    with pytest.raises(ValueError, match=r"expected a model with weighted layers.*try freeze\(\)"):
        blocks(model, torch.randn(2, 3))


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match=r"expected an nn.Module as model, got builtin_function_or_method"):
        blocks(torch.relu_, torch.randn(2, 3))
    for example in ([1.0], (), (torch.tensor(1.0), 3), {}, {"x": None}, None):
        with pytest.raises(TypeError, match=r"expected example_input to hold a batch .*; try one batch"):
            blocks(VGG(), example)
