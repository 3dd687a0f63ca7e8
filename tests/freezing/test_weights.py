"""Weights that are frozen below a layer: gradients against float64, optimizers, moves, copies, what is refused."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import spfde
from spfde.freezing import by_saliency, freeze, freeze_weights, frozen_weights, unfreeze, unfreeze_weights
from spfde.nn import SparseConv2d, SparseConvTranspose2d, SparseLinear
from spfde.topology import METHODS

PATTERNS = ["unstructured", "block:4x1", "block:2x3", "block:1x4", "2:4", "fan-in", "channel"]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1, initial_accumulator_value=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1),
}


def linear(rows=12, cols=20, pattern="unstructured", seed=0):
    torch.manual_seed(seed)
    dense = nn.Linear(cols, rows)
    return spfde.sparsify(dense, 0.5, pattern=pattern, seed=seed)


def conv(pattern="unstructured", groups=1, seed=0, **options):
    torch.manual_seed(seed)
    return spfde.sparsify(nn.Conv2d(8, 12, 3, padding=1, groups=groups, **options), 0.5, pattern=pattern)


def some_blocks(layer, share, seed=0):
    """A mask of about a share of the stored blocks."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(layer.nnz, generator=generator) < share
    mask = torch.zeros(layer.grid.weights + 1, dtype=torch.bool)
    mask[layer.grid.places(layer.positions()[chosen]).view(-1)] = True
    return layer.as_dense(mask[:-1])


def dense_gradients(layer, x, dy, apply):
    """Gradients of x, dense weight (0 where frozen) and bias in float64."""
    weight, bias = layer.dense_weight().double().requires_grad_(), layer.bias.detach().double().requires_grad_()
    x = x.detach().double().contiguous().requires_grad_()
    dx, dweight, dbias = torch.autograd.grad(apply(x, weight, bias), [x, weight, bias], dy.double())
    return dx, dweight.masked_fill(~layer.mask() | frozen_weights(layer), 0), dbias


def check(layer, x, apply, tolerance=1e-5):
    x = x.detach().requires_grad_()
    y = layer(x)
    dy = torch.randn_like(y)
    dx, dvalues, dbias = torch.autograd.grad(y, [x, layer.values, layer.bias], dy)
    dweight = torch.zeros(layer.grid.weights + 1)
    dweight[layer.plan.places.view(-1).long()] = layer.plan.ordered(dvalues).view(-1)
    exact = dense_gradients(layer, x, dy, apply)
    for got, want in zip((dx, layer.as_dense(dweight[:-1]), dbias), exact, strict=True):
        if want.numel():
            assert (got - want).abs().max() <= tolerance * max(1.0, float(want.abs().max()))
    frozen = layer.plan.live.held if layer.plan.live is not None else []
    assert not dvalues[frozen].any()


def conv_of(layer):
    window = layer.window
    return lambda x, w, b: F.conv2d(x, w, b, layer.stride, layer.padding, layer.dilation, window.groups)


