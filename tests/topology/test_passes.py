"""Which backward passes decide growth: those that the step which was taken saw, and no others."""

import pytest
import torch
from torch import nn

from spfde import sparsify
from spfde.topology import RigL, TopKAST


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation: a pass that only moves the weights, then one that the base optimizer sees."""

    def __init__(self, params, base, **kwargs):
        super().__init__(params, dict(rho=0.05))
        self.base_optimizer = base(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            self.state[p]["old_p"] = p.clone()
            p.add_(p.grad, alpha=0.05)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step()


def loss_of(model, seed, samples=6):
    x = torch.randn(samples, 8, generator=torch.Generator().manual_seed(seed))
    return model(x).square().sum() if seed < 9 else model(x).mul(1e3).sin().sum()


def grown(before, set_to_none=True, lr=0.0):
    """Where RigL grows after whatever `before` does, a pass and a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6))
    sparsify(model, distribution={"0": 0.7, "2": 0.7})
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    topology = RigL(model, optimizer, total_steps=99, every=1, drop_fraction=0.5)
    before(model, optimizer, lambda: optimizer.zero_grad(set_to_none=set_to_none))
    loss_of(model, 1).backward()
    optimizer.step()
    assert topology.step()
    return [layer.positions() for layer in (model[0], model[2])]


def nothing(model, optimizer, zero):
    pass


def a_pass_without_step(model, optimizer, zero):
    loss_of(model, 10).backward()
    zero()


def a_batch_that_is_not_a_number(model, optimizer, zero):
    (loss_of(model, 2) * torch.nan).backward()
    zero()


def gradients_of_inputs(model, optimizer, zero):
    x = torch.randn(4, 8, requires_grad=True)
    torch.autograd.grad(model(x).mul(1e3).sum(), x)


def gradients_for_a_log(model, optimizer, zero):
    torch.autograd.grad(loss_of(model, 10), list(model.parameters()))


def a_pass_that_is_set_to_zero_by_data(model, optimizer, zero):
    loss_of(model, 10).backward()
    for p in model.parameters():
        p.grad.data.zero_()


def a_pass_for_other_parameters(model, optimizer, zero):
    torch.autograd.backward(loss_of(model, 10), inputs=[model[0].bias])
    model[0].bias.grad = None


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize(
    "before",
    [
        a_pass_without_step,
        a_batch_that_is_not_a_number,
        gradients_of_inputs,
        gradients_for_a_log,
        a_pass_for_other_parameters,
        a_pass_that_is_set_to_zero_by_data,
    ],
)
def test_a_pass_that_no_step_sees_decides_nothing(before, set_to_none):
    assert all(map(torch.equal, grown(before, set_to_none), grown(nothing)))


def mixed(change, zero_between=False):
    """A step whose gradient is changed after two passes. change: of [grad after the first one, parameter]."""
    torch.manual_seed(0)
    layer = sparsify(nn.Linear(8, 12), 0.7)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    topology = RigL(layer, optimizer, total_steps=99, every=1, drop_fraction=0.5)
    loss_of(layer, 10).backward()
    first = [p.grad.clone() for p in layer.parameters()]
    if zero_between:
        optimizer.zero_grad()
    loss_of(layer, 1).backward()
    for before, p in zip(first, layer.parameters(), strict=True):
        change(before, p)
    optimizer.step()
    return topology, layer


def projected(before, p):  # PCGrad's
    p.grad += before - p.grad * (before * p.grad).sum() / p.grad.square().sum()


def put_back(before, p):
    p.grad.data.copy_(before)


@pytest.mark.parametrize("change", [projected, put_back])
@pytest.mark.parametrize("zero_between", [True, False])
def test_another_mixture_of_the_passes_is_refused(change, zero_between):
    topology, layer = mixed(change, zero_between)
    before = layer.positions()
    with pytest.raises(ValueError, match="the sum of the backward passes of .*, scaled or clipped, got another"):
        topology.step()
    assert torch.equal(layer.positions(), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda before, p: p.grad.mul_(1e-4),  # a norm that is clipped, a scaler
        lambda before, p: p.grad.mul_(8).add_(p.detach(), alpha=0.3),  # decay by hand
        lambda before, p: p.grad.clamp_(-1e-2, 1e-2),
        lambda before, p: p.grad.mul_(1e-3).clamp_(-1e-2, 1e-2),
    ],
)
def test_a_sum_that_was_scaled_or_clipped_decides_as_it_was(change):
    topology, layer = mixed(change)
    plain, same = mixed(lambda before, p: None)
    layer.values.data.copy_(same.values.data)
    assert topology.step() and plain.step()
    assert torch.equal(layer.positions(), same.positions())


