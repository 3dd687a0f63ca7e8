"""Windows of training steps with what a meter saw, and the costs of them."""

import pytest
import torch
from energy.boards import ORIN_NANO, planted
from torch import nn

from spfde.bench.workload import Workload
from spfde.energy.cost import TrainingCost, Window
from spfde.energy.meter import Meter
from spfde.energy.rails import rails_of
from spfde.energy.series import Draw, State
from spfde.energy.state import state_of
from spfde.nn import SparseLayer
from spfde.train import energy
from spfde.train.device import Device
from spfde.train.energy import Case, Plan, measure, training_step

CPU = Device.of("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(energy, "TRIAL", 0.0)


CASES = [Case("tiny", 2, sparsity, "unstructured") for sparsity in (0.0, 0.75)]


def problem(batch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    targets = torch.randint(5, (batch,))
    return Workload("tiny", network, torch.randn(batch, 3, 8, 8), lambda y: nn.functional.cross_entropy(y, targets))


class Scripted:
    """A meter that says what it was told to, in turn."""

    def __init__(self, *slowed):
        self.spans, self._slowed = [], list(slowed)

    def span(self, start, end):
        self.spans.append((start, end))
        slowed = self._slowed.pop(0) if self._slowed else ()
        return Draw(end - start, {"VDD_IN": 1.0}, 1.0), State(slowed=slowed, memory_left=100.0)


def test_joules_of_steps_by_a_board_that_draws_evenly(tmp_path):
    root = planted(ORIN_NANO, tmp_path)
    with Meter(rails_of(root), state_of(root), 0.01) as meter:
        idle, seen = meter.idle(0.2)
        costs = list(measure(problem, CASES, CPU, meter, Plan(0.2, 1), seen.memory_left))
    assert idle.watts == pytest.approx(4.96 * 1.4)
    assert [cost.sparsity for cost in costs] == [0.0, 0.75]
    for cost in costs:
        assert cost.joules() == pytest.approx(4.96 * 1.4 * cost.seconds)
        assert cost.joules(idle.watts) == pytest.approx(0, abs=1e-9)
        assert cost.windows[0].rails["VDD_SOC"] == pytest.approx(4.952 * 0.368 * cost.windows[0].seconds)
        assert cost.windows[0].state.clocks["GPU clock"] == (612e6, 612e6)
        assert (cost.shared, cost.why) == (0, "")  # the file's number stays
    assert costs[0].kernels == {}
    assert sum(costs[1].kernels.values()) == 1


def test_cases_take_turns():
    meter = Scripted()
    names = []
    made = lambda batch: (names.append(batch), problem(batch))[1]  # noqa: E731
    cases = [Case("tiny", batch, 0.0, "unstructured") for batch in (1, 3)]
    costs = last(measure(made, cases, CPU, meter, Plan(0.01, 2)))
    assert names == [1, 3, 1, 3]
    assert [len(cost.windows) for cost in costs] == [2, 2]
    assert all(first[1] <= second[0] for first, second in zip(meter.spans, meter.spans[1:], strict=False))
    assert costs[0].shared is None


def last(costs):
    """The final cost of each case."""
    return list({(cost.batch, cost.sparsity): cost for cost in costs}.values())


def test_a_case_that_fails_is_told_and_the_rest_goes_on():
    def limited(batch):
        if batch > 2:
            raise RuntimeError("out of memory")
        return problem(batch)

    said = []
    cases = [Case("tiny", batch, 0.0, "unstructured") for batch in (1, 3)]
    costs = last(measure(limited, cases, CPU, Scripted(), Plan(0.01, 2), say=said.append))
    assert [(cost.batch, len(cost.windows)) for cost in costs] == [(1, 2)]
    assert said == ["not measured: tiny, batch 3, dense: out of memory"]


def test_a_window_that_was_slowed_down_is_taken_again():
    said = []
    meter = Scripted(("heat",), (), (), ("heat",), ("heat",), ("heat",))
    dense, _ = measure(problem, CASES, CPU, meter, Plan(0.01, 1, repeats=1), say=said.append)
    assert [bool(w.state.slowed) for w in dense.windows] == [True, False]
    assert (len(dense.steady), dense.throttled) == (1, False)
    meter = Scripted(("heat",), ("heat",))
    [cost] = measure(problem, CASES[:1], CPU, meter, Plan(0.01, 1, repeats=1), say=said.append)
    assert (len(cost.windows), len(cost.steady), cost.throttled) == (2, 2, True)
    assert said.count("again: heat") == 2


def test_steps_train_the_network_and_leave_the_random_state():
    before = torch.random.get_rng_state()
    model, step = training_step(problem, CASES[1], CPU)
    assert torch.equal(before, torch.random.get_rng_state())
    [layer] = [module for module in model.modules() if isinstance(module, SparseLayer)]
    first = layer.values.detach().clone()
    step()
    assert not torch.equal(first, layer.values)
    twin, _ = training_step(problem, CASES[1], CPU)
    assert torch.equal(first, next(m for m in twin.modules() if isinstance(m, SparseLayer)).values)


def test_a_network_of_tokens_has_one_memory_format():
    def tokens(batch):
        ids = torch.randint(7, (batch, 5))
        network = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 7))
        return Workload("tokens", network, (ids,), lambda y: y.square().mean())

    [cost] = measure(tokens, [Case("tokens", 2, 0.5, "unstructured")], CPU, Scripted(), Plan(0.01, 1))
    assert cost.windows[0].steps >= 1


def test_costs_of_windows():
    windows = tuple(Window(10, 2.0, {}, joules) for joules in (20.0, 30.0, 50.0))
    cost = TrainingCost("net", 32, 0.9, "unstructured", "float32", {}, windows, 1)
    assert (cost.seconds, cost.joules(), cost.joules(5.0)) == (0.2, 3.0, 2.0)
    assert cost.steps_of_epoch(50_000) == 1563
    unknown = TrainingCost("net", 1, 0, "dense", "float32", {}, (Window(1, 1.0, {}, None, "no sensor"),), 1)
    assert (unknown.joules(), unknown.joules(5.0), unknown.why) == (None, None, "no sensor")
