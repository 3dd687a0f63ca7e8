"""SparseLinear and SparseConv2d as modules: state, copies, moves, and code that looks at .weight."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import spfde
from spfde.nn import SparseConv2d, SparseLayer, SparseLinear

CONVS = {
    "plain": dict(kernel_size=3, padding=1),
    "strided": dict(kernel_size=(3, 5), stride=(2, 3), padding=(0, 2), dilation=(2, 1)),
    "same": dict(kernel_size=4, padding="same", dilation=2),
    "valid": dict(kernel_size=2, padding="valid", bias=False),
    "grouped": dict(kernel_size=3, groups=2),
    "depthwise": dict(kernel_size=3, groups=4, padding=1),
    "one tap, strided": dict(kernel_size=1, stride=(2, 3)),
    "one tap, strided, padded": dict(kernel_size=1, stride=2, padding=1),
    "one tap, strided, reflect": dict(kernel_size=1, stride=2, padding=1, padding_mode="reflect"),
    "reflect": dict(kernel_size=3, padding=(2, 1), padding_mode="reflect"),
    "circular": dict(kernel_size=(3, 2), padding="same", padding_mode="circular"),
}


def sparse_linear(density=0.3) -> tuple[nn.Linear, SparseLinear, torch.Tensor]:
    torch.manual_seed(0)
    dense = nn.Linear(9, 7)
    return dense, SparseLinear.from_dense(dense, torch.rand(7, 9) < density), torch.randn(5, 9)


def sparse_conv(name="plain", density=0.4) -> tuple[nn.Conv2d, SparseConv2d, torch.Tensor]:
    torch.manual_seed(0)
    dense = nn.Conv2d(4, 8, **CONVS[name])
    return (
        dense,
        SparseConv2d.from_dense(dense, torch.rand(dense.weight.shape) < density),
        torch.randn(2, 4, 11, 9),
    )


BOTH = pytest.mark.parametrize("make", [sparse_linear, sparse_conv], ids=["linear", "conv2d"])


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("kernel", ["auto", "native", "dense", "reference"])
def test_every_convolution_equals_the_dense_one_with_zeros(name, kernel):
    dense, layer, x = sparse_conv(name)
    layer.kernel = kernel
    with torch.no_grad():
        dense.weight.mul_(layer.mask())
    torch.testing.assert_close(layer(x), dense(x))
    torch.testing.assert_close(layer(x[0]), dense(x[0]))  # unbatched
    back = layer.to_dense()
    assert repr(back) == repr(dense)
    assert torch.equal(back.weight, dense.weight)
    assert back.bias is dense.bias


@BOTH
def test_what_is_stored(make):
    dense, layer, _ = make()
    mask = layer.mask()
    assert layer.values.shape == (layer.nnz, 1, 1)
    assert isinstance(layer.values, nn.Parameter)
    assert layer.nnz == int(mask.sum())
    assert layer.sparsity == pytest.approx(1 - layer.nnz / mask.numel())
    assert torch.equal(layer.dense_weight(), dense.weight.detach() * mask)
    assert not layer.dense_weight().requires_grad
    assert layer.bias is dense.bias
    assert {name for name, _ in layer.named_parameters()} == {"values", "bias"}
    assert {name for name, _ in layer.named_buffers()} == {"row_ptr", "col"}


def test_no_mask_keeps_the_nonzeros():
    dense = nn.Linear(6, 4)
    with torch.no_grad():
        dense.weight[1] = 0
        dense.weight[2, 3] = 0
    layer = SparseLinear.from_dense(dense)
    assert torch.equal(layer.mask(), dense.weight != 0)


def test_a_stored_value_may_be_zero():
    _, layer, _ = sparse_linear()
    with torch.no_grad():
        layer.values[0] = 0
    assert int(layer.mask().sum()) == layer.nnz


@pytest.mark.parametrize("mask", [torch.zeros(7, 9, dtype=torch.bool), torch.ones(7, 9, dtype=torch.bool)])
@pytest.mark.parametrize("kernel", ["native", "dense", "reference"])
def test_empty_and_full(mask, kernel):
    layer = SparseLinear.from_dense(nn.Linear(9, 7), mask)
    layer.kernel = kernel
    x = torch.randn(3, 9, requires_grad=True)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    layer(x).square().sum().backward()
    assert layer.values.grad.shape == layer.values.shape


@BOTH
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_equal_and_independent(make, way):
    _, layer, x = make()
    layer.kernel = "native"
    if way == "deepcopy":
        other = copy.deepcopy(layer)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    else:
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    y = layer(x)
    assert torch.equal(other(x), y)
    assert other.kernel == "native"
    layer.move_to(layer.positions().flip(0).sub(layer.positions().max()).neg().unique())
    with torch.no_grad():
        layer.values.zero_()
    assert torch.equal(other(x), y)


@BOTH
def test_state_dict_round_trip_carries_the_topology(make):
    _, layer, x = make()
    other = copy.deepcopy(layer)
    shifted = (layer.positions() + 1) % layer.mask().numel()
    other.move_to(shifted.sort().values)
    state = layer.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other.mask(), layer.mask())
    assert torch.equal(other(x), layer(x))


@BOTH
def test_a_dense_checkpoint_with_as_many_nonzeros_loads(make):
    dense, layer, x = make()
    with torch.no_grad():
        dense.weight.mul_(layer.mask())
        dense.weight.copy_(dense.weight.flip(0))
    layer.load_state_dict(dense.state_dict())
    torch.testing.assert_close(layer(x), dense(x))
    assert torch.equal(layer.mask(), dense.weight != 0)


@BOTH
def test_a_dense_checkpoint_loads_where_stored_values_are_0(make):
    dense, layer, x = make()
    own = layer.mask()
    with torch.no_grad():
        layer.values[1::3] = 0
        dense.weight.copy_(layer.dense_weight())
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.mask(), own)
    with torch.no_grad():
        dense.weight.copy_(layer.dense_weight().flip(0))
    nnz, elsewhere = layer.nnz, dense.weight != 0
    layer.load_state_dict(dense.state_dict())
    torch.testing.assert_close(layer(x), dense(x))
    assert layer.nnz == nnz
    assert not (elsewhere & ~layer.mask()).any()
    layer.load_state_dict({**dense.state_dict(), "weight": torch.zeros(layer.shape)})
    assert layer.nnz == nnz
    assert not layer.dense_weight().any()


@BOTH
def test_other_dense_checkpoints_are_refused_and_nothing_changes(make):
    _, layer, x = make()
    y = layer(x)
    full = torch.randn(layer.shape)
    with pytest.raises(RuntimeError, match=r"expected a dense weight with \d+ nonzeros.*before spfde.sparsify"):
        layer.load_state_dict({"weight": full, "bias": torch.zeros(layer.shape[0])})
    with pytest.raises(RuntimeError, match="expected a dense weight of shape"):
        layer.load_state_dict({"weight": full[:-1], "bias": torch.zeros(layer.shape[0])})
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["row_ptr"].add_(1), "row_ptr to ascend from 0"),
        (lambda s: s["row_ptr"].neg_(), "row_ptr to ascend from 0"),
        (lambda s: s["row_ptr"][1:3].copy_(torch.tensor([2**31 - 1, -(2**31)])), "row_ptr to ascend from 0"),
        (lambda s: s.update(col=s["col"].tolist()), "col to be int32 .*, got list"),
        (lambda s: s["col"].add_(100), r"columns in \[0, 9\)"),
        (lambda s: s["col"].fill_(3), "columns that ascend"),
        (lambda s: s.update(col=s["col"].long()), "col to be int32"),
        (lambda s: s.update(row_ptr=s["row_ptr"][1:]), "row_ptr to be int32"),
        (lambda s: s.pop("col"), "row_ptr and col together, got row_ptr alone"),
        (lambda s: s.pop("row_ptr"), "row_ptr and col together, got col alone"),
    ],
)
def test_a_corrupt_index_is_refused_and_nothing_changes(change, words, strict):
    _, layer, x = sparse_linear()
    y = layer(x)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    state["bias"].add_(5)
    change(state)
    with pytest.raises(RuntimeError, match=f"expected .*{words}"):
        layer.load_state_dict(state, strict=strict)
    assert torch.equal(layer(x), y)


@BOTH
def test_to_and_dtype_moves_keep_the_topology(make):
    _, layer, x = make()
    exact = layer(x)
    layer.double()
    assert layer.row_ptr.dtype == torch.int32
    torch.testing.assert_close(layer(x.double()).float(), exact)
    layer.to(torch.float32)
    torch.testing.assert_close(layer(x), exact)


def test_the_meta_device_has_no_data_until_loaded():
    _, layer, x = sparse_linear()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    y = layer(x)
    layer.to("meta")
    with pytest.raises(ValueError, match="expected data, got a layer on the meta device"):
        _ = layer.nnz
    layer.load_state_dict(state, assign=True)
    assert torch.equal(layer(x), y)


@BOTH
def test_weight_is_differentiable(make):
    _, layer, _ = make()
    direction = torch.randn(layer.shape)
    (layer.weight * direction).sum().backward()
    assert torch.equal(layer.values.grad.view(-1), direction.view(-1)[layer.positions()])


@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention_reads_the_weight(training):
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(16, 4, batch_first=True)
    twin = copy.deepcopy(mha)
    mha.out_proj = SparseLinear.from_dense(mha.out_proj, torch.rand(16, 16) < 0.5)
    with torch.no_grad():
        twin.out_proj.weight.mul_(mha.out_proj.mask())
    q = torch.randn(2, 5, 16)
    for model in (mha, twin):
        model.train(training)
    with torch.set_grad_enabled(training):  # eval without grad takes torch's fused path
        torch.testing.assert_close(mha(q, q, q)[0], twin(q, q, q)[0])
    if training:
        mha(q, q, q)[0].sum().backward()
        assert mha.out_proj.values.grad is not None


@pytest.mark.parametrize("frozen", ["x", "values", "bias", "values and x"])
def test_only_the_gradients_asked_for(frozen):
    for make in (sparse_linear, sparse_conv):
        for kernel in ("native", "dense"):
            _, layer, x = make()
            layer.kernel = kernel
            x.requires_grad_("x" not in frozen)
            layer.values.requires_grad_("values" not in frozen)
            layer.bias.requires_grad_("bias" not in frozen)
            dy = torch.randn_like(layer(x))
            layer(x).backward(dy)
            twin = layer.to_dense()
            x2 = x.detach().clone().requires_grad_()
            twin.requires_grad_()
            twin(x2).backward(dy)
            for mine, exact in ((x.grad, x2.grad), (layer.bias.grad, twin.bias.grad)):
                if mine is not None:
                    torch.testing.assert_close(mine, exact)
            assert (x.grad is None) == ("x" in frozen)
            assert (layer.values.grad is None) == ("values" in frozen)
            twin.zero_grad()


def test_move_to_keeps_values_and_zeroes_newcomers():
    _, layer, _ = sparse_linear()
    before = layer.dense_weight()
    old = layer.positions()
    new = torch.cat([old[2:], (~layer.mask()).reshape(-1).nonzero().view(-1)[:2]]).sort().values
    layer.values.grad = layer.values.detach().clone()
    parameter = layer.values
    source = layer.move_to(new, new=old[3:4])
    assert layer.values is parameter
    after = layer.dense_weight().view(-1)
    for position in new.tolist():
        kept = position in old.tolist() and position != int(old[3])
        assert after[position] == (before.view(-1)[position] if kept else 0)
    assert torch.equal(layer.values.grad, layer.values)
    assert int((source < 0).sum()) == 3


@pytest.mark.parametrize(
    "positions",
    [
        torch.tensor([3, 2]),
        torch.tensor([3, 3]),
        torch.tensor([-1, 3]),
        torch.tensor([3, 63]),
        torch.arange(50),
        torch.tensor([1, 2], dtype=torch.int32),
        torch.tensor([1, 2], device="meta"),
    ],
)
def test_move_to_refuses_bad_positions_and_changes_nothing(positions):
    _, layer, x = sparse_linear()
    y, mask = layer(x), layer.mask()
    with pytest.raises(ValueError, match="expected"):
        layer.move_to(positions)
    with pytest.raises(ValueError, match="expected positions on cpu like the layer, got meta, try .to"):
        layer.move_to(torch.arange(2), new=torch.arange(1, device="meta"))
    assert torch.equal(layer.mask(), mask)
    assert torch.equal(layer(x), y)


def test_data_parallel_is_refused():
    _, layer, _ = sparse_linear()
    with pytest.raises(TypeError, match="expected DistributedDataParallel, got DataParallel, .*, try one process"):
        layer._replicate_for_data_parallel()  # what torch calls for each GPU


def test_fewer_live_slots_than_capacity():
    _, layer, x = sparse_linear()
    layer.move_to(layer.positions()[::2])
    assert layer.nnz < layer.values.shape[0]
    assert torch.equal(layer.values[layer.nnz :], torch.zeros_like(layer.values[layer.nnz :]))
    torch.testing.assert_close(layer(x), layer.to_dense()(x))
    layer(x).square().sum().backward()
    assert not layer.values.grad[layer.nnz :].any()
    twin = copy.deepcopy(layer)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))


def test_optimizers_treat_values_like_any_weight():
    _, layer, x = sparse_linear()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, foreach=True)
    start = layer.values.detach().clone()
    torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    layer(x).square().sum().backward()
    optimizer.step()
    assert (layer.values != start).all()
    assert optimizer.state[layer.values]["exp_avg"].shape == layer.values.shape


def test_changing_the_values_between_forward_and_backward_is_refused():
    _, layer, x = sparse_linear()
    y = layer(x.requires_grad_())
    with torch.no_grad():
        layer.values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="expected a torch.nn.Linear, got Conv2d"):
        SparseLinear.from_dense(nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match="expected a torch.nn.Conv2d, got Linear"):
        SparseConv2d.from_dense(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"expected mask to be bool \[3, 2\], got torch.float32.*try mask.bool"):
        SparseLinear.from_dense(nn.Linear(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match="expected pattern 'unstructured', 'block:RxC'.*got 'blocks'"):
        SparseLinear.from_dense(nn.Linear(2, 3), pattern="blocks")


class Halved(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) / 2


class Same(nn.Conv2d):
    """As torch's own NonDynamicallyQuantizableLinear: another name, the same layer."""


