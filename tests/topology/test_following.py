"""What follows the moves of a topology: tensors with a row for every slot, copies, and the average of a model."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spfde
from spfde.integrations import EMA, keep_masks_local


def network(pattern="unstructured", sparsity=0.75):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.Linear(24, 8))
    return spfde.sparsify(model, None if pattern == "2:4" else sparsity, pattern=pattern)


def moving(model, method="set", every=2, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return optimizer, spfde.topology.create(method, model, optimizer, total_steps=20, every=every, **options)


def step(model, optimizer, topology):
    optimizer.zero_grad()
    F.cross_entropy(model(torch.randn(16, 16)), torch.randint(8, (16,))).backward()
    optimizer.step()
    return topology.step()


@pytest.mark.parametrize(
    ("method", "pattern", "options"),
    [
        ("set", "unstructured", {}),
        ("rigl", "block:4x4", {}),
        ("mest", "fan-in", {}),
        ("set", "channel", {}),
        ("set", "2:4", {}),
        ("gmp", "unstructured", {"sparsity": 0.9, "every": 1}),
        ("dsr", "unstructured", {}),
        ("top-kast", "unstructured", {"every": 1}),
    ],
)
@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_the_average_is_that_of_the_dense_weights_wherever_they_are_stored(method, pattern, options, decay):
    model = network(pattern)
    optimizer, topology = moving(model, method, **options)
    ema = EMA(model, topology, decay)
    layer, want = model[3], model[3].dense_weight()
    moves = 0
    for _ in range(14):
        moves += step(model, optimizer, topology)
        ema.update()
        want = decay * want + (1 - decay) * layer.dense_weight()
        assert torch.equal(ema.module[3].mask(), layer.mask())
        got = torch.where(layer.mask(), want, 0)  # also of weights that were dropped and came back
        torch.testing.assert_close(ema.module[3].dense_weight(), got, rtol=1e-4, atol=1e-6)
    assert moves
    model.eval()
    x = torch.randn(4, 16)
    if decay == 0:
        assert torch.equal(ema.module(x), model(x))


def test_the_average_goes_on_from_its_state():
    torch.manual_seed(0)
    model = network()
    optimizer, topology = moving(model)
    ema = EMA(model, topology, 0.9)
    for _ in range(6):
        step(model, optimizer, topology)
        ema.update()
    other = network()
    other.load_state_dict(model.state_dict())
    second = EMA(other, None, 0.9)
    second.load_state_dict(ema.state_dict())
    third = pickle.loads(pickle.dumps(ema))
    for average in (second, third):
        for a, b in zip(average.module.state_dict().values(), ema.module.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert average.updates == 6
    for one, average in ((model, ema), (other, second), (third.model, third)):
        positions = one[3].positions()
        free = torch.ones(one[3].grid.size, dtype=torch.bool)
        free[positions] = False
        one[3].move_to(torch.cat([positions[30:], free.nonzero().view(-1)[:30]]).sort().values)
        average.update()
    assert torch.equal(second.module[3].dense_weight(), ema.module[3].dense_weight())
    assert torch.equal(third.module[3].dense_weight(), ema.module[3].dense_weight())


def test_the_averaged_model_follows_for_as_long_as_it_lives():
    model = network()
    optimizer, topology = moving(model, every=1)
    averaged = EMA(model, topology, 0.9).module
    step(model, optimizer, topology)
    assert torch.equal(averaged[3].mask(), model[3].mask())


def test_bad_arguments_of_the_average():
    model = network()
    with pytest.raises(ValueError, match=r"expected decay in \[0, 1\], got 2"):
        EMA(model, None, 2)
    with pytest.raises(ValueError, match="topology of this model"):
        EMA(model, moving(network())[1])


@pytest.mark.parametrize("method", ["set", "mest", "top-kast"])
def test_tensors_move_with_their_slots(method):
    model = network()
    optimizer, topology = moving(model, method)
    layer = model[3]
    anchors = {"module.3.values": layer.values.detach().clone(), "module.3.bias": torch.ones(24)}
    scores = {name: torch.rand(one.values.shape[0]) for name, one in topology.layers.items()}
    ordered = [torch.ones_like(one.values) for one in topology.layers.values()]
    topology.follow(anchors)
    topology.follow(scores, fill=-1.0)
    topology.follow(ordered, fill=lambda name, positions: positions.view(-1, 1, 1))
    before, first = layer.positions(), scores["3"].clone()
    anchor, kept = layer.dense_weight(), layer.mask()
    while not step(model, optimizer, topology):
        scores["3"] = scores["3"].clone()  # replaced by its user
    positions = layer.positions()
    assert not torch.equal(before, positions)
    dense = torch.zeros(layer.grid.size)
    dense[positions] = anchors["module.3.values"][: layer.nnz].view(-1)
    stayed = layer.mask() & kept
    same = dense.view(24, 24)[stayed] == anchor[stayed]
    assert (same | (dense.view(24, 24)[stayed] == 0) if method == "mest" else same).all()  # MEST starts regrown anew
    old = dict(zip(before.tolist(), first.tolist(), strict=False))
    for place, score in zip(positions.tolist(), scores["3"].tolist(), strict=False):
        if method == "top-kast":  # what was explored has its own score
            assert place not in old or score == old[place]
        elif place in old:
            assert score in (old[place], -1.0)
        else:
            assert score == -1.0
    new = ~torch.isin(positions, before)
    if method == "set":
        assert torch.equal(ordered[0][: layer.nnz].view(-1)[new], positions[new].float())


def test_a_copied_state_dict_keeps_its_index():
    model = network()
    optimizer, topology = moving(model, every=1)
    shadow = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    topology.follow(shadow)
    step(model, optimizer, topology)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            shadow[name].copy_(tensor)
    other = network()
    other.load_state_dict({**shadow, "1.num_batches_tracked": model[1].num_batches_tracked})
    model.eval(), other.eval()
    x = torch.randn(4, 16)
    assert torch.equal(other(x), model(x))


def test_a_copy_that_is_handed_over_follows():
    model = network()
    optimizer, topology = moving(model, every=1)
    teacher = copy.deepcopy(model)
    topology.follow(teacher)
    for _ in range(3):
        step(model, optimizer, topology)
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 1.0)
        assert torch.equal(teacher[3].dense_weight(), model[3].dense_weight())


def test_what_cannot_follow_is_refused():
    model = network()
    topology = moving(model)[1]
    with pytest.raises(TypeError, match="expected a module, tensors by layer's"):
        topology.follow(3)
    with pytest.raises(ValueError, match=r"expected tensors of \['3'"):
        topology.follow({"fc": torch.zeros(3)})
    with pytest.raises(ValueError, match="expected a tensor with a row for each of the 144 slots of '3'"):
        topology.follow({"3": torch.zeros(3)})
    with pytest.raises(ValueError, match="expected a copy of '3', got the layer itself"):
        topology.follow(model)
    with pytest.raises(ValueError, match="expected a copy with sparse layers of the model"):
        topology.follow(nn.Linear(3, 3))


def on_each_rank(rank, path):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{path}", rank=rank, world_size=2)
    for pattern in ("unstructured", "block:4x4", "fan-in", "channel", "2:4"):
        torch.manual_seed(rank)
        dense = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.Linear(16, 16))
        model = spfde.sparsify(dense, None if pattern == "2:4" else 0.5, pattern=pattern, seed=rank)
        layer = model[2]
        model(torch.randn(4, 16)).sum().backward()  # a plan of another topology
        ddp = nn.parallel.DistributedDataParallel(model)
        masks = [torch.zeros(16, 16) for _ in range(2)]
        torch.distributed.all_gather(masks, layer.mask().float())
        assert torch.equal(masks[0], masks[1])
        weight, x = layer.dense_weight(), torch.randn(4, 16).requires_grad_()
        layer(x).sum().backward()
        torch.testing.assert_close(x.grad, weight.sum(0).expand(4, 16))
        assert layer.nnz == int(layer.mask().sum()) // (layer.grid.block[0] * layer.grid.block[1])
        if pattern == "unstructured":
            ddp(torch.randn(4, 16))
            assert len(ddp.modules_buffers) == 5
            assert keep_masks_local(ddp) is ddp
            optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
            topology = spfde.topology.RigL(ddp, optimizer, total_steps=20, every=2)
            for _ in range(5):
                optimizer.zero_grad()
                ddp(torch.randn(4, 16)).square().sum().backward()
                optimizer.step()
                topology.step()
            assert len(ddp.modules_buffers) == 3
            torch.distributed.all_gather(masks, layer.mask().float())
            assert torch.equal(masks[0], masks[1])
            weights = [torch.zeros(16, 16) for _ in range(2)]
            torch.distributed.all_gather(weights, layer.dense_weight())
            assert torch.equal(weights[0], weights[1])
    torch.distributed.destroy_process_group()


def test_ranks_that_were_born_different_agree(tmp_path):
    torch.multiprocessing.spawn(on_each_rank, (tmp_path / "ranks",), nprocs=2)


def test_only_a_wrapped_model_keeps_its_masks_local():
    with pytest.raises(TypeError, match="expected a DistributedDataParallel, got Sequential"):
        keep_masks_local(network())
