"""spfde.tune: what it measures, what it leaves alone, and what it refuses."""

import copy
import pickle
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import spfde
from spfde._machine import Machine
from spfde.kernels import registry
from spfde.kernels.dispatch import in_use
from spfde.kernels.dispatch.measurement import KernelMeasurement
from spfde.nn import SparseConv2d, SparseLayer, SparseLinear
from spfde.tuning import measure as tuner

module = sys.modules["spfde.tuning.tune"]  # the package's attribute of this name is the function


class Noise(nn.Module):
    """Draws random numbers and moves a buffer even in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return x + torch.rand_like(x)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular", bias=False),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Dropout(0.5),
        Noise(),
        nn.Flatten(),
        nn.Linear(8 * 6 * 5, 10),
    )
    model = spfde.sparsify(model, 0.9, distribution="erk")
    model[2].eval()
    return model, torch.randn(4, 3, 6, 5)


def layers(model):
    return [layer for layer in model.modules() if isinstance(layer, SparseLayer)]


@pytest.fixture
def counted(monkeypatch):
    """Measures nothing and says that native is fastest; the list holds what was asked for."""
    cases = []

    def measure(case, clock, gpu=None, known=None):
        cases.append((case.layer, tuple(case.shape)))
        return KernelMeasurement(case.problem, (("native", 1.0), ("dense", 2.0))), {}

    monkeypatch.setattr(module, "measure", measure)
    return cases


def test_each_distinct_problem_is_measured_and_the_layers_use_the_table():
    model, x = network()
    table = spfde.tune(model, x, repeats=1)
    problems = [layer.choice.problem for layer in layers(model)]
    assert [entry.problem for entry in table.entries] == list(dict.fromkeys(problems))
    assert table.machine == Machine.of_cpu()
    for entry in table.entries:
        assert dict(entry.seconds).keys() == {"native", "dense"}
        assert all(seconds > 0 for _, seconds in entry.seconds)
    for layer in layers(model):
        assert layer.table == table
        assert layer.choice.reason.endswith(f"(table {table.name})")
        assert layer.kernel == table.measured(layer.choice.problem).kernel


def test_layers_with_the_same_problem_are_measured_once(counted):
    model = nn.Sequential(*[spfde.sparsify(nn.Linear(6, 6), 0.5, seed=seed) for seed in range(3)])
    table = spfde.tune(model, torch.randn(2, 6))
    assert counted == [(model[0], (2, 6))]
    assert len(table.entries) == 1


def test_a_layer_used_at_two_sizes_is_two_problems(counted):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = spfde.sparsify(nn.Linear(6, 6), 0.5)

        def forward(self, x, y):
            return self.layer(x=x).sum() + self.layer(y).sum()

    model = Twice()
    table = spfde.tune(model, (torch.randn(2, 6), torch.randn(3, 5, 6)))
    assert counted == [(model.layer, (2, 6)), (model.layer, (15, 6))]
    assert [entry.problem.batch for entry in table.entries] == [2, 15]


def test_nothing_of_the_model_changes():
    model, x = network()
    native, dense, *_ = layers(model)
    native.kernel, dense.kernel = "native", "dense"
    model(x).square().sum().backward()
    spfde.freezing.freeze(model[1])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    objects = {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    versions = {name: value._version for name, value in [*model.named_parameters(), *model.named_buffers()]}
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    modes = {name: m.training for name, m in model.named_modules()}
    needs = {name: p.requires_grad for name, p in model.named_parameters()}
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    before = x.clone()

    spfde.tune(model, x, repeats=1, threads=2)

    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert objects == {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    moved = [name for name, t in [*model.named_parameters(), *model.named_buffers()] if t._version != versions[name]]
    assert moved == ["7.count"]  # put back
    assert grads.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.equal(p.grad, grads[name]) for name, p in model.named_parameters() if name in grads)
    assert modes == {name: m.training for name, m in model.named_modules()}
    assert needs == {name: p.requires_grad for name, p in model.named_parameters()}
    assert spfde.freezing.is_frozen(model[1])
    assert torch.equal(random, torch.get_rng_state())
    assert threads == torch.get_num_threads()
    assert torch.equal(x, before)
    assert x.grad is None
    assert not any(m._forward_hooks for m in model.modules())
    assert dense.choice.reason == "forced by layer.kernel"
    assert native.plan._dense is None  # no scratch of the dense route stays where it is not run


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_the_callers_context_does_not_matter(context):
    model, x = network()
    with context():
        table = spfde.tune(model, x, repeats=1)
    assert len(table.entries) == 4


def test_lower_precision_is_measured_as_it_is_computed(counted):
    model = spfde.sparsify(nn.Linear(6, 6), 0.5).bfloat16()
    spfde.tune(model, torch.randn(2, 6, dtype=torch.bfloat16))
    assert len(counted) == 1
    assert model(torch.randn(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("make", [
    lambda: SparseLinear.from_dense(nn.Linear(7, 5), torch.rand(5, 7) < 0.5),
    lambda: SparseLinear.from_dense(nn.Linear(7, 5, bias=False).bfloat16(), torch.zeros(5, 7, dtype=torch.bool)),
    lambda: SparseConv2d.from_dense(nn.Conv2d(7, 5, (1, 3), 2, groups=1), torch.ones(5, 7, 1, 3, dtype=torch.bool)),
])  # fmt: skip
def test_a_step_runs_forward_and_backward_with_every_candidate(make):
    layer = make()
    shape = torch.Size((3, 7, 4, 6) if layer.window.kernel != (1, 1) else (2, 3, 7))
    case = tuner.Case(None, layer, shape, torch.float32, torch.contiguous_format, ("native", "dense"))
    native, dense = (tuner.ops_of(case, kernel, layer.plan) for kernel in case.kernels)
    for op in ("forward", "input_grad", "weight_grad", "step"):
        assert tuner.same(native[op](), dense[op]())  # the candidates are timed on the same work
    grads = native["step"]()
    assert [tuple(g.shape) for g in grads[:2]] == [tuple(shape), tuple(layer.values.shape)]
    assert len(grads) == 2 + (layer.bias is not None)
    assert bool(grads[0].any()) == bool(layer.nnz)
    for alone, both in zip((native["input_grad"]()[0], native["weight_grad"]()[0]), grads[:2], strict=True):
        torch.testing.assert_close(alone, both)


def test_a_table_is_extended_and_not_measured_again(counted):
    model, x = network()
    first = spfde.tune(model, x)
    assert len(counted) == 4
    assert spfde.tune(model, x, table=first) == first
    assert len(counted) == 4
    second = spfde.tune(model, x[:2], table=first)
    assert len(counted) == 8
    assert second.entries[:4] == first.entries
    assert layers(model)[0].table is second


def test_measurements_decide_and_none_gives_the_rule_back(counted):
    model = spfde.sparsify(nn.Linear(64, 64), 0.5)
    x = torch.randn(128, 64)
    expected = model(x)
    table = spfde.tune(model, x)
    dense = replace(table, entries=(KernelMeasurement(table.entries[0].problem, (("native", 2.0), ("dense", 1.0))),))
    for used, kernel in ((table, "native"), (dense, "dense")):
        spfde.use_table(used, model)
        torch.testing.assert_close(model(x), expected)
        assert model.kernel == kernel
    model.kernel = "reference"
    assert model.kernel == "reference"
    model.kernel = "auto"
    assert model.choice.reason.endswith(f"(table {dense.name})")
    spfde.use_table(None, model)
    assert model.table is None
    assert model.choice.reason.startswith("predicted")


def test_a_table_travels_with_copies_but_not_with_weights(counted, monkeypatch):
    model, x = network()
    keys = model.state_dict().keys()
    table = spfde.tune(model, x)
    assert model.state_dict().keys() == keys
    monkeypatch.setattr(in_use, "_known", {})  # as in a process that has not seen the table
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(x)
        assert {layer.table.name for layer in layers(other)} == {table.name}
        assert all(f"(table {table.name})" in layer.choice.reason for layer in layers(other))
    dense = spfde.densify(model)
    assert not layers(dense)


def test_a_compiled_model_runs_the_measured_kernels(counted, monkeypatch):
    model = spfde.sparsify(nn.Linear(256, 256), 0.1)
    x = torch.randn(64, 256, requires_grad=True)
    model(x)
    assert model.kernel == "dense"
    spfde.tune(model, x)
    monkeypatch.setattr(type(registry.get("dense")), "products", {})  # it cannot run
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for run in (compiled, model):
        x.grad = None
        run(x).square().sum().backward()
        grads = [x.grad.clone(), model.values.grad.clone()]
        model.values.grad = None
        if run is compiled:
            first = grads
    for one, other in zip(first, grads, strict=True):
        assert torch.equal(one, other)


def test_a_compiled_model_can_be_tuned(counted):
    model = spfde.sparsify(nn.Linear(24, 16), 0.5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    table = spfde.tune(compiled, torch.randn(8, 24))
    assert len(table.entries) == 1
    assert model.table is table


def test_the_summary_tells_the_table_and_the_share_of_the_work(counted):
    model = nn.Sequential(spfde.sparsify(nn.Linear(8, 8), 0.5), nn.ReLU(), spfde.sparsify(nn.Linear(8, 24), 0.5))
    before = spfde.summary(model)
    assert (before.sparse_work_share, before.tables) == (0.0, ())
    assert [row.multiply_adds for row in before.rows] == [0, 0]
    table = spfde.tune(model, torch.randn(4, 8))
    model[0].kernel = "dense"
    summary = spfde.summary(model)
    assert [row.multiply_adds for row in summary.rows] == [4 * 64, 4 * 192]
    assert (summary.sparse_share, summary.sparse_work_share) == (0.5, 0.75)
    assert summary.tables == (table.name,)
    assert "1 of 2 sparse layers run a sparse kernel (50%), with 75% of their multiply-adds" in str(summary)
    assert str(summary).endswith(f"kernels measured in table {table.name}")


@pytest.mark.parametrize("option", ["repeats", "threads"])
@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2"])
def test_counts_must_be_positive_whole_numbers(option, value):
    model, x = network()
    with pytest.raises(ValueError, match=option):
        spfde.tune(model, x, **{option: value})
    assert all(layer.table is None for layer in layers(model))


def test_a_table_from_elsewhere_is_not_extended(counted):
    model, x = network()
    table = spfde.tune(model, x)
    spfde.use_table(None, model)
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match=f"threads {threads + 1}"):
        spfde.tune(model, x, table=table, threads=threads + 1)
    assert all(layer.table is None for layer in layers(model))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Linear(4, 4), torch.randn(2, 4)),
        (nn.Sequential(), torch.randn(2, 4)),
        (spfde.sparsify(nn.Linear(4, 4), 0.5).double(), torch.randn(2, 4, dtype=torch.float64)),
    ],
)
def test_a_model_without_a_choice_is_refused(model, x):
    with pytest.raises(ValueError, match="sparse layers"):
        spfde.tune(model, x)


def test_use_table_takes_a_file_and_refuses_what_is_no_table_or_no_sparse_model(counted, tmp_path):
    model = spfde.sparsify(nn.Linear(4, 4), 0.5)
    table = spfde.tune(model, torch.randn(2, 4))
    table.save(tmp_path / "table.json")
    spfde.use_table(str(tmp_path / "table.json"), model)
    assert model.table == table
    for wrong, error in (((model, table), TypeError), ((table, nn.Linear(4, 4)), ValueError)):
        with pytest.raises(error):
            spfde.use_table(*wrong)
    with pytest.raises(FileNotFoundError):
        spfde.use_table(tmp_path / "none.json", model)
    assert model.table == table


def test_a_model_that_fails_is_left_as_it_was():
    model, x = network()
    random, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    with pytest.raises(ValueError, match="x of shape"):
        spfde.tune(model, x[:, :2])
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert all(layer.table is None for layer in layers(model))


# ---- on a GPU, as far as a CPU can tell ------------------------------------------------------------------------------


@pytest.fixture
def as_on_a_gpu(counted, monkeypatch):
    """A model's sparse layers count as on a GPU, where Triton runs blocks of 16."""
    monkeypatch.setattr(module, "_device", lambda model: torch.device("cuda"))
    monkeypatch.setattr(module, "gpu_at", lambda device: None)
    monkeypatch.setattr(Machine, "of_gpu", lambda: Machine("0.1.0", "2.11.0", gpu="NVIDIA H200", triton="3.6.0"))

    def candidates(device, dtype, problem):
        return ("triton", "dense") if problem.block == (16, 16) and dtype != torch.float64 else ()

    monkeypatch.setattr(module, "candidates", candidates)

    def measure(case, clock, gpu, known):
        return KernelMeasurement(case.problem, tuple((name, 1.0) for name in case.kernels)), {}

    monkeypatch.setattr(module, "measure", measure)


