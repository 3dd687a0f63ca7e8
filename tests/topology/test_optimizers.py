"""Optimizer state, wherever it is kept: it follows every move, or the optimizer is refused by name before one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spfde import sparsify
from spfde.topology import GMP, SET, RigL, reserve


class Lookahead(torch.optim.Optimizer):
    """Slow weights that follow the fast ones of another optimizer."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    @torch.no_grad()
    def step(self):
        self.optimizer.step()
        for p in (p for group in self.param_groups for p in group["params"]):
            slow = self.state[p].setdefault("slow", p.clone())
            p.copy_(slow.lerp_(p, 0.5))


class Forwarding(torch.optim.Optimizer):
    """As Accelerate's: everything is the other's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)

    def step(self):
        self.optimizer.step()


class Odd(torch.optim.SGD):
    """Keeps what tells of no slot."""

    made = staticmethod(lambda values: torch.ones(values.shape[0] + 3))

    def step(self):
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["odd"] = self.made(p)


def trained(wrap, pattern="unstructured", steps=1, make=torch.optim.Adam):
    torch.manual_seed(0)
    layer = sparsify(nn.Linear(8, 12), 0.5, pattern=pattern)
    optimizer = wrap(make(layer.parameters(), lr=0.01))
    topology = SET(layer, optimizer, total_steps=99, every=2, drop_fraction=0.5)
    for _ in range(steps):
        layer(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
        topology.step()
        layer.zero_grad()
    return layer, optimizer, topology


def followed(layer, topology, tensor):
    """Whether a state tensor [capacity, ...] went along with an update that is made now."""
    before, old = tensor.clone(), layer.positions()
    assert topology.update()
    place = {int(p): i for i, p in enumerate(old)}
    for slot, position in enumerate(layer.positions().tolist()):
        expected = before[place[position]] if position in place else torch.zeros_like(before[0])
        if not torch.equal(tensor[slot], expected):
            return False
    return True


@pytest.mark.parametrize("wrap", [lambda o: o, Lookahead, Forwarding, lambda o: Forwarding(Lookahead(o))])
def test_state_follows_inside_wrappers(wrap):
    layer, optimizer, topology = trained(wrap)
    while not isinstance(optimizer, torch.optim.Adam):
        if isinstance(optimizer, Lookahead):
            assert followed(layer, topology, optimizer.state[layer.values]["slow"])
        optimizer = optimizer.optimizer
    assert followed(layer, topology, optimizer.state[layer.values]["exp_avg_sq"])


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x2", "channel"])
@pytest.mark.parametrize("which", ["row_var", "col_var"])
def test_factors_of_each_block_follow(pattern, which):
    layer, optimizer, topology = trained(lambda o: o, pattern, make=torch.optim.Adafactor)
    assert followed(layer, topology, optimizer.state[layer.values][which])


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda values: torch.ones(values.shape[0] + 3), r"'odd' of shape \[51\]"),
        (lambda values: torch.zeros_like(values, dtype=torch.uint8), r"quantised 'odd' \(Tensor, torch.uint8\)"),
        (lambda values: torch.zeros(1, 2, 1), r"'odd' of shape \[1, 2, 1\]"),
    ],
)
def test_what_cannot_follow_is_refused_before_anything_moves(made, named, monkeypatch):
    monkeypatch.setattr(Odd, "made", staticmethod(made))
    layer, optimizer, topology = trained(lambda o: o, make=Odd, steps=0)
    mask = layer.mask()
    layer(torch.randn(5, 8)).square().sum().backward()
    optimizer.step()
    for act in (topology.step, topology.update, lambda: reserve(layer, 60, optimizer)):
        with pytest.raises(ValueError, match=f"expected optimizer state .*, got {named} .*in Odd, try"):
            act()
    assert torch.equal(layer.mask(), mask) and layer.values.shape[0] == 48


class Apart(torch.optim.SGD):
    """Keeps a momentum of its own elsewhere than in state[parameter]."""

    kept = staticmethod(lambda one, p: None)

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            self.kept(self, p)
        super().step()


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        (lambda one, p: vars(one).setdefault("slow", [[]])[0].append(p.clone()), r"'slow' of shape \[48, 1, 1\]"),
        (lambda one, p: vars(one).setdefault("by", {}).update({id(p): p * 2}), r"'by' of shape \[48, 1, 1\]"),
        (lambda one, p: one.param_groups[0].setdefault("old", [p.grad.clone()]), r"'old' of shape \[48, 1, 1\]"),
        (lambda one, p: one.state.setdefault("m0", {}).setdefault("v", p.clone()), r"'m0' of shape \[48, 1, 1\]"),
        (lambda one, p: vars(one).setdefault("flat", torch.zeros(48 + 12)), r"'flat' of shape \[60\]"),
    ],
)
def test_state_that_is_kept_elsewhere_is_refused_by_name(kept, named, monkeypatch):
    monkeypatch.setattr(Apart, "kept", staticmethod(kept))
    layer, optimizer, topology = trained(lambda o: o, make=Apart, steps=0)
    layer(torch.randn(5, 8)).square().sum().backward()
    optimizer.step()
    mask = layer.mask()
    with pytest.raises(ValueError, match=rf"got {named} outside of state\[parameter\].* in Apart, .* keeping it"):
        topology.step()
    assert torch.equal(layer.mask(), mask)


def test_a_flat_history_is_refused_at_once():
    layer = sparsify(nn.Linear(8, 12), 0.5)
    with pytest.raises(ValueError, match="got a flat history over all parameters in LBFGS, try"):
        SET(layer, torch.optim.LBFGS(layer.parameters()), total_steps=9)


def test_another_optimizer_that_takes_the_steps_is_noticed():
    layer, _, topology = trained(lambda o: o)
    mask, other = layer.mask(), torch.optim.Adam(layer.parameters())
    layer(torch.randn(5, 8)).square().sum().backward()
    other.step()
    with pytest.raises(ValueError, match=r"got another Adam that holds the same values, try topology.optimizer = "):
        topology.step()
    assert torch.equal(layer.mask(), mask)
    topology.optimizer = other
    assert followed(layer, topology, other.state[layer.values]["exp_avg"])


def test_room_that_is_made_late_has_state():
    layer, optimizer, _ = trained(Lookahead)
    slow = optimizer.state[layer.values]["slow"]
    reserve(layer, 60, optimizer)
    longer, inner = optimizer.state[layer.values]["slow"], optimizer.optimizer.state[layer.values]["exp_avg"]
    assert torch.equal(longer[:48], slow)
    assert len(longer) == len(inner) == 60 and not longer[48:].any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.distributed.optim
def test_in_a_process_group(tmp_path):
    """One rank: ZeroRedundancyOptimizer, a model inside DistributedDataParallel, names with and without a prefix."""
    from torch.distributed.optim import ZeroRedundancyOptimizer as Zero

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        layer, optimizer, topology = trained(lambda o: Zero(o.param_groups[0]["params"], torch.optim.Adam))
        assert followed(layer, topology, optimizer.optim.state[layer.values]["exp_avg"])
        model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
        sparsify(model, distribution={"0": 0.8, "2": 0.8})
        wrapped = DistributedDataParallel(model)
        with pytest.raises(ValueError, match="room for .* before DistributedDataParallel or .*, got .*try spfde"):
            GMP(wrapped.module, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=40, initial_sparsity=0.2)
        with pytest.raises(ValueError, match="expected a model before it is wrapped, got a DistributedDataParallel"):
            sparsify(DistributedDataParallel(nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 4))), 0.5)
        late = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 4))
        around = DistributedDataParallel(late)
        sparsify(late, distribution={"0": 0.8})
        for each in (late, around):
            with pytest.raises(ValueError, match="expected spfde.sparsify before DistributedDataParallel, got"):
                SET(each, torch.optim.SGD(late.parameters(), lr=0.1), total_steps=40)
        outside = RigL(wrapped, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=40, every=1)
        inside = RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=40, every=1)
        outside.steps_done = 7
        inside.load_state_dict(outside.state_dict())
        outside.load_state_dict(inside.state_dict())
        assert inside.steps_done == outside.steps_done == 7
        assert set(inside.target) == {"0", "2"} and set(outside.target) == {"module.0", "module.2"}
    finally:
        dist.destroy_process_group()
