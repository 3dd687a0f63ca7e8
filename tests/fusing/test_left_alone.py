"""What must not be fused says why, and works as before."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from fusing.networks import chains, images
from torch import nn

import spfde


class Block(nn.Module):
    """conv, norm and a forward given by the test."""

    def __init__(self, norm=None, **attributes):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 1), norm or nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        vars(self).update(attributes)


class Optional(Block):
    def forward(self, x, mask=None):
        y = self.relu(self.norm(self.conv(x)))
        return y if mask is None else y * mask


class Asks(Block):
    def forward(self, x):
        x = x if isinstance(x, torch.Tensor) else x[0]
        return self.relu(self.norm(self.conv(x)))


class Branches(Block):
    def forward(self, x):
        y = self.relu(self.norm(self.conv(x)))
        return y if y.sum() > 0 else -y


class Random(Block):
    def forward(self, x):
        y = self.relu(self.norm(self.conv(x)))
        return y if random.random() < 0.5 else 2 * y


class Noise(Block):
    def forward(self, x):
        return self.relu(self.norm(self.conv(x))) + torch.randn(1)


class Counts(Block):
    def forward(self, x):
        self.calls = vars(self).get("calls", 0) + 1
        return self.relu(self.norm(self.conv(x)))


class Softplus(Block):
    def forward(self, x):
        return F.softplus(self.norm(self.conv(x)))


class TwoUses(Block):
    def forward(self, x):
        y = self.norm(self.conv(x))
        return torch.relu(y) + y


class InPlaceElsewhere(Block):
    """x, which the norm reads too, is what the addition changes."""

    def forward(self, x):
        y = self.conv(x)
        z = y * 2
        z += self.norm(y)
        return self.relu(z) + y


class NotCalled(Block):
    def forward(self, x):
        n = self.norm
        return F.batch_norm(x, n.running_mean, n.running_var)


class MyNorm(nn.BatchNorm2d):
    pass


def hooked(kind):
    block = Plain()
    module = {"norm": block.norm, "relu": block.relu}[kind]
    module.register_forward_hook(lambda *_: None)
    return block


class Plain(Block):
    def forward(self, x):
        return self.relu(self.norm(self.conv(x)))


def patched():
    block = Plain()
    block.forward = lambda x: block.norm(x)
    return block


LEFT = [
    (lambda: Optional(), "norm", "its forward has optional arguments"),
    (lambda: Asks(), "norm", "its forward asks isinstance"),
    (lambda: Branches(), "norm", "torch.fx cannot trace its forward"),
    (lambda: Random(), "norm", "its forward draws random numbers"),
    (lambda: Noise(), "norm", "its forward makes a tensor of its own"),
    (lambda: Counts(), "norm", "its forward sets attributes"),
    (lambda: Softplus(), "norm", "followed by softplus"),
    (lambda: TwoUses(), "norm", "its output is used in 2 places"),
    (lambda: InPlaceElsewhere(), "norm", "followed by iadd"),
    (lambda: NotCalled(), "norm", "no forward calls it"),
    (lambda: hooked("relu"), "norm", "followed by ReLU with hooks"),
    (patched, "norm", "its forward is replaced on the instance"),
    (lambda: hooked("norm"), "", "it has hooks, which would see the fused output"),
    (lambda: Plain(MyNorm(3)), "", "MyNorm is not nn.BatchNorm2d itself"),
    (lambda: Plain(nn.SyncBatchNorm(3)), "", "SyncBatchNorm is not nn.BatchNorm2d itself"),
]


@pytest.mark.parametrize(("make", "chain", "reason"), LEFT, ids=[reason for *_, reason in LEFT])
def test_what_is_not_fused_says_why_and_works_as_before(make, chain, reason):
    torch.manual_seed(0)
    model = make()
    reference, draws = copy.deepcopy(model), random.getstate()
    (row,) = spfde.fuse.report(model).rows
    assert row.chain == chain
    assert reason in row.reason
    assert random.getstate() == draws
    assert not isinstance(vars(spfde.fuse(model, recompute=False)).get("forward"), spfde.fusing.forward.FusedForward)
    assert "calls" not in vars(model)
    if not isinstance(model.norm, nn.SyncBatchNorm):  # which wants a process group
        answers = []
        for m in (model, reference):
            random.setstate(draws)
            torch.manual_seed(1)
            answers.append(m(torch.ones(2, 3, 4, 4).cumsum(2).requires_grad_()))
        torch.testing.assert_close(*answers)


def test_a_norm_whose_input_has_other_readers_is_not_moved():
    class Moved(Block):
        def forward(self, x):
            y = self.conv(x)
            z = self.norm(y)
            y.mul_(0)
            return self.relu(z + x)

    torch.manual_seed(0)
    model = Moved()
    expected = copy.deepcopy(model)(images()[:, :3])
    (row,) = spfde.fuse.report(model).rows
    assert row.chain == "norm"
    assert row.reason == "its input is also used elsewhere, so the addition stays on its own"
    torch.testing.assert_close(spfde.fuse(model)(images()[:, :3]), expected)


def test_a_norm_called_twice_is_fused_where_it_can_be():
    class Twice(Block):
        def forward(self, x):
            return F.softplus(self.norm(self.relu(self.norm(self.conv(x)))))

    torch.manual_seed(0)
    model = Twice()
    reference = copy.deepcopy(model)
    assert chains(model) == {"norm": "norm+relu, norm"}
    torch.testing.assert_close(spfde.fuse(model)(images()), reference(images()))
    torch.testing.assert_close(model.norm.running_var, reference.norm.running_var)
    assert model.norm.num_batches_tracked == 2


@pytest.mark.parametrize("function", [spfde.fuse, spfde.unfuse, spfde.fuse.report])
def test_only_modules(function):
    with pytest.raises(TypeError, match="expected an nn.Module, got int, try the model itself"):
        function(3)
