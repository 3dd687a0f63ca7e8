"""The frozen front as one inference call: what it returns is what the modules return, and nothing else changes."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from freezing.models import IMAGES, MODELS, VGG, Basic, ResNet
from torch import nn

import spfde
from spfde.freezing import Compiled, Prefix, blocks
from spfde.kernels.clock import measure
from spfde.models import ResNet as PaperResNet

LABELS = torch.tensor([0, 1, 2, 3])


def settled(model: nn.Module) -> nn.Module:
    """The model with statistics and affine maps as after some training."""
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and norm.affine:
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.3, 3)
                norm.weight.uniform_(-1.5, 1.5)
                norm.bias.normal_()
    return model


def frozen(model: nn.Module, count: int = 2, **options) -> Prefix:
    """A prefix of the model in training, whose first blocks are frozen."""
    parts = blocks(model, torch.randn(IMAGES, dtype=next(model.parameters()).dtype))
    for block in parts[:count]:
        block.freeze()
    model.train()
    return Prefix(model, parts, **options)


def outputs(model: nn.Module, x: torch.Tensor, names: list[str], context=nullcontext) -> list[torch.Tensor]:
    """What the modules of these names return, and the model."""
    found, handles = [], []
    for name in names:
        module = model.get_submodule(name)
        handles.append(module.register_forward_hook(lambda module, inputs, output: found.append(output)))
    with context():
        found.append(model(x))
    for handle in handles:
        handle.remove()
    return found


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((got - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize(
    "sparsity, fused, dtype",
    [
        pytest.param(None, False, torch.float32, marks=pytest.mark.full),
        (0.7, True, torch.float32),
        (0.7, False, torch.float64),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_returns_what_the_modules_return(name, sparsity, fused, dtype):
    model = settled(MODELS[name]())
    model = model if sparsity is None else spfde.sparsify(model, sparsity)
    model = (spfde.fuse(model) if fused else model).to(dtype)
    prefix, x = frozen(model), torch.randn(16, *IMAGES[1:], dtype=dtype)  # enough for the lanes of the native core
    twin = copy.deepcopy(model.eval())
    with prefix(), measure() as kernels:
        got = model(x)
    F.cross_entropy(got, LABELS.repeat(4)).backward()
    expected = twin(x)
    F.cross_entropy(expected, LABELS.repeat(4)).backward()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert close(got.detach(), expected.detach(), tolerance)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=0, atol=100 * tolerance)
    assert (kernels.seconds > 0) == (sparsity is not None)
    members = [m for block in prefix.frozen for m in block.members]
    count = sum(isinstance(m, nn.Conv2d | spfde.nn.SparseConv2d) for m in members)
    assert name == "vit" or f"{count} of {count} convolutions folded" in str(prefix)


def test_every_block_s_output_is_right_and_wants_no_gradient():
    model = settled(spfde.sparsify(ResNet(), 0.5))
    prefix, x = frozen(model, 3), torch.randn(IMAGES)
    names = [block.name for block in prefix.frozen]
    expected = outputs(copy.deepcopy(model), x, names)
    got = outputs(model, x, names, prefix)
    assert all(close(a.detach(), b.detach(), 1e-5) for a, b in zip(got, expected, strict=True))
    assert [y.requires_grad for y in got] == [False, False, False, True]
    assert prefix.boundary == names[-1]


def test_a_hundred_steps_change_nothing_of_the_front():
    model = settled(spfde.sparsify(VGG(), 0.5))
    prefix = frozen(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    front = {name for block in prefix.frozen for n, module in block.modules for name in
             (f"{n}.{key}" for key in module.state_dict())}  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    for _ in range(100):
        optimizer.zero_grad()
        with prefix():
            loss = F.cross_entropy(model(torch.randn(IMAGES)), LABELS)
        loss.backward()
        optimizer.step()
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert front and moved and not front & moved


def test_it_grows_with_each_freeze_and_an_unfreeze_undoes_it_exactly():
    model = settled(spfde.sparsify(ResNet(), 0.5))
    parts, x = blocks(model, torch.randn(IMAGES)), torch.randn(IMAGES)
    prefix = Prefix(model.eval(), parts)
    assert prefix.boundary is None
    plain, keys = model(x), list(model.state_dict())
    for block in parts:
        block.freeze()
        assert prefix.boundary == block.name
        with prefix():
            assert close(model(x), plain, 1e-5)
        assert list(model.state_dict()) == keys
        assert not any("forward" in vars(m) for m in model.modules())
    parts[0].unfreeze()
    model.eval()
    assert prefix.boundary is None
    with prefix():
        assert torch.equal(model(x), plain)


@pytest.mark.parametrize("at", ["layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu", "layer1.0", "layer1", "maxpool"])
def test_hooks_on_frozen_modules_see_what_they_would_see(at):
    model = settled(ResNet())
    prefix, x, seen = frozen(model), torch.randn(IMAGES), []
    model.get_submodule(at).register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    model(x)
    with prefix():
        model(x)
    half = len(seen) // 2
    assert all(close(a, b, 1e-5) for a, b in zip(seen[:half], seen[half:], strict=True))
    assert half == (2 if at.endswith("relu") else 1)
    if at in ("layer1.0.conv1", "layer1.0.bn1"):
        assert f"{at} as ever: it has hooks" in str(prefix)


@pytest.mark.parametrize("hook", ["", "encoder.layers.0.mlp.0", "encoder.layers.0.mlp.1"])
@pytest.mark.parametrize("sparsity", [None, 0.5])
def test_linear_layers_are_one_with_what_follows_to_the_bit(sparsity, hook):
    model = MODELS["vit"]()
    model = model if sparsity is None else spfde.sparsify(model, sparsity)
    prefix, x, seen = frozen(model), torch.randn(IMAGES), []
    model.eval()
    if hook:
        model.get_submodule(hook).register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    expected = model(x)
    with prefix():
        assert torch.equal(model(x), expected)
    text = str(prefix)
    assert "encoder.layers.0.mlp.2  linear+add" in text and "encoder.layers.0.attn.proj  linear+add" in text
    assert ("encoder.layers.0.mlp.0  linear+gelu" in text) == (not hook)
    assert (f"{hook} as ever: it has hooks" in text) == hook.endswith("mlp.0")
    assert not hook or (len(seen) == 2 and torch.equal(*seen))


class Glued(nn.Module):
    """A forward that changes in place what a convolution has read, between it and what follows."""

    def __init__(self, method: bool) -> None:
        super().__init__()
        self.method = method
        self.body = nn.Sequential(Basic(3, 4), Basic(4, 4))
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        y = self.conv(x)
        x = x.mul_(2) if self.method else F.relu(x - 1, inplace=True) + x
        return self.fc(F.relu(self.norm(y) + x).mean((2, 3)))


@pytest.mark.parametrize("method", [False, True])
def test_a_front_that_changes_tensors_in_place_is_right(method):
    model = settled(Glued(method))
    for m in (model.body, model.conv, model.norm):
        spfde.freezing.freeze(m)
    parts, x = blocks(model, torch.randn(IMAGES)), torch.randn(IMAGES)
    prefix, expected = Prefix(model, parts), model(x)
    with prefix():
        assert close(model(x), expected, 1e-5)
    assert len(prefix.frozen) == 2


def test_what_is_written_into_frozen_weights_is_followed():
    model, x = settled(spfde.sparsify(ResNet(), 0.5)), torch.randn(IMAGES)
    prefix = frozen(model)
    with prefix():
        first = model(x)
    model.load_state_dict(settled(copy.deepcopy(model)).state_dict())
    values = next(m for m in prefix.frozen[0].members if isinstance(m, spfde.nn.SparseConv2d)).values
    values.data = values.data * 2
    model.eval()
    with prefix():
        got = model(x)
    assert close(got, model(x), 1e-5)
    assert not close(got, first, 1e-2)


def test_inputs_that_want_a_gradient_get_it():
    model = settled(spfde.sparsify(ResNet(), 0.5))
    prefix = frozen(model)
    model.eval()
    gradients = []
    for context in (prefix, nullcontext):
        x = torch.ones(IMAGES, requires_grad=True)
        with context():
            model(x).square().sum().backward()
        gradients.append(x.grad)
    assert close(*gradients, 1e-5)


def test_what_has_no_folding_says_why():
    class Forked(Basic):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:
                return super().forward(x)
            return super().forward(-x)

    model = ResNet()
    model.layer1[0] = Forked(4, 4)
    prefix, x = frozen(settled(model), 2), torch.randn(IMAGES)
    model.eval()
    expected = model(x)
    with prefix():
        assert close(model(x), expected, 1e-5)
    assert "layer1.0 as ever: torch.fx cannot trace" in str(prefix)


def test_autocast_computes_in_the_precision_of_the_run():
    model = settled(spfde.sparsify(PaperResNet(8), 0.5))
    prefix, x, seen = frozen(model), torch.randn(IMAGES), []
    model.layer2[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
        with prefix():
            model(x)
    assert [y.dtype for y in seen] == [torch.bfloat16] * 2
    assert close(seen[1].float(), seen[0].float(), 3e-2)


def test_compiles_once_a_freeze():
    model = settled(spfde.sparsify(VGG(), 0.5))
    parts, x = blocks(model, torch.randn(IMAGES)), torch.randn(IMAGES)
    prefix, graphs = Prefix(model.eval(), parts), []
    compiled = Compiled(model, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    for count in (1, 2):
        parts[count - 1].freeze()
        compiled.drop()
        for _ in range(3):
            with prefix():
                got = compiled(x)
        assert len(graphs) == count
        assert close(got, model(x), 1e-5)
        calls = [str(node.target) for node in graphs[-1].graph.nodes]
        assert sum("batch_norm" in call for call in calls) == 3 - count


def test_runs_on_the_meta_device():
    model = frozen(settled(VGG())).model.to("meta")
    parts = blocks(VGG(), torch.randn(IMAGES))
    assert parts
    with Prefix(model, blocks(model, torch.randn(IMAGES, device="meta")))():
        assert model(torch.randn(IMAGES, device="meta")).shape == (4, 5)


def test_one_context_at_a_time_and_the_model_s_own_blocks():
    model = ResNet()
    prefix = frozen(model)
    with prefix(), pytest.raises(RuntimeError, match="expected one `with prefix\\(\\)` at a time"), prefix():
        pass
    with pytest.raises(ValueError, match="expected blocks of this model"):
        Prefix(ResNet(), prefix.blocks)


def test_statistics_that_moved_while_a_block_was_thawed_are_followed():
    model = settled(ResNet())
    prefix, x = frozen(model, 1), torch.randn(IMAGES)
    with prefix():
        model(x)
    prefix.blocks[0].unfreeze()
    model.train()
    model(3 * x + 1)  # torch counts no write of the statistics
    prefix.blocks[0].freeze()
    twin = copy.deepcopy(model)
    with prefix():
        assert close(model(x).detach(), twin(x).detach(), 1e-4)


@pytest.mark.parametrize("batch", [5, 32])
def test_a_stage_s_shortcut_runs_with_its_convolutions(batch):
    model = settled(spfde.sparsify(PaperResNet(20, width=0.5), 0.6)).eval()
    prefix, x = frozen(model, 5), torch.randn(batch, 3, 16, 16)
    model.eval()
    with prefix():
        assert close(model(x), copy.deepcopy(model)(x), 1e-5)
    assert "11 of 11 convolutions folded, in 1 calls" in str(prefix)
    assert "layer2.0.shortcut  shortcut" in str(prefix)


def test_a_shortcut_with_weights_is_a_residual_of_the_last_convolution():
    model = settled(spfde.sparsify(ResNet(8), 0.5))
    prefix, x = frozen(model, 4), torch.randn(16, *IMAGES[1:])
    model.eval()
    with prefix():
        assert close(model(x), copy.deepcopy(model)(x), 1e-5)
        text = str(prefix)
    assert "10 of 10 convolutions folded, in 2 calls" in text  # a pooling lies between the two
    assert "layer2.0.conv2  conv+norm+add+relu" in text and "layer2.0.downsample.0  conv+norm" in text
    assert "as ever" not in text