def test_parts_of_a_batch_and_checkpoints_count():
    def in_parts(model, optimizer, zero):
        loss_of(model, 10).backward()

    def checkpointed(use_reentrant):
        def run(model, optimizer, zero):
            x = torch.randn(6, 8, generator=torch.Generator().manual_seed(10)).requires_grad_()
            y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=use_reentrant)
            y.mul(1e3).sin().sum().backward()

        return run

    both = grown(in_parts)
    assert not all(map(torch.equal, both, grown(nothing)))
    for reentrant in (True, False):
        assert all(map(torch.equal, grown(checkpointed(reentrant)), both))


def test_a_pass_after_the_step_belongs_to_the_next_one():
    def run(after):
        torch.manual_seed(0)
        layer = sparsify(nn.Linear(8, 12), 0.7)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        topology = RigL(layer, optimizer, total_steps=99, every=1, drop_fraction=0.5)
        for _ in range(2):
            loss_of(layer, 1).backward()
            optimizer.step()
            if after:
                loss_of(layer, 10).backward()
            topology.step()
            optimizer.zero_grad()
        return layer.positions()

    assert torch.equal(run(True), run(False))


def test_sam_grows_by_its_second_pass():
    def run(wrapped):
        torch.manual_seed(0)
        layer = sparsify(nn.Linear(8, 12), 0.7)
        optimizer = SAM(layer.parameters(), torch.optim.SGD, lr=0.01, momentum=0.9)
        topology = RigL(layer, optimizer, total_steps=99, every=2, drop_fraction=0.5)
        for _ in range(4):
            loss_of(layer, 10).backward()
            optimizer.first_step()
            if not wrapped:
                topology.arm() if topology.armed else None  # what it saw is forgotten
            loss_of(layer, 1).backward()
            optimizer.second_step()
            topology.step()
            optimizer.zero_grad()
            momentum = optimizer.base_optimizer.state[layer.values]["momentum_buffer"]
            assert momentum.shape == layer.values.shape
        return torch.cat([layer.positions(), momentum.view(-1)])

    assert torch.equal(run(True), run(False))


def test_a_skipped_step_moves_nothing_and_is_no_step():
    torch.manual_seed(0)
    layer = sparsify(nn.Linear(8, 12), 0.7)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    topology = RigL(layer, optimizer, total_steps=6, every=2, drop_fraction=0.9, end=1.0)
    moved = []
    for i in range(6):
        loss = loss_of(layer, 1) * (torch.inf if i == 1 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved.append(topology.step())
        if i == 1:
            assert topology.steps_done == 1
            assert "took no step" in topology.reason
        optimizer.zero_grad()
    assert moved == [False, False, True, False, True, False]
    assert topology.steps_done == topology.total_steps == 5


def test_steps_that_were_skipped_before_the_first_one_are_none():
    torch.manual_seed(0)
    layer = sparsify(nn.Linear(8, 12), 0.7)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    topology = RigL(layer, optimizer, total_steps=20, every=2, drop_fraction=0.9)
    moved = []
    for i in range(5):
        scaler.scale(loss_of(layer, 1) * (torch.inf if i < 2 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        moved.append(topology.step())
        optimizer.zero_grad()
    assert moved == [False, False, False, True, False]
    assert (topology.steps_done, topology.total_steps) == (3, 18)


def test_an_update_that_waits_says_why():
    layer = sparsify(nn.Linear(8, 12), 0.7)
    topology = RigL(layer, torch.optim.SGD(layer.parameters(), lr=0.0), total_steps=9, every=1)
    (loss_of(layer, 1) * torch.inf).backward()
    assert not topology.step()
    assert topology.reason == "RigL put its update off: gradients are not finite at step 1"


def test_top_kast_takes_no_gradient_of_inputs():
    def run(attack):
        torch.manual_seed(0)
        layer = sparsify(nn.Linear(8, 12), 0.7)
        topology = TopKAST(layer, torch.optim.SGD(layer.parameters(), lr=0.1), total_steps=9)
        if attack:
            x = torch.ones(4, 8, requires_grad=True)
            torch.autograd.grad(layer(x).mul(1e3).sum(), x)
        loss_of(layer, 1).backward()
        assert topology.armed
        return layer.values.grad

    assert torch.equal(run(True), run(False))