def test_what_a_layer_could_not_stand_for_is_refused():
    kept = SparseConv2d.from_dense(Same(4, 4, 3))
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(kept(x), kept.to_dense()(x))
    with pytest.raises(TypeError, match="computes as torch.nn.Conv2d, got Halved with a forward of its own, .*, try a"):
        SparseConv2d.from_dense(Halved(4, 4, 3))
    for dense, said in (
        (
            parametrizations.weight_norm(nn.Linear(4, 4)),
            "expected a plain weight, got a parametrized one, try torch.nn",
        ),
        (nn.LazyLinear(4), "expected a weight with data, got one without, try"),
        (nn.Linear(4, 4, device="meta"), "expected a weight with data, got one without, try"),
        (nn.Linear(4, 4, dtype=torch.complex64), "expected a floating-point weight, got torch.complex64"),
    ):
        with pytest.raises(ValueError, match=said):
            SparseLinear.from_dense(dense)


def test_repr_says_what_matters():
    _, layer, _ = sparse_conv("grouped")
    for part in ("4, 8", "groups=2", f"nnz={layer.nnz}", "sparsity=", "kernel=auto", "pattern=unstructured"):
        assert part in repr(layer)
    assert isinstance(layer, SparseLayer)


@pytest.mark.parametrize("kernel", ["auto", "native", "dense"])
def test_what_was_worked_out_for_one_input_is_not_taken_for_another(kernel):
    layer = spfde.sparsify(nn.Linear(64, 32), 0.9)
    layer.kernel, x = kernel, torch.randn(4, 64)
    want = layer(x)
    for dtype in (torch.bfloat16, torch.float64):
        layer.bias.data = layer.bias.data.to(dtype)
        torch.testing.assert_close(layer(x).float(), want, rtol=1e-2, atol=1e-2)
    layer.bias.data = layer.bias.data.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32


def test_nothing_of_a_layer_outlives_it():
    layer = spfde.sparsify(nn.Linear(64, 32), 0.9)
    layer.kernel = "dense"
    layer(torch.randn(4, 64)).sum().backward()
    plan = weakref.ref(layer.plan)
    gc.disable()
    try:
        del layer
        assert plan() is None
    finally:
        gc.enable()
