"""The dense gradient behind growth: against float64, in slabs, under accumulation, scaling, and over ranks."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from spfde import sparsify
from spfde.topology import DSTEE, RigL, probes, reserve

CONVOLUTIONS = {
    "plain": dict(kernel_size=3, padding=1),
    "uneven": dict(kernel_size=(4, 3), padding="same", dilation=(1, 2)),
    "strided": dict(kernel_size=3, stride=(2, 3), groups=2),
    "depthwise": dict(kernel_size=3, groups=4),
    "circular": dict(kernel_size=3, padding=2, padding_mode="circular"),
}


def reference(dense, xs, cotangents):
    """dL/dW in float64, summed over the backward passes."""
    dense = dense.double()
    for x, dy in zip(xs, cotangents, strict=True):
        (dense(x.double()) * dy.double()).sum().backward()
    return dense.weight.grad


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("slab", [1, 40, 1 << 20])
@pytest.mark.parametrize("pattern", ["unstructured", "block:4x2", "channel"])
@pytest.mark.parametrize("kind", ["linear", "one sample", *CONVOLUTIONS])
def test_the_dense_gradient(kind, pattern, slab, monkeypatch):
    monkeypatch.setattr(probes, "SLAB", slab)
    torch.manual_seed(0)
    if kind in CONVOLUTIONS:
        if pattern == "block:4x2" and CONVOLUTIONS[kind].get("groups") == 4:
            pytest.skip("a block would span two groups")
        dense, xs = nn.Conv2d(4, 8, **CONVOLUTIONS[kind]), [torch.randn(3, 4, 9, 8), torch.randn(4, 9, 8)]
    else:
        dense, xs = nn.Linear(7, 9), [torch.randn(1, 7) if kind == "one sample" else torch.randn(2, 3, 7)] * 2
    layer = sparsify(dense, 0.6, pattern=pattern)
    probe = layer._grad_probe = probes.GradientProbe(layer)
    cotangents = []
    for x in xs:
        y = layer(x)
        cotangents.append(torch.randn_like(y))
        (y * cotangents[-1]).sum().backward()
    expected = layer.grid.cut(reference(layer.to_dense(), xs, cotangents))
    assert sum(x.numel() for pair in probe._factors for x in pair) <= dense.weight.numel()
    slabs = list(probe.slabs())
    assert [first for first, _ in slabs] == torch.tensor([0, *map(len, (s for _, s in slabs))]).cumsum(0)[:-1].tolist()
    found = torch.cat([blocks for _, blocks in slabs]).double()
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    assert probe.scale() == pytest.approx(1.0, rel=1e-5)


def test_a_weight_that_is_read_is_watched_too():
    """nn.MultiheadAttention multiplies by out_proj.weight itself."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    sparsify(attention, distribution={"out_proj": 0.5})
    topology = RigL(attention, torch.optim.SGD(attention.parameters(), lr=0.1), total_steps=99, every=1)
    x = torch.randn(2, 3, 8)
    attention(x, x, x)[0].square().sum().backward()
    assert topology._probes.of["out_proj"].seen
    assert topology.step()


