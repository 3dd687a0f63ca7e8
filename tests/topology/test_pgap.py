"""P-GaP in two processes: partitions dense in turn apart, put together by hand, and one model in the end."""

import copy

import pytest
import torch
from launched import launch
from topology.networks import net
from torch import nn

from spfde.nn import SparseLinear
from spfde.topology import PGaP


def linear(row):
    layer = nn.Linear(len(row), 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([row]))
    return SparseLinear.from_dense(layer)


def by_hand(rank):
    """Two layers of 4 that keep 2. Process r grows layer r and trains it; then each has both, and the mean of the rest.

    Process 0 makes the first layer 1 2 5 6 and the second 3 4 (which nobody takes); process 1 the second 9 4 8 7.
    """
    torch.distributed.init_process_group("gloo")
    model = nn.Sequential(linear([1.0, 2, 0, 0]), linear([3.0, 4, 0, 0]), nn.Linear(1, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = PGaP(model, optimizer, total_steps=8, every=2, end=0.5)
    assert [layer.nnz for layer in model[:2]] == ([4, 2] if rank == 0 else [2, 4])
    trained = [[1.0, 2, 5, 6], [9.0, 4, 8, 7]][rank]
    with torch.no_grad():
        model[rank].values.copy_(torch.tensor(trained).view(4, 1, 1))
        model[2].weight.fill_(rank)
    assert not topology.step()
    assert topology.step()
    both = [model[0].dense_weight().tolist(), model[1].dense_weight().tolist()]
    assert both == [[[0, 0, 5, 6]], [[9, 0, 8, 0]]]
    assert model[2].weight.item() == 0.5
    assert [layer.nnz for layer in model[:2]] == ([4, 2] if rank == 0 else [2, 4])
    topology.step()
    topology.step()  # the end of growing
    assert [layer.nnz for layer in model[:2]] == [2, 2]
    with torch.no_grad():
        model[0].values[0] = float(rank)
    for _ in range(4):
        topology.step()
    assert model[0].dense_weight().tolist() == [[0, 0, 0.5, 6]]
    torch.distributed.destroy_process_group()


def replicas(rank):
    """Different samples in each process; at the end one model, its optimizer state too, at its target."""
    torch.distributed.init_process_group("gloo")
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    target = [m.nnz for m in model if hasattr(m, "nnz")]
    topology = PGaP(model, optimizer, total_steps=12, every=3)
    for step in range(12):
        x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2 * step + rank))
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        topology.step()
    assert [m.nnz for m in model if hasattr(m, "nnz")] == target
    states = [value for parameter in model.parameters() for value in optimizer.state[parameter].values()]
    for mine in [*model.state_dict().values(), *states]:
        theirs = mine.clone()
        torch.distributed.broadcast(theirs, 0)
        assert torch.equal(mine, theirs)
    wrapped = nn.parallel.DistributedDataParallel(net())
    with pytest.raises(ValueError, match="train apart.*try the model itself, or GaP"):
        PGaP(wrapped, torch.optim.SGD(wrapped.parameters(), lr=0.1), total_steps=9)
    torch.distributed.destroy_process_group()


def resumed(rank):
    """Stopped while a partition is dense (4) and after the end of growing (10), each process goes on with its own."""
    torch.distributed.init_process_group("gloo")

    def start():
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return model, optimizer, PGaP(model, optimizer, total_steps=14, every=3, end=0.6)

    def go_on(parts, first, last):
        model, optimizer, topology = parts
        for step in range(first, last):
            x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2 * step + rank))
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            optimizer.step()
            topology.step()

    whole = start()
    go_on(whole, 0, 14)
    for stop in (4, 10):
        parts, rest = start(), start()
        go_on(parts, 0, stop)
        for part, other in zip(parts, rest, strict=True):
            other.load_state_dict(copy.deepcopy(part.state_dict()))
        go_on(rest, stop, 14)
        for key, value in whole[0].state_dict().items():
            assert torch.equal(value, rest[0].state_dict()[key]), (stop, key)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("work", [by_hand, replicas, resumed])
def test_partitions_in_two_processes(work):
    launch(work, 2, start="fork")