@pytest.mark.parametrize("kernel", ["native", "dense", "reference"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_of_a_linear_layer(pattern, kernel):
    layer = linear(pattern=pattern)
    layer.kernel = kernel
    for share in (0.0, 0.4, 1.0):
        unfreeze_weights(layer)
        freeze_weights(layer, some_blocks(layer, share))
        check(layer, torch.randn(7, 20), F.linear)
        check(layer, torch.randn(2, 3, 20), F.linear)
        check(layer, torch.randn(0, 20), F.linear)
        check(layer, torch.randn(20, 5).t(), F.linear)


@pytest.mark.parametrize("kernel", ["native", "dense"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_of_a_convolution(pattern, kernel):
    layer = conv(pattern)
    layer.kernel = kernel
    freeze_weights(layer, some_blocks(layer, 0.5))
    x = torch.randn(3, 8, 6, 5)
    check(layer, x, conv_of(layer))
    check(layer, x.contiguous(memory_format=torch.channels_last), conv_of(layer))


@pytest.mark.parametrize("options", [{"groups": 4}, {"stride": 2}, {"dilation": 2}])
def test_gradients_of_convolutions_of_other_kinds(options):
    layer = conv(**options)
    freeze_weights(layer, some_blocks(layer, 0.5))
    check(layer, torch.randn(2, 8, 7, 7), conv_of(layer))


@pytest.mark.parametrize("pattern", ["unstructured", "block:2x3", "channel"])
def test_gradients_of_a_transposed_convolution(pattern):
    torch.manual_seed(0)
    layer = spfde.sparsify(nn.ConvTranspose2d(6, 4, 3, stride=2), 0.5, pattern=pattern)
    assert isinstance(layer, SparseConvTranspose2d)
    freeze_weights(layer, some_blocks(layer, 0.5))
    check(layer, torch.randn(2, 6, 4, 4), lambda x, w, b: F.conv_transpose2d(x, w, b, 2))


@given(
    rows=st.sampled_from([1, 2, 7, 13]),
    cols=st.sampled_from([1, 3, 8, 31]),
    batch=st.sampled_from([0, 1, 5, 33]),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    share=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    pattern=st.sampled_from(["unstructured", "block:2x2", "fan-in", "channel"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_gradients_of_any_shape(rows, cols, batch, sparsity, share, pattern, seed):
    torch.manual_seed(seed)
    layer = spfde.sparsify(nn.Linear(cols, rows), sparsity, pattern=pattern)
    freeze_weights(layer, some_blocks(layer, share, seed))
    check(layer, torch.randn(batch, cols), F.linear)


def test_outputs_freeze_by_number_and_by_mask():
    layer, other = linear(), linear()
    decision = freeze_weights(layer, [0, 3])
    freeze_weights(other, torch.arange(12).remainder(3).eq(0) & (torch.arange(12) < 4))
    assert torch.equal(frozen_weights(layer), frozen_weights(other))
    rows = torch.zeros(12, 20, dtype=torch.bool)
    rows[[0, 3]] = True
    assert torch.equal(frozen_weights(layer), rows & layer.mask())
    assert (decision.frozen, decision.stored) == (int((rows & layer.mask()).sum()), layer.nnz)
    assert f"{1 - decision.share:.1%} of the stored places" in decision.reason
    assert decision.kind == "freeze" and "of 120 stored weights" in decision.text


def test_freezing_adds_up_and_comes_off():
    layer = linear()
    freeze_weights(layer, [0])
    decision = freeze_weights(layer, [0, 1])
    assert torch.equal(frozen_weights(layer)[:2], layer.mask()[:2])
    assert "(0 more" not in decision.reason
    unfreeze_weights(layer, [0])
    assert not frozen_weights(layer)[0].any() and frozen_weights(layer)[1].any()
    decision = unfreeze_weights(layer)
    assert decision.frozen == 0 and decision.share == 0.0 and layer.plan.live is None
    assert decision.reason == "all of its weights train"
    assert "freeze(layer)" in freeze_weights(layer, list(range(12))).reason


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("pattern", ["unstructured", "block:2x3", "channel"])
def test_no_optimizer_moves_frozen_weights_or_their_state(kind, pattern):
    layer = linear(pattern=pattern)
    optimizer = OPTIMIZERS[kind](layer.parameters())

    def step():
        optimizer.zero_grad()
        layer(torch.randn(5, 20)).square().sum().backward()
        optimizer.step()

    step()
    freeze_weights(layer, some_blocks(layer, 0.5))
    held, trained = layer.plan.live.held, layer.plan.live.trained
    values = layer.values.detach().clone()
    state = copy.deepcopy(optimizer.state[layer.values])
    for _ in range(20):
        step()
    assert torch.equal(layer.values[held], values[held])
    assert (layer.values[trained] != values[trained]).any()
    for key, now in optimizer.state[layer.values].items():
        if now is not None and now.dim():
            assert torch.equal(now[held], state[key][held]), key
    unfreeze_weights(layer)
    step()
    assert (layer.values[held] != values[held]).any()


def test_state_that_is_made_later_starts_at_0():
    layer = linear()
    freeze_weights(layer, [2])
    optimizer = OPTIMIZERS["sgd"](layer.parameters())
    layer(torch.ones(1, 20)).sum().backward()
    optimizer.step()
    momentum = optimizer.state[layer.values]["momentum_buffer"]
    assert not momentum[layer.plan.live.held].any() and momentum[layer.plan.live.trained].any()


def test_a_gradient_from_before_is_dropped():
    layer = linear()
    layer(torch.ones(1, 20)).sum().backward()
    freeze_weights(layer, [1])
    assert not layer.values.grad[layer.plan.live.held].any() and layer.values.grad.any()


def test_state_that_has_no_row_for_a_block_is_refused():
    class Flat(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        def step(self):
            for p in self.param_groups[0]["params"]:
                self.state[p]["flat"] = torch.zeros(7)

    layer = linear()
    freeze_weights(layer, [1])
    optimizer, before = Flat(layer.parameters()), layer.values.detach().clone()
    with pytest.raises(ValueError, match="a row for every block.*'flat' of shape \\[7\\] in Flat, try"):
        optimizer.step()
    assert torch.equal(layer.values, before)


def net(seed=0, pattern="unstructured"):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 24), nn.Tanh(), nn.Linear(24, 6))
    shares = {"0": 0.5, "3": 0.8, "5": 0.6}
    return spfde.sparsify(model, 0.5, pattern=pattern, distribution=shares)


def batch(seed):
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def train(model, optimizer, topology, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()
        if topology is not None:
            topology.step()


def sparse_layers(model):
    return [m for m in model if isinstance(m, SparseLinear | SparseConv2d)]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.keeps_frozen])
def test_masks_move_around_frozen_weights(name):
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    topology = METHODS[name](model, optimizer, total_steps=12, every=2)
    train(model, optimizer, topology, 1)
    for layer in sparse_layers(model):
        freeze_weights(layer, some_blocks(layer, 0.1))
    before = [(frozen_weights(m), m.dense_weight(), m.positions()) for m in sparse_layers(model)]
    train(model, optimizer, topology, 11, first=1)
    for layer, (frozen, weight, _) in zip(sparse_layers(model), before, strict=True):
        assert torch.equal(frozen_weights(layer), frozen)
        assert torch.equal(layer.dense_weight()[frozen], weight[frozen])
        assert layer.nnz == topology.target[next(n for n, m in topology.layers.items() if m is layer)]
    if topology.default_drop is not None:
        same = [torch.equal(m.positions(), old) for m, (_, _, old) in zip(sparse_layers(model), before, strict=True)]
        assert not all(same)
    check(model[3], torch.randn(3, 128), F.linear)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.keeps_frozen])
def test_methods_that_would_move_frozen_weights_refuse(name):
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    freeze_weights(model[3], [0])
    with pytest.raises(
        ValueError, match=f"no single weights frozen under {METHODS[name].__name__}, got some in '3', try"
    ):
        train(model, optimizer, METHODS[name](model, optimizer, total_steps=12, every=2), 2)


def test_pruning_below_what_is_frozen_is_refused():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    topology = METHODS["gmp"](model, optimizer, total_steps=4, every=1)
    for layer in sparse_layers(model):
        freeze_weights(layer, layer.mask())
    with pytest.raises(ValueError, match="GMP in '.': expected positions that keep the .* frozen blocks"):
        train(model, optimizer, topology, 4)


def test_a_move_that_drops_frozen_weights_is_refused():
    layer = linear()
    freeze_weights(layer, [0, 1])
    positions, values = layer.positions(), layer.values.detach().clone()
    with pytest.raises(ValueError, match="without 1 of them, try spfde.freezing.unfreeze_weights"):
        layer.move_to(positions[1:])
    with pytest.raises(ValueError, match="without 1 of them"):
        layer.move_to(positions, new=positions[:1])
    with pytest.raises(RuntimeError, match="without"):
        layer.load_state_dict(linear(seed=3).state_dict())
    assert torch.equal(layer.positions(), positions) and torch.equal(layer.values, values)
    layer.move_to(positions[:-1])
    assert torch.equal(frozen_weights(layer)[:2], layer.mask()[:2])
    check(layer, torch.randn(3, 20), F.linear)


def test_an_index_written_in_place_without_frozen_weights_is_refused():
    layer, other = linear(), linear(seed=3)
    freeze_weights(layer, [0])
    layer.row_ptr.copy_(other.row_ptr)
    layer.col.copy_(other.col)
    with pytest.raises(ValueError, match="frozen blocks"):
        layer(torch.randn(1, 20))


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "resume"])
def test_a_training_goes_on_to_the_same_bits(way):
    def start(seed=0):
        model = net(seed)
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        return model, optimizer, METHODS["rigl"](model, optimizer, total_steps=12, every=3, seed=1)

    whole = start()
    masks = [some_blocks(m, 0.4) for m in sparse_layers(whole[0])]
    for layer, mask in zip(sparse_layers(whole[0]), masks, strict=True):
        freeze_weights(layer, mask)
    train(*whole, 6)
    if way == "resume":
        saved = copy.deepcopy([part.state_dict() for part in whole])
        rest = start(seed=5)
        for part, state in zip(rest, saved, strict=True):
            part.load_state_dict(state)
        for layer, mask in zip(sparse_layers(rest[0]), masks, strict=True):
            freeze_weights(layer, mask)
    elif way == "deepcopy":
        rest = copy.deepcopy(whole)
    else:
        rest = pickle.load(io.BytesIO(pickle.dumps(whole)))
    train(*whole, 6, first=6)
    train(*rest, 6, first=6)
    for (name, one), other in zip(whole[0].state_dict().items(), rest[0].state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    for one, other in zip(sparse_layers(whole[0]), sparse_layers(rest[0]), strict=True):
        assert torch.equal(frozen_weights(one), frozen_weights(other)) and frozen_weights(one).any()


def test_averages_and_whole_freezes_keep_what_is_frozen():
    model = net()
    freeze_weights(model[3], [0, 1])
    assert torch.equal(frozen_weights(copy.deepcopy(model)[3]), frozen_weights(model[3]))
    freeze(model[3])
    unfreeze(model[3])
    assert frozen_weights(model[3])[:2].any() and model[3].values.requires_grad
    model.double().float()
    check(model[3], torch.randn(3, 128), F.linear)


def test_other_routes_hold_them_too():
    layer = linear()
    freeze_weights(layer, [0, 5])
    x, held = torch.randn(4, 20), layer.plan.live.held
    want = torch.autograd.grad(layer(x).square().sum(), layer.values)[0]
    assert not want[held].any()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    through = F.linear(x, layer.weight, layer.bias)
    per_sample = torch.func.vmap(
        torch.func.grad(lambda v, row: torch.func.functional_call(layer, {"values": v}, (row,)).square().sum()),
        in_dims=(None, 0),
    )(layer.values.detach(), x)
    for got in (
        torch.autograd.grad(compiled(x).square().sum(), layer.values)[0],
        torch.autograd.grad(through.square().sum(), layer.values)[0],
        per_sample.sum(0),
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        assert not got[held].any()


@pytest.mark.parametrize("make", [linear, conv])
def test_second_derivatives_leave_them_out(make):
    layer = make().double()
    layer.kernel = "reference"
    single = make()
    mask = some_blocks(layer, 0.5)
    freeze_weights(layer, mask)
    freeze_weights(single, mask)
    x = torch.randn(2, 20) if make is linear else torch.randn(2, 8, 5, 5)

    def penalty(one, x):
        x = x.detach().requires_grad_()
        dx, dvalues = torch.autograd.grad(one(x).tanh().sum(), [x, one.values], create_graph=True)
        total = dx.square().sum() + dvalues.square().sum()
        return torch.autograd.grad(total, [x, one.values])

    for got, want in zip(penalty(single, x), penalty(layer, x.double()), strict=True):
        assert float((got - want).norm()) <= 1e-5 * float(want.norm())
    assert not penalty(single, x)[1][single.plan.live.held].any()


def test_attention_and_fused_layers_hold_them():
    torch.manual_seed(0)
    attention = spfde.sparsify(nn.MultiheadAttention(8, 2), 0.5)
    layer = next(m for m in attention.modules() if isinstance(m, SparseLinear))
    freeze_weights(layer, [0, 1, 2])
    x = torch.randn(3, 2, 8)
    attention(x, x, x)[0].sum().backward()
    assert not layer.values.grad[layer.plan.live.held].any() and layer.values.grad.any()
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    model = spfde.fuse(spfde.sparsify(model, 0.5, distribution={"0": 0.5, "2": 0.5}))
    for m in model.modules():
        if isinstance(m, SparseLinear):
            freeze_weights(m, [0])
    model(torch.randn(5, 16)).square().sum().backward()
    for m in model.modules():
        if isinstance(m, SparseLinear):
            assert not m.values.grad[m.plan.live.held].any() and m.values.grad.any()


def test_the_summary_and_the_flops_say_so():
    model = net()
    freeze_weights(model[3], list(range(12)))
    frozen = int(frozen_weights(model[3]).sum())
    row = next(row for row in spfde.summary(model).rows if row.name == "3")
    assert row.frozen == frozen and f"{frozen / row.nnz:.1%} of its weights frozen" in str(spfde.summary(model))
    work = spfde.flops.layer_work(model, batch(0))["3"]
    assert (work.weights, work.trained) == (row.nnz, row.nnz - frozen)
    assert work.backward == 2 * (row.nnz - frozen) + 2 * row.nnz
    freeze_weights(model[3], model[3].mask())
    assert spfde.flops.layer_work(model, batch(0))["3"].weight_grad == 0


def test_saliency_by_hand():
    layer = SparseLinear.from_dense(nn.Linear(2, 2, bias=False))
    layer.values.data = torch.tensor([1.0, 2.0, 3.0, -4.0]).view(4, 1, 1)
    data = (torch.tensor([[1.0, 10.0]]), None)
    # dL/dw = x for each output, so |w g| = 1, 20, 3, 40
    chosen = by_saliency(layer, 0.5, data, lambda y, _: y.sum())
    assert chosen[""].tolist() == [[True, False], [True, False]]
    freeze_weights(layer, chosen[""])
    assert layer.plan.live.trained.tolist() == [1, 3]
    assert by_saliency(layer, 1.0, data, lambda y, _: y.sum())[""].tolist() == [[False, False], [False, False]]


def test_saliency_counts_and_leaves_no_trace():
    model = net()
    before, stored = copy.deepcopy(model.state_dict()), sum(m.nnz for m in sparse_layers(model))
    pairs = [(batch(0), torch.zeros(4, 6)), (batch(1), torch.ones(4, 6))]
    for spread in ("global", "uniform"):
        chosen = by_saliency(model, 0.3, pairs, F.mse_loss, spread=spread)
        kept = [int((m.mask() & ~chosen[n]).sum()) for n, m in model.named_modules() if n in chosen]
        want = [round(0.3 * m.nnz) for m in sparse_layers(model)]
        assert kept == want if spread == "uniform" else sum(kept) == round(0.3 * stored)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and model.training


def test_what_does_not_fit_is_refused():
    layer = linear()
    for which, error, text in [
        (torch.ones(12, 20), TypeError, "bool mask \\[12, 20\\] or numbers of outputs, got torch.float32, try"),
        ("all", TypeError, "got str"),
        ([0.5], TypeError, "numbers of outputs"),
        ([True], TypeError, "numbers of outputs"),
        (torch.ones(20, 12, dtype=torch.bool), ValueError, "got torch.bool \\[20, 12\\]"),
        (torch.ones(5, dtype=torch.bool), ValueError, "bool \\[12\\]"),
        ([12], ValueError, "outputs in \\[0, 12\\), got \\[12, 12\\]"),
        ([-1], ValueError, "outputs in"),
    ]:
        with pytest.raises(error, match=text):
            freeze_weights(layer, which)
    assert layer.plan.live is None
    block = linear(pattern="block:4x1")
    with pytest.raises(ValueError, match="whole blocks of block:4x1, got .* of which a part would freeze, try"):
        freeze_weights(block, [0])
    for call in (freeze_weights, unfreeze_weights):
        with pytest.raises(TypeError, match="expected a sparse layer, got Linear, try spfde.sparsify"):
            call(nn.Linear(2, 2), [0])
    with pytest.raises(TypeError, match="sparse layer"):
        frozen_weights(nn.Linear(2, 2))
    layer.transform = nn.Tanh()
    with pytest.raises(ValueError, match="computes its weights by Tanh"):
        freeze_weights(layer, [0])


def test_what_saliency_cannot_use_is_refused():
    model, data = net(), (batch(0), torch.zeros(4, 6))
    for arguments, text in [
        ((0.0, data, F.mse_loss), "trained in \\(0, 1\\]"),
        ((0.5, batch(0), F.mse_loss), "data=\\(x, y\\)"),
        ((0.5, [], F.mse_loss), "data=\\(x, y\\)"),
        ((0.5, data, lambda y, t: y), "a scalar"),
        ((0.5, data, lambda y, t: y.sum() * float("nan")), "finite scores"),
    ]:
        with pytest.raises(ValueError, match=text):
            by_saliency(model, *arguments)
    with pytest.raises(ValueError, match="spread to be one of global, uniform, got 'erk'"):
        by_saliency(model, 0.5, data, F.mse_loss, spread="erk")
    with pytest.raises(ValueError, match="sparse layers that train, got none"):
        by_saliency(nn.Linear(2, 2), 0.5, data, F.mse_loss)
