"""Levers driven by hand, as the callbacks do it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import spfde
from spfde.freezing import Static, blocks, is_frozen
from spfde.integrations.engine import Engine
from spfde.levers import EpochEnd, EpochStart, Forward
from spfde.sieving import Circular, InfoBatch
from spfde.topology import MEST

EPOCHS, SAMPLES = 4, 24
INPUTS, TARGETS = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(0)), torch.arange(SAMPLES) % 3


class Told:
    """A lever that keeps what it is told, and gives a block back."""

    needs = (EpochStart, EpochEnd)

    def __init__(self) -> None:
        self.events = []

    def on(self, event, run):
        self.events.append(event)
        if isinstance(event, EpochStart) and event.epoch == 3:
            run.unfreeze(run.frozen)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def mest(run) -> MEST:
    return MEST(run.model, run.optimizer, total_steps=run.total_steps, every=2)


def engine(model, *more) -> Engine:
    freezer = Static(model, blocks(model, INPUTS[:1]), epochs=EPOCHS, count=1, start=1)
    return Engine([mest, freezer, Circular(SAMPLES, fraction=0.25, interval=1), *more])


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [part for _ in range(3) for part in (nn.Linear(6, 6), nn.ReLU())]
    return spfde.sparsify(nn.Sequential(*layers, nn.Linear(6, 3)), 0.5)


def train(run: Engine, model: nn.Module, optimizer, first: int, last: int) -> None:
    for epoch in range(first, last):
        run.start_epoch(epoch)
        for indices in run.levers.sampler.order().split(6):
            optimizer.zero_grad()
            logits = model(INPUTS[indices])
            losses = cross_entropy(logits, TARGETS[indices], reduction="none")
            assert run.weigh(indices, logits, TARGETS[indices], losses) is None
            losses.mean().backward()
            run.backward()
            optimizer.step()
            run.stepped()
        run.end_epoch()


def begun(run: Engine, model: nn.Module):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    run.begin(model, optimizer, epochs=EPOCHS, steps=3 * EPOCHS)
    return optimizer


def test_levers_act_in_order_and_go_on_to_the_same_bits():
    model, told = network(), Told()
    run = engine(model, told)
    optimizer = begun(run, model)
    train(run, model, optimizer, 0, 3)
    block = run.blocks[0]
    assert run.frozen == (block.name,) and is_frozen(block.modules[0][1])
    kept = copy.deepcopy([run.state_dict(), model.state_dict(), optimizer.state_dict()])
    train(run, model, optimizer, 3, EPOCHS)
    assert run.frozen == () and not is_frozen(block.modules[0][1])
    kinds = [decision.kind for _, decision in run.decisions]
    assert kinds.count("freeze") == 1 and kinds.count("topology") >= 2 and kinds.count("sieve") == EPOCHS
    assert [type(event) for event in told.events] == [EpochStart, EpochEnd] * EPOCHS
    assert all(event.steps == 3 for event in told.events[::2])

    other = network()
    resumed = engine(other, Told())
    resumed.load_state_dict(kept[0])
    other.load_state_dict(kept[1])
    optimizer = begun(resumed, other)
    optimizer.load_state_dict(kept[2])
    assert resumed.frozen == (block.name,) and resumed.step == 9 and resumed.samples == 54
    train(resumed, other, optimizer, 3, EPOCHS)
    assert all(value.equal(other.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_an_engine_lacks_is_told():
    class Outputs(Told):
        needs = (Forward,)

    model = network()
    with pytest.raises(TypeError, match=r"expected levers .* got str, try lambda run"):
        Engine(["rigl"])
    with pytest.raises(ValueError, match=r"need no outputs of blocks, got Outputs, try spfde.train.fit"):
        begun(Engine([Outputs()]), model)
    bare = Engine([Told()])
    begun(bare, model)
    with pytest.raises(ValueError, match="expected example_input"):
        bare.freeze(["0"])
    with pytest.raises(ValueError, match="expected a sieve"):
        _ = bare.num_samples
    with pytest.raises(ValueError, match="looks at training passes alone"):
        bare.predictions(torch.arange(3))
    with pytest.raises(ValueError, match="expected a block of .* got 'none'"):
        engine_of_blocks = Engine([Told()], example_input=INPUTS[:1])
        begun(engine_of_blocks, model)
        engine_of_blocks.freeze(["none"])
    weighing = Engine([InfoBatch(SAMPLES, fraction=0.5, epochs=EPOCHS)])
    begun(weighing, model)
    weighing.start_epoch(0)
    losses = torch.linspace(1, 2, SAMPLES)
    order = weighing.levers.sampler.order()
    weighing.weigh(order, torch.zeros(SAMPLES, 3), TARGETS[order], losses)
    weighing.end_epoch()
    left = weighing.levers.sampler.order()
    weights = weighing.weigh(left, torch.zeros(len(left), 3), TARGETS[left], losses[: len(left)])
    assert weights.max() == 2 and len(left) < SAMPLES
