"""Permutations of inputs and outputs: by hand, against dense layers, moved, saved, learned, made an index, refused."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from launched import launch
from torch import nn
from torch.nn import functional as F

import spfde
import spfde.integrations
from spfde.freezing import freeze
from spfde.freezing.prefix.kinds import folded_of, obstacle
from spfde.levers import EpochEnd, Lever, Step
from spfde.nn.permutation import Permutation, side_of
from spfde.sparse.pattern import Pattern
from spfde.topology import Permutations, RigL, TopKAST, permute

PATTERNS = ["block:4x1", "block:4x3", "block:1x3", "2:4"]
LAYERS = {
    "wide": (lambda: nn.Linear(1030, 9), (5, 1030)),  # more columns than a panel of the native kernels has
    "3x3": (lambda: nn.Conv2d(10, 7, 3, padding=1), (2, 10, 5, 4)),
    "1x1": (lambda: nn.Conv2d(10, 7, 1), (2, 10, 5, 4)),
}


def layer_of(pattern, kind="wide"):
    torch.manual_seed(0)
    make, size = LAYERS[kind]
    sparsity = None if pattern == "2:4" else 0.6
    return spfde.sparsify(make(), sparsity, pattern=pattern), torch.randn(size)


def net(pattern="block:2x2", seed=0):
    torch.manual_seed(seed)
    sparsity = None if pattern == "2:4" else 0.5
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    return spfde.sparsify(model, sparsity, pattern=pattern, seed=3)


def train_step(model, optimizer, step):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    (model(x) - x[:, :4]).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("pattern", "side"),
    [
        ("unstructured", None),
        ("fan-in", None),
        ("channel", None),
        ("block:1x1", None),
        ("block:1x2", "inputs"),
        ("block:2x1", "outputs"),
        ("block:16x16", "inputs"),
        ("2:4", "inputs"),
    ],
)
def test_which_side_gives_a_pattern_other_masks(pattern, side):
    assert side_of(Pattern.parse(pattern)) == side


def test_by_hand():
    """Stored places 0 and 1 hold inputs 2 and 0; the outputs in places 0 and 1 are outputs 1 and 3."""
    linear = nn.Linear(4, 1, bias=False)
    linear.weight.data = torch.tensor([[5.0, 7, 0, 0]])
    layer = spfde.nn.SparseLinear.from_dense(linear, pattern="block:1x2")
    layer.permute(Permutation("inputs", torch.tensor([2, 0, 3, 1])))
    assert layer.dense_weight().tolist() == [[7, 0, 5, 0]] and layer.mask().tolist() == [[True, False, True, False]]
    assert layer(torch.tensor([[1.0, 10, 100, 1000]])).tolist() == [[507]]
    linear = nn.Linear(1, 4)
    linear.weight.data, linear.bias.data = torch.tensor([[5.0], [7], [0], [0]]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    layer = spfde.nn.SparseLinear.from_dense(linear, pattern="block:2x1")
    layer.permute(Permutation("outputs", torch.tensor([1, 3, 0, 2])))
    assert layer.dense_weight().view(-1).tolist() == [0, 5, 0, 7]
    assert torch.allclose(layer(torch.ones(1, 1)), torch.tensor([[0.1, 5.2, 0.3, 7.4]]))


@pytest.mark.parametrize("kernel", ["native", "dense", "reference"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_index_is_a_permuted_weight(pattern, kind, kernel):
    layer, x = layer_of(pattern, kind)
    stored, positions = layer.dense_weight(), layer.positions()
    permute(layer, seed=1)
    order, weight = layer.permutation.order, torch.empty_like(stored)
    weight[(slice(None), order) if layer.permutation.side == "inputs" else order] = stored
    assert torch.equal(layer.dense_weight(), weight) and torch.equal(layer.mask(), weight != 0)
    assert torch.equal(layer.positions(), positions)
    layer.kernel = kernel
    dense = layer.to_dense().double()
    y, x64 = layer(x.requires_grad_()), x.detach().double().requires_grad_()
    dy = torch.randn(y.shape)
    y64 = dense(x64)
    dx, dvalues, dbias = torch.autograd.grad(y, [x, layer.values, layer.bias], dy)
    dx64, dweight64, dbias64 = torch.autograd.grad(y64, [x64, dense.weight, dense.bias], dy.double())
    blocks = layer.grid.cut(layer.rows_first(dweight64))[positions]
    for ours, theirs in ((y, y64), (dx, dx64), (dvalues, blocks), (dbias, dbias64)):
        assert (ours.double() - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("pattern", ["block:4x3", "block:1x3", "2:4"])
def test_inputs_of_a_linear_layer_are_permuted_in_the_index(pattern):
    layer, x = layer_of(pattern)
    permute(layer)
    assert layer.grid.order is layer.permutation.order and not layer.detour
    assert obstacle(layer) == ""
    layer.permutation.register_forward_hook(lambda *_: pytest.fail("nothing is moved beside the product"))
    layer(x)


@pytest.mark.parametrize(("pattern", "kind"), [("block:4x1", "wide"), ("block:4x3", "3x3")])
def test_what_is_permuted_beside_the_product_is_no_part_of_others_kernels(pattern, kind):
    layer, x = layer_of(pattern, kind)
    permute(layer)
    assert layer.grid.order is None and "beside the product" in obstacle(layer)
    model = nn.Sequential(layer, nn.ReLU())
    expected = model(x)
    assert torch.equal(spfde.fuse(copy.deepcopy(model))(x), expected) and (expected > 0).any()


@pytest.mark.parametrize(
    ("pattern", "kind"), [("block:4x3", "wide"), ("2:4", "wide"), ("2:4", "3x3"), ("block:1x3", "1x1")]
)
def test_a_frozen_front_folds_what_is_permuted_in_the_index(pattern, kind):
    layer, x = layer_of(pattern, kind)
    freeze(permute(layer))
    norm = None if kind == "wide" else freeze(nn.BatchNorm2d(7))
    if norm is not None:
        norm.running_mean.copy_(torch.randn(7)), norm.running_var.copy_(torch.rand(7) + 0.5)
    with torch.no_grad():
        y = folded_of(layer, norm).product(x)
        assert torch.allclose(y, layer(x) if norm is None else norm(layer(x)), atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_soft_one_is_a_product_with_a_matrix(pattern, kind):
    layer, x = layer_of(pattern, kind)
    layer.double()
    stored, x = layer.dense_weight(), x.double().requires_grad_()
    Permutations(layer, total_steps=10, seed=4)
    soft = layer.permutation.soft
    assert soft.dtype == torch.float64 and soft.is_leaf and soft not in set(layer.parameters())
    matrix = soft.detach().clone().requires_grad_()
    mixed = "oc...,ci->oi..." if layer.permutation.side == "inputs" else "oc...,oi->ic..."
    weight = torch.einsum(mixed, stored, matrix)
    assert torch.allclose(layer.dense_weight(), weight)
    expected = F.linear(x, weight, layer.bias) if kind == "wide" else F.conv2d(
        x, weight, layer.bias, padding=int(kind == "3x3")
    )  # fmt: skip
    y = layer(x)
    dy = torch.randn(y.shape).double()
    found = torch.autograd.grad(y, [x, soft, layer.bias], dy)
    wanted = torch.autograd.grad(expected, [x, matrix, layer.bias], dy)
    assert torch.allclose(y, expected) and all(map(torch.allclose, found, wanted))
    assert torch.allclose(spfde.densify(copy.deepcopy(layer))(x), y)


@pytest.mark.parametrize("pattern", ["block:2x2", "2:4", "block:2x1"])
def test_masks_move_as_those_of_the_stored_weight(pattern):
    """With its inputs or outputs moved around it, a plain layer trains to the same masks."""
    optimizers, layers = [], []
    for permuted in (True, False):
        layer = net(pattern)[2]
        layer = permute(layer, seed=2) if permuted else layer
        layers.append(layer)
        optimizers.append(torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9))
    topologies = [RigL(x, o, total_steps=20, every=2, seed=5) for x, o in zip(layers, optimizers, strict=True)]
    permuted, plain = layers
    order, inputs = permuted.permutation.order, permuted.permutation.side == "inputs"
    plain.bias.data = plain.bias.data if inputs else plain.bias.data[order]
    before = plain.positions()
    for step in range(12):
        x, y = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(step))
        (permuted(x) - y).square().mean().backward()
        (plain(x[:, order] if inputs else x) - (y if inputs else y[:, order])).square().mean().backward()
        for optimizer, topology in zip(optimizers, topologies, strict=True):
            optimizer.step()
            topology.step()
            optimizer.zero_grad()
        assert torch.equal(permuted.positions(), plain.positions())
        assert torch.allclose(permuted.values, plain.values, atol=1e-5)
    assert not torch.equal(plain.positions(), before)
    if pattern == "2:4":
        groups = permuted.mask()[:, order].view(8, 2, 4).sum(2)
        assert (groups == 2).all()


@pytest.mark.parametrize("pattern", ["block:2x2", "2:4", "block:2x1"])
def test_an_index_is_saved_copied_and_pickled(pattern):
    model, other, x = permute(net(pattern), seed=1), permute(net(pattern, 1), seed=9), torch.randn(3, 6)
    expected = model(x)
    assert "2.permutation.order" in model.state_dict() and "2.permutation.soft" not in model.state_dict()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), expected) and torch.equal(other[2].mask(), model[2].mask())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
        permute(net(pattern, 1), seed=9).load_state_dict(twin.state_dict())
    dense = spfde.densify(copy.deepcopy(model))
    assert torch.allclose(dense(x), expected, atol=1e-6)
    again = permute(net(pattern, 1), seed=1)
    again.load_state_dict(dense.state_dict())  # a dense checkpoint, stored through the same permutations
    assert torch.allclose(again(x), expected, atol=1e-6)


def test_a_state_without_its_permutation_or_with_a_wrong_one_is_refused_and_changes_nothing():
    model = permute(net(), seed=1)
    state, before = model.state_dict(), copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="Missing key.*permutation.order"):
        model.load_state_dict({key: value for key, value in state.items() if "permutation" not in key})
    wrong = {**copy.deepcopy(state), "2.permutation.order": torch.zeros(8, dtype=torch.int64)}
    wrong["2.values"] += 1
    with pytest.raises(RuntimeError, match="expected order to be a permutation of 8 places"):
        model.load_state_dict(wrong)
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before if key.startswith("2."))
    soft = net()
    Permutations(soft, total_steps=5)
    with pytest.raises(RuntimeError, match="expected the state of a permutation that is an index, got one that is"):
        model.load_state_dict(soft.state_dict())
    with pytest.raises(ValueError, match="expected a permutation that is an index, got one that is still learned"):
        soft[2].rows_first(torch.zeros(8, 8))


@pytest.mark.parametrize("pattern", ["block:2x2", "2:4", "block:2x1"])
@pytest.mark.parametrize("stop", [3, 7])
def test_a_run_goes_on_to_the_same_bits(pattern, stop):
    """Stopped while all are soft (step 3), or after the end, with two more steps of the schedule to come."""

    def parts(seed):
        model = net(pattern, seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        topology = RigL(model, optimizer, total_steps=12, every=2, seed=seed)
        return model, optimizer, topology, Permutations(model, total_steps=12, seed=seed)

    def run(resumed):
        now = parts(0)
        for step in range(12):
            train_step(now[0], now[1], step)
            for lever in now[2:]:
                lever.step()
            if resumed and step == stop:
                saved = copy.deepcopy([part.state_dict() for part in now])
                now = parts(7)
                for part, state in zip(now, saved, strict=True):
                    part.load_state_dict(state)
        return now

    (model, _, _, lever), (other, *_) = run(False), run(True)
    assert lever.soft() == {} and set(lever.softness().values()) == {0.0}
    assert model.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("average", ["ema", "averaged"])
@pytest.mark.parametrize("pattern", ["block:2x2", "2:4", "block:2x1"])
def test_an_average_is_permuted_as_its_model(pattern, average):
    model = net(pattern)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = RigL(model, optimizer, total_steps=8, every=2)
    lever = Permutations(model, total_steps=8)
    if average == "ema":
        ema = spfde.integrations.EMA(model, topology, decay=0.0)
        update = ema.update
    else:
        ema = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda mine, theirs, _: theirs)
        update = lambda: ema.update_parameters(model)  # noqa: E731
    for step in range(6):
        train_step(model, optimizer, step)
        topology.step()
        lever.step()
        update()
        x = torch.randn(3, 6)
        assert torch.equal(ema.module(x), model(x))
    assert all(layer.permutation.hard for layer in (model[2], ema.module[2]))


@pytest.mark.parametrize("kind", ["wide", "3x3"])
@pytest.mark.parametrize("pattern", ["block:4x3", "2:4", "block:4x1"])
def test_an_order_that_others_write_is_followed(pattern, kind):
    """As dist.broadcast does; another layer that loads the same state says what is right."""
    (mine, x), (theirs, _) = (layer_of(pattern, kind) for _ in range(2))
    for layer in (mine, theirs):
        permute(layer, seed=0)
    mine(x)
    order = torch.randperm(mine.permutation.order.numel())
    theirs.load_state_dict({**mine.state_dict(), "permutation.order": order})
    mine.permutation.order.copy_(order)
    assert torch.equal(mine(x), theirs(x)) and torch.equal(mine.dense_weight(), theirs.dense_weight())
    assert not mine.permutation.follow()
    exchanged = {"permutation.order": torch.arange(len(order))}  # torch.func, or a hand that sets another buffer
    theirs.load_state_dict({**mine.state_dict(), **exchanged})
    assert torch.equal(torch.func.functional_call(mine, exchanged, (x,)), theirs(x))
    theirs.load_state_dict(mine.state_dict())
    assert torch.equal(mine(x), theirs(x))
    mine.permutation.order.fill_(3)
    with pytest.raises(ValueError, match="expected order to be a permutation of .* written by others"):
        mine(x)


def test_averaged_buffers_are_refused():
    model = net("block:2x2")
    permute(model, seed=0)
    average = torch.optim.swa_utils.AveragedModel(
        model, avg_fn=lambda mine, theirs, _: (mine + theirs.roll(1)) // 2 if mine.dtype == torch.int64 else mine,
        use_buffers=True,
    )  # fmt: skip
    for _ in range(2):
        average.update_parameters(model)
    with pytest.raises(ValueError, match="expected"):
        average(torch.randn(3, 6))


def test_permutations_are_learned():
    """A stored row of ones in four of eight inputs is to reach the four that the targets are the sum of."""
    linear = nn.Linear(8, 1, bias=False)
    linear.weight.data = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]])
    layer = spfde.nn.SparseLinear.from_dense(linear, pattern="block:1x4")
    lever = Permutations(layer, total_steps=400, end=1.0, pressure=0.5)
    start, generator = set(layer.permutation.order[:4].tolist()), torch.Generator().manual_seed(0)
    for _ in range(400):
        x = torch.randn(32, 8, generator=generator)
        (layer(x) - x[:, ::2].sum(1, keepdim=True)).square().mean().backward()
        lever.step()
    assert start != {0, 2, 4, 6} and set(layer.permutation.order[:4].tolist()) == {0, 2, 4, 6}
    assert layer.dense_weight().tolist() == [[1, 0, 1, 0, 1, 0, 1, 0]]


def test_each_layer_becomes_an_index_once_it_is_hard_enough_and_all_do_at_the_end():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lever, made = Permutations(model, total_steps=20, end=0.5, pressure=0.0, rate=0.0), []
    with torch.no_grad():
        model[2].permutation.soft.copy_(0.98 * torch.eye(8)[torch.arange(8).flip(0)] + 0.02 / 8)
    for step in range(12):
        train_step(model, optimizer, step)
        made.append(lever.step())
    assert made[0] == ["2"] and made[9] == [] and sum(map(len, made)) == 1  # the first and the last layer are dense
    assert model[2].permutation.order.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    lever, model = Permutations(other := net(), total_steps=20, end=0.5, rate=0.0), other
    assert [lever.step() for _ in range(10)] == [[]] * 9 + [["2"]] and "step 10" in lever.reason


def test_it_is_a_lever():
    model = net()
    lever = Permutations(model, total_steps=2, end=0.5)
    assert isinstance(lever, Lever) and EpochEnd not in lever.needs
    model(torch.randn(4, 6)).sum().backward()
    assert model[2].permutation.soft.grad is not None
    assert lever.on(Step(taken=False), None) is None
    assert model[2].permutation.soft.grad is None and lever.steps_done == 0
    (decision,) = lever.on(Step(), None)
    assert decision.kind == "permutation" and decision.text == "2: an index" and "softness" in decision.reason


def test_fit_takes_it():
    from spfde.train import Recipe, fit

    recipe = Recipe(
        epochs=2, train_images=64, test_images=32, width=0.25, freeze=0, sieve=0, sparsity=0.5, pattern="block:4x2"
    )
    levers = []

    def lever(run):
        levers.append(Permutations(run.model, total_steps=run.total_steps))
        return levers[-1]

    result = fit(recipe, levers=[lever])
    texts = [event.text for record in result.epochs for event in record.events]
    assert sum(": an index" in text for text in texts) == len(levers[0].layers) > 0
    assert not levers[0].soft()


@pytest.mark.parametrize("pattern", ["block:2x2", "block:2x1"])
def test_compiled_code_has_the_same_outputs_and_gradients(pattern):
    model, x = net(pattern)[2], torch.randn(4, 8)
    lever = Permutations(model, total_steps=2, end=0.5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):  # soft, then an index
        found = []
        for run in (model, compiled):
            y = run(x)
            (y * y).sum().backward()
            soft = model.permutation.soft
            found.append((y, model.values.grad, None if soft is None else soft.grad))
            model.zero_grad()
            if soft is not None:
                soft.grad = None
        for mine, theirs in zip(*found, strict=True):
            assert mine is theirs is None or torch.allclose(mine, theirs, atol=1e-6)
        lever.step()
    assert model.permutation.hard


def train_on_a_rank(rank, folder):
    dist.init_process_group("gloo")
    model = net("block:2x2")
    lever = Permutations(model, total_steps=6)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))[rank::2]
        optimizer.zero_grad()
        (wrapped(x) - x[:, :4]).square().mean().backward()
        optimizer.step()
        lever.step()
    torch.save(model.state_dict(), f"{folder}/{rank}")
    dist.destroy_process_group()


def test_ranks_learn_what_one_process_does(tmp_path):
    launch(train_on_a_rank, 2, str(tmp_path))
    model = net("block:2x2")
    lever = Permutations(model, total_steps=6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x[:, :4]).square().mean().backward()
        optimizer.step()
        lever.step()
    for rank in range(2):
        state = torch.load(tmp_path / str(rank))
        assert state.keys() == model.state_dict().keys()
        assert all(torch.allclose(value, state[key], atol=1e-6) for key, value in model.state_dict().items())


def test_what_is_about_to_freeze_is_settled_and_what_is_frozen_stays():
    model = nn.Sequential(net(), net())
    lever = Permutations(model, total_steps=4)
    assert lever.settle(model[0]) == ["0.2"] and lever.settle(model[0]) == []
    freeze(model[1])
    before = model[1][2].permutation.soft.detach().clone()
    for _ in range(4):
        assert lever.step() == []
    assert torch.equal(model[1][2].permutation.soft, before)


def test_a_gradient_that_is_not_finite_moves_nothing():
    model = net()
    lever = Permutations(model, total_steps=100, pressure=0.0)
    before = model[2].permutation.soft.detach().clone()
    model[2].permutation.soft.grad = torch.full_like(before, torch.inf)
    lever.step()
    assert torch.allclose(model[2].permutation.soft, before)


def test_a_topology_first_uses_what_it_has_seen_through_a_soft_one():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = RigL(model, optimizer, total_steps=8, every=2)
    lever, made = Permutations(model, total_steps=8, end=0.5), []
    for step in range(6):  # in the wrong order; the update after step 4 is armed where the end is
        train_step(model, optimizer, step)
        made.append(lever.step())
        topology.step()
    assert made == [[], [], [], [], ["2"], []]


def test_errors():
    with pytest.raises(ValueError, match="expected a layer in blocks or n:m, got none.*try spfde.sparsify"):
        permute(net("unstructured"))
    with pytest.raises(ValueError, match="expected a layer in blocks or n:m, got none"):
        permute(net(), exclude="2")
    model = permute(net())
    with pytest.raises(ValueError, match="expected a layer that can be permuted, got a permutation in '2', try excl"):
        Permutations(model, total_steps=5)
    grouped = spfde.sparsify(nn.Conv2d(8, 8, 1, groups=2), 0.5, pattern="block:2x2")
    with pytest.raises(ValueError, match="got 2 groups in ''"):
        permute(grouped)
    with pytest.raises(ValueError, match="got SparseConv1d in ''"):
        permute(spfde.sparsify(nn.Conv1d(8, 8, 1), 0.5, pattern="block:2x2"))
    with pytest.raises(ValueError, match=r"got values in torch.bfloat16 in '2'"):
        permute(net().bfloat16())
    for options, message in (
        ({"total_steps": 0}, "expected total_steps of 1 or more, got 0"),
        ({"end": 0.0}, r"expected end in \(0, 1\], got 0.0"),
        ({"tolerance": 2.0}, r"expected tolerance in \(0, 1\], got 2.0"),
        ({"start": -1.0}, r"expected start in \(0, 1\], got -1.0"),
        ({"rate": -1.0}, "expected pressure and rate of 0 or more, got 1.0 and -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Permutations(net(), **{"total_steps": 5, **options})
    lever = Permutations(net(), total_steps=5)
    with pytest.raises(ValueError, match=r"expected the state of a model with the same permutations.*\['2', '3'\]"):
        lever.load_state_dict({"step": 1, "squares": {"3": torch.zeros(())}})


def test_top_kast_and_a_topology_that_watches_are_refused():
    model = net()
    lever = Permutations(model, total_steps=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = TopKAST(model, optimizer, total_steps=5, every=1)
    with pytest.raises(ValueError, match="got Top-KAST in '2', try RigL"):
        lever.step()
    assert topology.armed
    model = net()
    RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=5, every=1)
    with pytest.raises(ValueError, match=r"got a topology that watches it already \(to be made afterwards\) in '2'"):
        permute(model)
