"""Training through compiled code: its numbers, its place at freezes, and a probe that must not run through it."""

from functools import partial

import pytest
import torch
from train.runs import recipe

from spfde.freezing import Compiled
from spfde.levers import EpochStart, Forward
from spfde.train import session


@pytest.fixture
def graphs(monkeypatch):
    """Every graph that is compiled, by a backend that runs it as it is."""
    made = []

    def backend(graph, example_inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(session, "Compiled", partial(Compiled, backend=backend))
    yield made
    torch.compiler.reset()


class FreezeOnce:
    """Freezes the first block before the second epoch, and looks at what the blocks return."""

    needs = (EpochStart, Forward)

    def __init__(self):
        self.seen = []

    def on(self, event, run):
        if isinstance(event, Forward):
            self.seen.append({name: output.shape for name, output in event.outputs.items()})
        elif event.epoch == 1:
            run.freeze([run.blocks[0].name])

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_compiled_run_is_the_eager_one(graphs, task):
    fields = {"epochs": 2, "batch_size": 30, "lr": 0.05, "topology": "rigl", "freeze": 0, "sieve": 0}
    levers = [FreezeOnce() for _ in range(2)]
    eager, compiled = (task.fit(recipe(compile=bool(i), **fields), levers=[lever]) for i, lever in enumerate(levers))
    assert len(graphs) >= 2  # once, and again after the freeze
    assert levers[0].seen == levers[1].seen and len(levers[0].seen) == 6 and len(levers[0].seen[0]) == 3
    assert compiled.epochs[-1].frozen == eager.epochs[-1].frozen != ()
    for ours, theirs in zip(compiled.epochs, eager.epochs, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)
        assert ours.layers == theirs.layers


@pytest.mark.parametrize("topology", ["top-kast", "snfs", "dst-ee"])
def test_methods_that_watch_the_backward_pass_do_so_in_a_compiled_run(graphs, task, topology):
    fields = {"epochs": 2, "batch_size": 30, "lr": 0.05, "topology": topology, "freeze": 0, "sieve": 0}
    eager, compiled = (task.fit(recipe(compile=on, **fields)) for on in (False, True))
    assert compiled.epochs[-1].train_loss == pytest.approx(eager.epochs[-1].train_loss, rel=1e-3)
