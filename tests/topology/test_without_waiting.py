"""An update asks a GPU for nothing until its end: it runs on the meta device, which has no answer."""

import copy
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import spfde
from spfde.sparse import no_sync
from spfde.topology import METHODS, Topology
from spfde.topology.probes import GradientProbe

FIXED = {
    "set": ("set", {}),
    "set by sign": ("set", {"split_signs": True}),
    "rigl": ("rigl", {}),
    "mest": ("mest", {"lam": 0.1}),
    "mest soft": ("mest", {"soft": True}),
    "dst-ee": ("dst-ee", {}),
    "dst-ee with c": ("dst-ee", {"c": 0.1}),
    "itop": ("itop", {}),
    "itop by gradient": ("itop", {"growth": "gradient"}),
    "top-kast": ("top-kast", {}),
}
LAYERS = {
    "linear": (lambda: nn.Linear(64, 96), (4, 64)),
    "conv": (lambda: nn.Conv2d(32, 48, 3, padding=1), (2, 32, 6, 6)),
}


class Uploads(TorchDispatchMode):
    """Fails on a copy from one device to another that waits for either."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        devices |= {torch.device(kwargs["device"])} if kwargs.get("device") is not None else set()
        assert len(devices) < 2 or kwargs.get("non_blocking"), f"{func} waits for {devices}"
        return func(*args, **kwargs)


def no_answer(of: str) -> AbstractContextManager:
    """The meta device is asked for what it cannot tell, "no data" or a size: a GPU would be waited for."""
    return pytest.raises(NotImplementedError, match=of)


def on_meta(named: str, name: str, pattern: str) -> Topology:
    """A method on a layer of the meta device, one step before its update."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    method, options = FIXED[named]
    layer = spfde.sparsify(make(), 0.5, pattern=pattern)
    positions = layer.positions().to("meta")
    layer.to("meta")
    layer._build_plan(positions)
    model = nn.Sequential(layer)
    optimizer = torch.optim.Adam(model.parameters())
    topology = METHODS[method](model, optimizer, total_steps=100, every=1, seed=0, **options)
    topology.steps_done = 1
    if topology.armed:
        x = torch.empty(shape, device="meta")
        layer._grad_probe(nn.Module.__call__(make().to("meta"), x).detach(), x)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
        optimizer.state[parameter] = {"exp_avg": torch.empty_like(parameter)}
    return topology


