"""Every method on every pattern that it has a meaning for: counts, values, optimizer state, determinism, resume."""

import copy
import io

import pytest
import torch
from topology.networks import OPTIMIZERS, PATTERNS, dense, net, states, train_step, trained
from torch import nn

from spfde import sparsify
from spfde.topology import METHODS

# DeepR's noise moves live weights, so the table runs without it; test_rules has it.
VARIANTS = {
    **{name: (method, {}) for name, method in METHODS.items()},
    "deepr": (METHODS["deepr"], {"l1": 0.0, "temperature": 0.0}),
    "dsr": (METHODS["dsr"], {"threshold": 0.02}),  # the default takes more updates than these to reach a channel's mean
    "mest, lam": (METHODS["mest"], {"lam": 1.0}),
    "mest, soft": (METHODS["mest"], {"soft": True}),
    "itop, gradient": (METHODS["itop"], {"growth": "gradient"}),
    "snfs, every 2": (METHODS["snfs"], {"accumulate_every": 2}),
    "dst-ee, c": (METHODS["dst-ee"], {"c": 0.1}),
}
BY_OPTIMIZATION = ("constrained-l0", "compressed-sensing", "directional-pruning", "polarization")
REDISTRIBUTING, SHRINKING = ("snfs", "dsr", "deepr"), ("gmp", *BY_OPTIMIZATION)
SCHEDULED = ("gap", "p-gap", "mest, soft", *SHRINKING)


def takes(name, pattern):
    method, options = VARIANTS[name]
    refused = ("n:m",) if options.get("soft") else method.refused
    return {"2:4": "n:m"}.get(pattern, pattern.split(":")[0]) not in refused


# Where weights shrink after every step, what an update leaves in place is seen without.
STILL = {"compressed-sensing": {"lam": 0.0}, "directional-pruning": {"c": 0.0}}


CASES = [(name, pattern) for name in VARIANTS for pattern in PATTERNS if takes(name, pattern)]


LONG = pytest.mark.full
EVERY_KIND = [
    pytest.param(name, pattern, kind, marks=() if kind == ("adamw" if ":" in pattern else "sgd") else LONG)
    for name, pattern in CASES
    for kind in OPTIMIZERS
]


@pytest.mark.parametrize(("name", "pattern", "kind"), EVERY_KIND)
def test_an_update_is_a_permutation(name, pattern, kind):
    method, options = VARIANTS[name]
    model = net(pattern)
    optimizer = OPTIMIZERS[kind](model.parameters())
    target = {n: layer.nnz for n, layer in METHODS["set"](model, optimizer, total_steps=1).layers.items()}
    topology = method(model, optimizer, total_steps=16, every=2, seed=1, **options, **STILL.get(name, {}))
    identities, shapes = [id(p) for p in model.parameters()], [p.shape for p in model.parameters()]
    moved = 0
    for step in range(16):
        train_step(model, optimizer, step)
        before = {n: snapshot(n, layer, topology, optimizer) for n, layer in topology.layers.items()}
        if not topology.step():
            assert all(before[n]["positions"] == layer.positions().tolist() for n, layer in topology.layers.items())
            continue
        moved += 1
        for n, layer in topology.layers.items():
            check_layer(before[n], n, layer, topology, optimizer)
            assert type(layer).from_dense(layer.to_dense(), layer.mask(), pattern).nnz == layer.nnz  # of the pattern
        counts = {n: layer.nnz for n, layer in topology.layers.items()}
        if name.startswith(REDISTRIBUTING):
            assert sum(counts.values()) == sum(target.values())
        elif name not in SCHEDULED:
            assert counts == target
    assert moved >= (1 if pattern == "channel" else 2)
    assert name.startswith(REDISTRIBUTING) or {n: layer.nnz for n, layer in topology.layers.items()} == target
    assert [id(p) for p in model.parameters()] == identities
    assert [p.shape for p in model.parameters()] == shapes


def snapshot(name, layer, topology, optimizer):
    trained = layer.mask()
    if isinstance(topology, METHODS["top-kast"]):
        trained = topology.backward_mask(name)
    return {
        "positions": layer.positions().tolist(), "values": dense(layer, layer.values), "trained": trained,
        "states": states(layer, optimizer), "grad": dense(layer, layer.values.grad),
    }  # fmt: skip


