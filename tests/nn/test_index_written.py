"""An index that someone else writes in place: the layer follows it, or refuses what is no index."""

import copy

import pytest
import torch
import torch.distributed.checkpoint
import torch.nn.functional as F
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel

import spfde

PATTERNS = ("unstructured", "block:4x4", "block:2x3", "fan-in", "channel", "2:4")


def sparse(pattern: str, seed: int, conv: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    dense = nn.Conv2d(8, 16, 3, padding=1) if conv else nn.Linear(24, 16)
    return spfde.sparsify(dense, None if pattern == "2:4" else 0.5, pattern=pattern, seed=seed)


def tensors(layer: nn.Module) -> list[torch.Tensor]:
    return [*layer.parameters(), *layer.buffers()]


def past_torchs_count(mine, theirs):
    for a, b in zip(tensors(mine), tensors(theirs), strict=True):
        a.data.copy_(b)


def under_no_grad(mine, theirs):
    with torch.no_grad():
        for a, b in zip(tensors(mine), tensors(theirs), strict=True):
            a.copy_(b)


def through_a_state_dict(mine, theirs):
    for name, tensor in mine.state_dict().items():
        tensor.copy_(theirs.state_dict()[name])


def detached(mine, theirs):  # as DistributedDataParallel broadcasts
    for a, b in zip(tensors(mine), tensors(theirs), strict=True):
        a.detach().copy_(b.detach())


def check_equal(mine: nn.Module, theirs: nn.Module, conv: bool) -> None:
    """The layer computes with the other's topology, forward and backward, and says so everywhere."""
    x = torch.randn(3, 8, 5, 6) if conv else torch.randn(5, 24)
    weight = theirs.dense_weight()
    ours, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    exact = weight.double().requires_grad_()
    y = mine(ours)
    want = F.conv2d(wide, exact, mine.bias.double(), padding=1) if conv else F.linear(wide, exact, mine.bias.double())
    dy = torch.randn_like(y)
    mine.values.grad = None
    y.backward(dy)
    want.backward(dy.double())
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), wide.grad, rtol=1e-5, atol=1e-5)
    there = copy.deepcopy(mine)
    with torch.no_grad():
        there.values.copy_(mine.values.grad)
    torch.testing.assert_close(there.dense_weight().double(), exact.grad * theirs.mask(), rtol=1e-5, atol=1e-5)
    assert torch.equal(mine.mask(), theirs.mask())
    assert torch.equal(mine.dense_weight(), weight)
    assert (mine.nnz, mine.stored) == (theirs.nnz, theirs.stored)
    assert torch.equal(spfde.densify(copy.deepcopy(mine)).weight, weight)


@pytest.mark.parametrize("kernel", ["native", "dense"])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("write", [past_torchs_count, under_no_grad, through_a_state_dict, detached])
def test_a_layer_follows_an_index_that_was_written(write, pattern, conv, kernel):
    mine, theirs = sparse(pattern, 0, conv), sparse(pattern, 1, conv)
    mine.kernel = kernel
    x = torch.randn(3, 8, 5, 6) if conv else torch.randn(5, 24)
    mine(x).sum().backward()  # plan, dense buffer and calls are there
    write(mine, theirs)
    check_equal(mine, theirs, conv)


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x4"])
@pytest.mark.parametrize("conv", [False, True])
def test_a_compiled_layer_follows_too(pattern, conv):
    torch._dynamo.reset()
    mine, theirs, third = (sparse(pattern, seed, conv) for seed in range(3))
    compiled = torch.compile(mine, backend="aot_eager", fullgraph=True)
    past_torchs_count(mine, theirs)  # before it is traced
    for other in (theirs, third):
        past_torchs_count(mine, other)  # and after
        x = (torch.randn(3, 8, 5, 6) if conv else torch.randn(5, 24)).requires_grad_()
        y, dy = compiled(x), torch.randn(1)
        y.backward(dy.expand_as(y))
        wide, weight = x.detach().double().requires_grad_(), other.dense_weight().double()
        want = (
            F.conv2d(wide, weight, mine.bias.double(), padding=1)
            if conv
            else F.linear(wide, weight, mine.bias.double())
        )
        want.backward(dy.double().expand_as(want))
        torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-5, atol=1e-5)


def test_an_average_that_copies_buffers_follows_its_model():
    model = nn.Sequential(sparse("unstructured", 0))
    average = AveragedModel(model, use_buffers=True)
    other = sparse("unstructured", 1)
    under_no_grad(model[0], other)
    average.update_parameters(model)
    average.update_parameters(model)
    assert torch.equal(average.module[0].mask(), other.mask())


def test_copies_that_share_an_index_see_its_moves():
    first = sparse("unstructured", 0)
    second = copy.copy(first)
    x = torch.randn(4, 24)
    first(x), second(x)
    positions = first.positions()
    free = torch.ones(first.grid.size, dtype=torch.bool)
    free[positions] = False
    moved = torch.cat([positions[1:], free.nonzero().view(-1)[:1]]).sort().values
    first.move_to(moved)
    assert torch.equal(second.positions(), moved)
    assert torch.equal(first(x), second(x))


def test_an_index_in_shared_memory_is_the_same_index():
    layer = sparse("unstructured", 0)
    x = torch.randn(4, 24)
    before, plan = layer(x), layer.plan
    layer.share_memory()
    assert torch.equal(layer(x), before)
    assert layer.plan is plan


@pytest.mark.parametrize("damage", ["row_ptr", "col"])
def test_what_is_no_index_is_refused_before_a_kernel_reads_it(damage):
    layer = sparse("unstructured", 0)
    layer(torch.randn(4, 24))
    getattr(layer, damage).data.fill_(-7)
    with pytest.raises(ValueError, match="row_ptr and col were written in place"):
        layer(torch.randn(4, 24))


def test_the_same_index_written_again_changes_nothing():
    layer = sparse("unstructured", 0)
    x = torch.randn(4, 24)
    y = layer(x)
    with torch.no_grad():
        layer.row_ptr.copy_(layer.row_ptr.clone())
    plan = layer.plan
    assert torch.equal(layer(x), y)
    assert layer.plan is plan


def test_an_index_that_breaks_the_pattern_is_refused_every_time():
    layer, other, x = sparse("2:4", 0), sparse("unstructured", 1), torch.randn(4, 24)
    layer(x)
    layer.row_ptr.data.copy_(other.row_ptr)
    layer.col.data.copy_(other.col)
    for _ in range(2):
        with pytest.raises(ValueError, match="'2:4'.*written in place"):
            layer(x)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_is_followed(tmp_path):
    mine, theirs = (nn.Sequential(sparse("unstructured", seed)) for seed in range(2))
    x = torch.randn(5, 24)
    mine(x).sum().backward()
    state = mine.state_dict()
    distributed.checkpoint.save(theirs.state_dict(), checkpoint_id=tmp_path, no_dist=True)
    distributed.checkpoint.load(state, checkpoint_id=tmp_path, no_dist=True)  # in place
    assert torch.equal(mine(x), theirs(x))
    check_equal(mine[0], theirs[0], False)