@pytest.mark.parametrize("pattern", ["unstructured", "block:16x16", "channel"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("named", FIXED)
def test_an_update_waits_for_one_answer(named, name, pattern):
    if named == "set by sign" and pattern != "unstructured":
        pytest.skip("a block has no sign")
    topology = on_meta(named, name, pattern)
    nnz = topology.layers["0"].nnz
    with torch.no_grad(), Uploads():
        shifts = topology._rearrange()
    new = shifts["0"].new
    assert new.is_meta and new.dim() == 0
    assert shifts["0"].before == nnz
    with no_answer("no data"):
        topology._count_moved(shifts)


def test_the_guard_sees_what_waits():
    with pytest.raises(AssertionError, match="waits"), Uploads():
        torch.ones(3).to("meta")
    with no_answer("nonzero"):
        no_sync.nonzero(torch.ones(3, dtype=torch.bool, device="meta"))


def trained(method: str, pattern: str, options: dict) -> list:
    """Masks, values, optimizer state and history after updates of two layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 25, 34))
    sparsity = None if pattern == "2:4" else 0.5
    model = spfde.sparsify(model, sparsity, pattern=pattern, distribution={"0": 0.5, "3": 0.5})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    topology = METHODS[method](model, optimizer, total_steps=12, every=2, seed=1, **options)
    x, reasons = torch.randn(6, 8, 5, 5), []
    for _ in range(12):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        topology.step()
        reasons.append(topology.reason)
    report = topology.report()
    state = [tensor for parameter in model.parameters() for tensor in optimizer.state[parameter].values()]
    return [*map(torch.clone, [*model.state_dict().values(), *state]), reasons, report.as_dict()]


RUNS = {name: (name, {}) for name in METHODS} | FIXED
PATTERNS = ["unstructured", "block:4x2", "2:4", "fan-in", "channel"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("named", RUNS)
def test_what_runs_without_waiting_gives_the_same_bits(named, pattern, monkeypatch):
    method, options = RUNS[named]
    kind = pattern.split(":")[0]
    refused = ("block", "channel") if "split_signs" in options else METHODS[method].refused
    if (pattern == "2:4" and ("n:m" in refused or "soft" in options)) or kind in refused:
        pytest.skip("the method has no meaning for it")
    asked = trained(method, pattern, options)
    monkeypatch.setattr(no_sync, "is_async", lambda tensor: True)
    monkeypatch.setattr("spfde.topology.probes.SLAB", 1000)  # several slabs
    for want, got in zip(asked, trained(method, pattern, options), strict=True):
        assert torch.equal(want, got) if isinstance(want, torch.Tensor) else want == got


def test_ties_go_to_the_lower_position(monkeypatch):
    from spfde.topology.topk import among_highest, keep_highest

    for seed in range(20):
        score = torch.randint(4, (50,), generator=torch.Generator().manual_seed(seed)).float()
        score[seed], score[seed + 1] = float("nan"), float("inf")
        for count in (0, 1, 7, 49, 50, 51):
            order = sorted(range(50), key=lambda i: (-score.nan_to_num(torch.inf)[i], i))[:count]
            for waits in (False, True):
                monkeypatch.setattr(no_sync, "is_async", lambda tensor, waits=waits: waits)
                assert keep_highest(score, count).tolist() == sorted(order)
                assert among_highest(score, count).nonzero().view(-1).tolist() == sorted(order)


def test_counting_with_and_without_waiting(monkeypatch):
    mask, group = torch.tensor([0, 1, 1, 0, 1]).bool(), torch.tensor([2, 0, 2, 2], dtype=torch.int32)
    masks = {"a": mask, "b": ~mask, "none": mask[:0]}
    for waits in (False, True):
        monkeypatch.setattr(no_sync, "is_async", lambda tensor, waits=waits: waits)
        assert no_sync.nonzero(mask).tolist() == no_sync.nonzero(mask, 3).tolist() == [1, 2, 4]
        assert no_sync.count_each(group, 4).tolist() == [1, 0, 3, 0]
        assert {name: at.tolist() for name, at in no_sync.nonzero_all(masks).items()} == {
            "a": [1, 2, 4],
            "b": [0, 3],
            "none": [],
        }
    assert no_sync.to_host([]) == [] and no_sync.to_host([torch.tensor(2), torch.tensor(3)]) == [2, 3]


def test_history_follows_a_layer_to_another_device():
    topology = on_meta("set", "linear", "unstructured")
    history = copy.deepcopy(topology._history["0"])
    history.flags = torch.zeros(64 * 96, dtype=torch.uint8)
    history.see(topology.layers["0"].positions())
    assert history.flags.is_meta


@pytest.mark.parametrize("waits", [False, True])
def test_the_scale_of_the_watched_gradient(waits, monkeypatch):
    """Twice the gradient arrived at the optimizer; also where slabs hold no stored block."""
    monkeypatch.setattr(no_sync, "is_async", lambda tensor: waits)
    monkeypatch.setattr("spfde.topology.probes.SLAB", 8)
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[1:3, 2:] = True
    layer = spfde.nn.SparseLinear.from_dense(nn.Linear(5, 6), mask)
    probe, x, dy = GradientProbe(layer), torch.randn(3, 5), torch.randn(3, 6)
    assert float(probe.scale()) == 1  # nothing was seen
    probe(dy, x)
    assert float(probe.scale()) == 1  # nothing arrived
    layer.values.grad = 2 * layer.grid.cut(dy.t() @ x)[layer.positions()]
    assert float(probe.scale()) == pytest.approx(2)