def test_on_a_gpu_blocks_are_measured_and_the_table_names_it(as_on_a_gpu):
    model = nn.Sequential(
        spfde.sparsify(nn.Linear(32, 32), 0.5, pattern="block:16x16"), spfde.sparsify(nn.Linear(32, 8), 0.5)
    )
    table = spfde.tune(model, torch.randn(4, 32))
    assert table.machine == Machine("0.1.0", "2.11.0", gpu="NVIDIA H200", triton="3.6.0")
    assert [(e.problem.block, dict(e.seconds)) for e in table.entries] == [((16, 16), {"triton": 1.0, "dense": 1.0})]
    assert all(layer.table == table for layer in layers(model))
    assert spfde.tune(model, torch.randn(4, 32), table=table) == table


def test_what_a_gpu_cannot_honour_is_refused(as_on_a_gpu):
    model = spfde.sparsify(nn.Linear(32, 32), 0.5, pattern="block:16x16")
    with pytest.raises(ValueError, match="threads"):
        spfde.tune(model, torch.randn(4, 32), threads=2)
    with pytest.raises(ValueError, match="gpu NVIDIA H200.*gpu none"):
        spfde.tune(model, torch.randn(4, 32), table=module.Table(Machine.of_cpu(), ()))
    assert model.table is None