def grown(passes, scaled=1.0, part=None, **options):
    """Where RigL grows after `passes` backward passes that split one batch, or one of its two parts."""
    torch.manual_seed(0)
    layer = sparsify(nn.Linear(30, 20), 0.8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    topology = RigL(layer, optimizer, total_steps=99, every=1, **options)
    x, target = torch.randn(12, 30), torch.randn(12, 20)
    if part is not None:
        x, target = x[part::2], target[part::2]
    for some, wanted in zip(x.chunk(passes), target.chunk(passes), strict=True):
        (F.mse_loss(layer(some), wanted, reduction="sum") * scaled).backward()
    topology.step()
    return layer.positions()


def test_accumulation_and_loss_scale_change_nothing():
    assert torch.equal(grown(1), grown(3))
    assert torch.equal(grown(1), grown(2, scaled=1024.0))


@pytest.mark.parametrize("pattern", ["unstructured", "channel", "block:2x2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_output_that_is_changed_in_place_is_watched(dtype, pattern):
    """Tokens behind which a ReLU or a sum works in place, and one image: what grows is what grows otherwise."""

    def found(inplace):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(6, 8), nn.Conv2d(2, 8, 3), nn.Linear(8, 4)])
        sparsify(model, distribution={str(i): 0.5 for i in range(3)}, pattern=pattern).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        topology = RigL(model, optimizer, total_steps=99, every=1, drop_fraction=0.5)
        tokens, image = model[0](torch.randn(2, 3, 6, dtype=dtype)), model[1](torch.randn(2, 5, 4, dtype=dtype))
        seen = []
        tokens.register_hook(lambda grad: seen.append(grad))
        if inplace:
            image = F.relu_(image)
            tokens += image.flatten(1).t()[:3]
            tokens = F.relu_(tokens)
        else:
            tokens = F.relu(tokens + F.relu(image).flatten(1).t()[:3])
        model[2](tokens).square().sum().backward()
        assert [grad.shape for grad in seen] == [(2, 3, 8)]
        assert topology.step()
        return [layer.mask() for layer in model]

    assert all(map(torch.equal, found(True), found(False)))


def test_dstee_reads_its_bonus_in_unscaled_units():
    """One stored weight of gradient 1 that the scaler shows as 1024: c must be scaled with it."""

    def chosen(scale):
        layer = sparsify(nn.Linear(4, 1, bias=False), 0.5, init="magnitude")
        with torch.no_grad():
            layer.move_to(torch.tensor([0, 1]))
            layer.values.copy_(torch.tensor([4.0, 1.0]).view(2, 1, 1))
        topology = DSTEE(layer, torch.optim.SGD(layer.parameters(), lr=0.0), total_steps=10**6, every=1,
                         drop_fraction=0.51, c=2.0)  # fmt: skip
        topology.steps_done, topology.rounds[""][2] = 3, 1
        (layer(torch.tensor([[1.0, 0, 3, 2]])) * scale).sum().backward()
        layer.values.grad /= scale
        topology.step()
        return layer.positions().tolist()

    assert chosen(1.0) == chosen(1024.0) == [0, 3]


def test_a_skipped_step_postpones_the_update():
    torch.manual_seed(0)
    layer = sparsify(nn.Linear(6, 4), 0.5)
    topology = RigL(layer, torch.optim.SGD(layer.parameters(), lr=0.1), total_steps=99, every=3)
    mask, moved = layer.mask(), []
    for step in range(6):
        layer.zero_grad()
        x = torch.randn(5, 6) if step != 2 else torch.full((5, 6), torch.inf)
        layer(x).square().sum().backward()
        moved.append(topology.step())
        assert step != 2 or torch.equal(layer.mask(), mask)
    assert moved == [False, False, False, True, False, True]


def test_a_layer_without_a_gradient_stays():
    model = nn.ModuleList([sparsify(nn.Linear(6, 4), 0.5), sparsify(nn.Linear(6, 4), 0.5)])
    topology = RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=99, every=1)
    masks = [layer.mask() for layer in model]
    model[0](torch.randn(5, 6)).square().sum().backward()
    assert topology.step()
    assert not torch.equal(model[0].mask(), masks[0])
    assert torch.equal(model[1].mask(), masks[1])


def test_what_was_not_watched_is_refused():
    layer = sparsify(nn.Linear(6, 4), 0.5)
    topology = RigL(layer, torch.optim.SGD(layer.parameters(), lr=0.1), total_steps=99, every=5)
    with pytest.raises(ValueError, match="expected an update to follow backward passes that were watched.*try step"):
        topology.update()
    topology.arm()
    layer.values.grad = torch.ones_like(layer.values)
    with pytest.raises(ValueError, match="expected the backward pass of '' to be watched, got a gradient from else"):
        topology.update()
    layer(torch.randn(5, 6)).square().sum().backward()
    assert topology.update()


