"""A user's loop under torch.compile: masks move, a layer freezes, batches vary; no switch, hardly a recompilation."""

import copy

import pytest
import torch
from torch import nn

import spfde


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    made = []

    def backend(graph, example_inputs):
        made.append(graph)
        return graph.forward

    yield made, backend
    torch._dynamo.reset()


def network():
    torch.manual_seed(0)
    parts = nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)
    return spfde.sparsify(nn.Sequential(*parts), 0.8, distribution="erk")


def trained(model, call, freeze_at=9, steps=16, made=()):
    """The compilations after every step, of a loop that knows nothing of them."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    topology = spfde.topology.RigL(model, optimizer, total_steps=100, every=4)
    generator, counts, moved = torch.Generator().manual_seed(0), [], 0
    for step in range(steps):
        x = torch.randn((12, 16, 20)[step % 3], 32, generator=generator)
        optimizer.zero_grad()
        call(x).square().mean().backward()
        optimizer.step()
        moved += topology.step()
        if step == freeze_at:
            spfde.freezing.freeze(model[0])
        counts.append(len(made))
    assert moved >= 3
    return counts


def test_masks_move_and_freeze_under_compile_without_a_switch(graphs):
    made, backend = graphs
    model, twin = network(), network()
    counts = trained(model, torch.compile(model, backend=backend), made=made)
    trained(twin, twin)
    for ours, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert counts[9] <= 2  # one batch size, then any
    assert counts[-1] <= counts[9] + 1  # the freeze


def test_compiled_code_stands_aside_only_while_someone_watches(graphs):
    made, backend = graphs
    model = network()
    compiled, x = torch.compile(model, backend=backend), torch.randn(4, 32)
    compiled(x)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    topology = spfde.topology.RigL(model, optimizer, total_steps=100, every=1)
    assert topology.armed
    function = torch.compile(lambda x: x + 1, backend=backend)
    before = len(made)
    function(x)
    assert len(made) == before
    topology._probes.disarm()
    function(x)
    assert len(made) == before + 1
    other = copy.deepcopy(model)
    torch.testing.assert_close(compiled(x), other(x))


def test_counters_and_profilers_see_sparse_layers_by_name():
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    model, x = network(), torch.randn(16, 32)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    counts = counter.get_flop_counts()
    forward = 2 * 16 * model[2].nnz
    assert sum(n for op, n in counts["Sequential.2"].items()) == 3 * forward
    assert str(torch.ops.spfde.spmm) in map(str, counts["Sequential.2"])
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        model(x).sum().backward()
    names = {event.key for event in recorded.key_averages()}
    assert any(name.startswith("spfde::linear ") for name in names)
    assert any(name.startswith("spfde::linear gradients ") for name in names)