def test_layers_on_two_devices_are_refused():
    model = nn.Sequential(*(spfde.sparsify(nn.Linear(6, 6), 0.5) for _ in range(2)))
    model[1].to("meta")
    with pytest.raises(ValueError, match="cpu, meta"):
        spfde.tune(model, torch.randn(2, 6))


def test_kernels_are_timed_in_turn_by_the_devices_clock(monkeypatch):
    layer = spfde.sparsify(nn.Linear(6, 6), 0.5)
    asked = []

    def medians(calls, rounds, device):
        asked.append((list(calls), rounds, device))
        return {name: 2.0 if call()[0].shape == (4, 6) else 0.0 for name, call in calls.items()}

    monkeypatch.setattr(tuner.timing, "medians", medians)
    layer(torch.randn(4, 6))
    case = tuner.Case(
        layer.choice.problem, layer, torch.Size((4, 6)), torch.float32, torch.contiguous_format, ("dense", "native")
    )
    entry, refused = tuner.measure(case, tuner.plain_clock(5, "cpu"))
    assert (entry.seconds, entry.launches, refused) == ((("dense", 2.0), ("native", 2.0)), (), {})
    assert [(trial.op, trial.kernel, trial.launch) for trial in asked[0][0]] == [
        ("step", "dense", None), ("step", "native", None),
    ]  # fmt: skip
    assert asked[0][1:] == (5, "cpu")