def check_layer(before, name, layer, topology, optimizer):
    values, after = dense(layer, layer.values), states(layer, optimizer)
    old = torch.zeros(layer.grid.size, dtype=torch.bool)
    old[before["positions"]] = True
    stored = torch.zeros_like(old)
    stored[layer.positions()] = True
    kept = old & stored
    if topology.reset_regrown:  # a weight that was dropped and drawn again is new
        kept &= values.flatten(1).any(1)
    assert torch.equal(values[kept], before["values"][kept])
    assert torch.equal(dense(layer, layer.values.grad)[kept], before["grad"][kept])
    ever_trained = layer.grid.cut(before["trained"]).flatten(1).any(1) if not topology.reset_regrown else kept
    new = stored & ~kept & ~ever_trained
    if not isinstance(topology, METHODS["top-kast"]):
        assert not values[new].any()
        assert not layer.values[layer.nnz :].any()
    for key, state in after.items():
        assert torch.equal(state[kept], before["states"][key][kept]), key
        assert not state[new].any(), key


@pytest.mark.parametrize(
    ("name", "pattern", "kind"),
    [
        pytest.param(*case, kind, marks=() if (case[1], kind) == ("unstructured", "sgd") else LONG)
        for case in CASES
        for kind in OPTIMIZERS
    ],
)
def test_one_seed_one_result_and_resume_to_the_bit(name, pattern, kind):
    """Stopped between updates, after one (6) and where the next step is watched (5)."""
    whole = trained(*VARIANTS[name], pattern, kind)
    for stop in (5, 6, 7):
        other = trained(*VARIANTS[name], pattern, kind, stop=stop)
        assert all(torch.equal(whole[key], other[key]) for key in whole)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_deepcopy_goes_on_the_same_way(name):
    whole, other = trained(*VARIANTS[name], kind="adamw"), trained(*VARIANTS[name], kind="adamw", stop=4, copied=True)
    assert all(torch.equal(whole[key], other[key]) for key in whole)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_copy_and_a_pickle_of_the_model_know_nothing_of_the_topology(name):
    method, options = VARIANTS[name]
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    method(model, optimizer, total_steps=9, every=1, **options)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert all(getattr(m, "_grad_probe", None) is None for m in other.modules())
        other(torch.randn(2, 3, 8, 8)).sum().backward()


@pytest.mark.parametrize("name", VARIANTS)
def test_states_are_tensors_and_plain_values(name):
    method, options = VARIANTS[name]
    model = net()
    topology = method(model, OPTIMIZERS["sgd"](model.parameters()), total_steps=9, **options)
    file = io.BytesIO()
    torch.save(topology.state_dict(), file)
    file.seek(0)
    topology.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_a_full_or_empty_layer_stays_as_it_is(name, sparsity):
    method, options = VARIANTS[name]
    torch.manual_seed(0)
    layer = sparsify(nn.Linear(6, 5), sparsity)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    topology = method(layer, optimizer, total_steps=4, every=1, **options)
    for _ in range(4):
        optimizer.zero_grad()
        layer(torch.randn(3, 6)).sum().backward()
        optimizer.step()
        topology.step()
    assert layer.sparsity == sparsity


class Odd(nn.Module):
    """A convolution with one output, an empty and a full layer side by side, a linear layer with one output."""

    def __init__(self):
        super().__init__()
        self.conv, self.empty, self.full = nn.Conv2d(2, 1, 3), nn.Linear(16, 6), nn.Linear(16, 6)
        self.one = nn.Linear(6, 1)

    def forward(self, x):
        x = self.conv(x).flatten(1).tanh()
        return self.one(self.empty(x) + self.full(x).tanh())


@pytest.mark.parametrize("kind", ["sgd", pytest.param("adamw", marks=LONG)])
@pytest.mark.parametrize("name", VARIANTS)
def test_odd_layers_side_by_side(name, kind):
    method, options = VARIANTS[name]
    torch.manual_seed(0)
    model = sparsify(Odd(), distribution={"conv": 0.5, "empty": 1.0, "full": 0.0, "one": 0.5})
    optimizer = OPTIMIZERS[kind](model.parameters())
    topology = method(model, optimizer, total_steps=12, every=2, **options)
    moved = 0
    for step in range(12):
        x = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        moved += topology.step()
    assert moved
    assert model.empty.nnz == 0
    stored = {name: layer.nnz for name, layer in topology.layers.items()}
    if name.startswith(REDISTRIBUTING):
        assert sum(stored.values()) == 9 + 96 + 3
    else:
        assert stored == {"conv": 9, "empty": 0, "full": 96, "one": 3}
    assert all(torch.isfinite(layer.values).all() for layer in topology.layers.values())


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "n:m" in method.refused])
def test_a_pattern_without_meaning_is_refused(name):
    model = net("2:4")
    with pytest.raises(ValueError, match=f"pattern that {METHODS[name].__name__} .*got '2:4' in '2'"):
        METHODS[name](model, OPTIMIZERS["sgd"](model.parameters()), total_steps=9)


def test_the_state_of_another_method_is_refused():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    state = METHODS["set"](model, optimizer, total_steps=9).state_dict()
    with pytest.raises(ValueError, match="expected the state of DSTEE"):
        METHODS["dst-ee"](model, optimizer, total_steps=9).load_state_dict(state)