def test_room_is_reserved_in_place():
    torch.manual_seed(0)
    layer = sparsify(nn.Linear(6, 4), 0.5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(torch.randn(5, 6)).square().sum().backward()
    optimizer.step()
    weight, parameter, grad = layer.dense_weight(), layer.values, layer.values.grad.clone()
    average = optimizer.state[parameter]["exp_avg"].clone()
    reserve(layer, 20, optimizer)
    assert layer.values is parameter
    assert (list(parameter.shape), layer.nnz, list(layer.col.shape)) == ([20, 1, 1], 12, [20])
    for long, short in ((parameter.grad, grad), (optimizer.state[parameter]["exp_avg"], average)):
        assert torch.equal(long[:12], short)
        assert not long[12:].any()
    assert torch.equal(layer.dense_weight(), weight)
    optimizer.zero_grad()
    layer(torch.randn(5, 6)).square().sum().backward()
    optimizer.step()
    assert not layer.values[12:].any()
    reserve(layer, 3)
    assert parameter.shape[0] == 20
    with pytest.raises(ValueError, match="expected capacity <= 24, the blocks of the layer, got 25"):
        reserve(layer, 25)


def rank(number, place, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=number, world_size=2)
    torch.manual_seed(0)
    layer = sparsify(nn.Linear(30, 20), 0.8)
    model = nn.parallel.DistributedDataParallel(layer)
    inside = model.module  # as programs hold it that wrap for you
    topology = RigL(inside, torch.optim.SGD(model.parameters(), lr=0.0), total_steps=99, every=1)
    x, target = torch.randn(12, 30), torch.randn(12, 20)
    F.mse_loss(model(x[number::2]), target[number::2], reduction="sum").backward()
    topology.step()
    results[number] = layer.positions().tolist()
    alone = [dist.new_group([other]) for other in range(2)][number]
    results[number, "alone"] = grown(1, part=number, process_group=alone).tolist()
    begun = steps(nn.parallel.DistributedDataParallel, until=3)
    ended = steps(nn.parallel.DistributedDataParallel, until=7, state=torch.load(f"{place}-one", weights_only=True))
    if number == 0:
        torch.save({"begun": begun, "ended": ended}, f"{place}-two")
    dist.destroy_process_group()


def steps(wrap, until, state=None):
    """Steps on one batch each, the same on every rank, from a state on; the state of all that is trained."""
    torch.manual_seed(3)
    model = sparsify(nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)), 0.5, distribution="erk")
    network = wrap(model)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    topology = RigL(network, optimizer, total_steps=9, every=2, seed=1)
    parts = {"model": model, "optimizer": optimizer, "topology": topology}
    for name, part in parts.items() if state else ():
        part.load_state_dict(state[name])
    for step in range(topology.steps_done, until):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))
        network(x).square().sum().backward()
        optimizer.step()
        topology.step()
        optimizer.zero_grad()
    return {name: part.state_dict() for name, part in parts.items()}


def alike(one, other):
    """Whether nests of tensors and values agree to the bit, by whatever names."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_ranks_grow_by_the_average(tmp_path):
    """Two processes with half the batch each grow where one process with all of it does; both take up the other's."""
    one, two = tmp_path / "store-one", tmp_path / "store-two"
    torch.save(steps(lambda model: model, until=3), one)
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(rank, (str(tmp_path / "store"), results), nprocs=2)
        assert results[0] == results[1] == grown(1).tolist()
        for number in range(2):  # in a group of its own each grows by what it has
            assert results[number, "alone"] == grown(1, part=number).tolist()
        assert results[0, "alone"] != results[1, "alone"]
    two, whole = torch.load(two, weights_only=True), steps(lambda model: model, until=7)
    assert alike(two["begun"], torch.load(one, weights_only=True))
    assert alike(two["ended"], whole)
    assert alike(steps(lambda model: model, until=7, state=two["begun"]), whole)
    assert not torch.equal(whole["model"]["0.col"], two["begun"]["model"]["0.col"])


def test_a_compiled_model_grows_as_the_model_itself():
    masks = []
    for forward in (lambda layer: layer, lambda layer: torch.compile(layer, backend="aot_eager")):
        torch.manual_seed(0)
        layer, x = sparsify(nn.Linear(6, 4), 0.5), torch.randn(5, 6)
        called = forward(layer)
        topology = RigL(layer, torch.optim.SGD(layer.parameters(), lr=0.1), total_steps=99, every=1)
        before = layer.mask()
        called(x).square().sum().backward()
        topology.step()
        masks.append(layer.mask())
        assert not torch.equal(masks[-1], before)
    assert torch.equal(*masks)
