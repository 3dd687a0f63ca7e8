"""Recomputing: the same bits from fewer saved tensors."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from fusing import models
from fusing.networks import NETWORKS, built, images
from torch import nn
from torch.utils.checkpoint import checkpoint

import spfde


def inputs_alive_after_forward(model):
    """Names of the layers whose input is still in memory when only the loss is held, and the loss."""
    seen = {}
    for name, m in model.named_modules():
        if not list(m.children()):
            hook = lambda _, args, name=name: seen.update({name: weakref.ref(args[0].untyped_storage())})  # noqa: E731
            m.register_forward_pre_hook(hook)
    loss = model(images()).square().sum()
    gc.collect()
    return {name for name, reference in seen.items() if reference() is not None}, loss


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_recomputing_gives_the_same_bits(name, sparse):
    saving = built(name)
    if sparse:
        spfde.sparsify(saving, 0.5)
        for m in saving.modules():
            if isinstance(m, spfde.nn.SparseLayer):
                m.kernel = "native"
    remaking = spfde.fuse(copy.deepcopy(saving), recompute=True)
    spfde.fuse(saving, recompute=False)
    for model in (saving, pickle.loads(pickle.dumps(remaking)), remaking):
        model(images()).square().sum().backward()
    for p, q in zip(remaking.parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_what_is_recomputed_is_not_saved():
    plain = models.VGG(True)
    readers = {"features.3", "features.7"}  # of norm + relu: a pooling and a convolution
    alive, loss = inputs_alive_after_forward(spfde.fuse(copy.deepcopy(plain), recompute=False))
    assert readers <= alive
    alive, loss = inputs_alive_after_forward(spfde.fuse(plain, recompute=True))
    assert not readers & alive
    loss.backward()


def test_along_residual_sums_every_other_one_is_kept():
    alive, loss = inputs_alive_after_forward(spfde.fuse(built("resnet20"), recompute=True))
    first = {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)}
    # The stem's output comes from x alone; a shortcut that pads is kept by nobody, so the sum after it must be.
    assert first - alive == {"layer1.0.conv1", "layer1.2.conv1", "layer2.2.conv1", "layer3.2.conv1"}
    assert not {name for name in alive if name.endswith("conv2")}
    loss.backward()


def test_a_layer_in_another_module_does_not_save_either():
    expand, depthwise, project = "features.1.conv.0.0", "features.1.conv.1.0", "features.1.conv.2"
    alive, loss = inputs_alive_after_forward(spfde.fuse(built("mobilenet"), recompute=True))
    assert not {expand, depthwise, project} & alive
    loss.backward()


class MLP(nn.Module):
    """Two linears around a GELU on tokens [batch, 4, 36], after a convolution with a norm."""

    def __init__(self, approximate="none"):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.fc1, self.gelu, self.fc2 = nn.Linear(36, 24), nn.GELU(approximate), nn.Linear(24, 7)

    def forward(self, x):
        return self.fc2(self.gelu(self.fc1(self.norm(self.conv(x)).flatten(2))))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_what_gelu_makes_is_made_again(approximate, sparse):
    torch.manual_seed(0)
    saving = MLP(approximate)
    if sparse:
        spfde.sparsify(saving, 0.5, distribution="erk")
    remaking = spfde.fuse(copy.deepcopy(saving), recompute=True)
    results = []
    for model, saved in ((spfde.fuse(saving, recompute=False), {"fc2"}), (remaking, set())):
        alive, loss = inputs_alive_after_forward(model)
        assert alive & {"fc2"} == saved
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(map(torch.equal, *results))


class Awkward(nn.Module):
    """norm, then what the test gives."""

    def __init__(self, rest):
        super().__init__()
        self.conv, self.norm, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.elu, self.rest = nn.ELU(inplace=True), rest

    def forward(self, x):
        return self.rest(self, self.norm(self.conv(x)))


AWKWARD = {
    "changed in place by the layer itself": lambda m, y: m.elu(y),
    "changed in place before": lambda m, y: m.second(y.mul_(2)),
    "saved by a product": lambda m, y: (y * y.sigmoid())[:, :, 1:-1, 1:-1] + m.second(y),
}


@pytest.mark.parametrize("rest", AWKWARD.values(), ids=AWKWARD)
def test_what_is_saved_or_changed_elsewhere_gives_the_same_gradients(rest):
    torch.manual_seed(0)
    saving = Awkward(rest)
    results = []
    for model in (spfde.fuse(copy.deepcopy(saving), recompute=True), spfde.fuse(saving, recompute=False)):
        loss = model(images()).square().sum()
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)])
    assert all(map(torch.equal, *results))


def test_backward_twice():
    model = spfde.fuse(built("resnet20"), recompute=True)
    loss = model(images()).square().sum()
    first, second = (torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["resnet20", "mlp"])
def test_under_a_checkpoint(name, reentrant):
    torch.manual_seed(0)
    model = spfde.fuse(built(name) if name in NETWORKS else MLP(), recompute=True)
    parts = (
        [model] if name == "mlp" else [nn.Sequential(model.conv1, model.bn1, model.relu), model.layer1, model.layer2]
    )
    results = []
    for wrapped in ((), parts[-1:], parts):
        x = images().requires_grad_()
        for part in parts:
            x = checkpoint(part, x, use_reentrant=reentrant) if part in wrapped else part(x)
        model.zero_grad()
        x.square().sum().backward()
        results.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, results[0], results[1])) and all(map(torch.equal, results[0], results[2]))
