"""Tables of measured kernels: what settles a problem, what is saved, and what is refused."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from kernels.problems import choose_linear

import spfde
from spfde._machine import Machine
from spfde.kernels import cuda
from spfde.kernels.dispatch import in_use, table_file
from spfde.kernels.dispatch import rule as dispatch
from spfde.kernels.dispatch.in_use import use
from spfde.kernels.dispatch.measurement import KernelMeasurement, Launch
from spfde.kernels.dispatch.table import Table
from spfde.kernels.gpu import GPUS, Config
from spfde.kernels.problem import EMPTY, Problem
from spfde.kernels.triton import kernel as triton_kernel
from spfde.sparse.kernel_index import Window

LINEAR = Problem(128, (256, 512), 16)
CONV = Problem(64, (8, 4, 3, 5), 24, (4, 1), Window((3, 5), (2, 1), (1, 0, 1, 1), (1, 2), 2), (7, 6))
NATIVE, DENSE = {"native": 1e-3, "dense": 3e-3}, {"native": 5e-3, "dense": 4e-3}


def table(*entries):
    machine = Machine("0.1.0", "2.13.0", "a CPU", "avx2", 2)
    return Table(machine, tuple(KernelMeasurement(problem, tuple(seconds.items())) for problem, seconds in entries))


def here(*entries):
    return replace(table(*entries), machine=Machine.of_cpu())


def at(bucket):
    return LINEAR._replace(bucket=bucket)


def kernel(measured, bucket):
    entry = measured.measured(at(bucket))
    return None if entry is None else entry.kernel


def chosen_for(problem, measured):
    """The choice on this CPU with a table, or without one."""
    return dispatch.choose("auto" if measured is None else use(measured), "cpu", torch.float32, problem)


def test_the_fastest_kernel_is_chosen_and_the_reason_names_the_table():
    both = table((LINEAR, NATIVE), (CONV, DENSE))
    choice = chosen_for(LINEAR, both)
    assert choice.kernel == "native"
    assert choice.reason == f"measured 3.0x the masked dense product at density 0.25 (table {both.name})"
    choice = chosen_for(CONV, both)
    assert choice.kernel == "dense"
    assert choice.reason.startswith("measured 0.8x the masked dense product")
    assert both.name == f"avx2-2t-{both.digest}"
    assert len(both.digest) == 12


def test_what_was_not_measured_is_left_to_the_cost_model():
    other = LINEAR._replace(batch=127)
    choice, predicted = (chosen_for(other, t) for t in (table((LINEAR, DENSE)), None))
    assert choice.kernel == predicted.kernel
    assert choice.reason.startswith(predicted.reason)
    assert "(not in table avx2-2t-" in choice.reason


@pytest.mark.parametrize("field", ["batch", "shape", "block"])
def test_a_problem_must_match_in_everything_but_its_density(field):
    other = LINEAR._replace(**{field: {"batch": 64, "shape": (256, 513), "block": (4, 1)}[field]})
    assert table((LINEAR, NATIVE)).measured(other) is None


def test_a_measurement_settles_the_densities_that_leave_no_doubt():
    measured = table((at(16), NATIVE), (at(8), DENSE))
    assert [kernel(measured, b) for b in (0, 7, 8, 9, 15, 16, 17, EMPTY)] == [
        *["dense"] * 3, None, None, *["native"] * 3,
    ]  # fmt: skip
    assert measured.measured(at(40)).density == at(16).density


@pytest.mark.parametrize("order", [1, -1])
def test_contradicting_measurements_still_never_turn_dense_into_native(order):
    entries = [(at(8), DENSE), (at(12), NATIVE), (at(20), DENSE), (at(30), NATIVE), (at(40), DENSE)]
    measured = table(*entries[::order])
    chosen = [chosen_for(at(bucket), measured).kernel for bucket in range(EMPTY, -1, -1)]
    assert chosen == sorted(chosen, reverse=True)
    assert kernel(measured, 12) == "native"
    assert kernel(measured, 8) == "dense"


def test_a_table_settles_no_layer_of_another_shape():
    backward = LINEAR._replace(shape=(512, 256))
    assert table((LINEAR, NATIVE)).measured(backward) is None
    assert table((LINEAR, NATIVE), (backward, DENSE)).measured(backward).kernel == "dense"
    assert table((CONV, NATIVE)).measured(CONV._replace(shape=(4, 8, 3, 5))) is None


def test_the_name_changes_with_every_measurement():
    tables = [
        table((LINEAR, NATIVE)),
        table((LINEAR, {**NATIVE, "dense": 3.1e-3})),
        table((at(17), NATIVE)),
        table((LINEAR, NATIVE), (CONV, NATIVE)),
        replace(table((LINEAR, NATIVE)), machine=replace(table().machine, cpu="another")),
    ]
    assert len({t.digest for t in tables}) == len(tables)
    assert table((LINEAR, NATIVE)).digest == tables[0].digest
    assert table((LINEAR, NATIVE)).with_entries(table((CONV, NATIVE)).entries) == tables[3]


def test_a_saved_table_comes_back_the_same(tmp_path):
    saved = here((LINEAR, {"native": 1 / 3, "dense": 0.1}), (CONV, DENSE))
    saved.save(tmp_path / "table.json")
    loaded = Table.load(tmp_path / "table.json")
    assert loaded == saved
    assert loaded.name == saved.name
    assert loaded.measured(CONV) == saved.entries[1]


@pytest.mark.parametrize("field", ["spfde", "torch", "cpu", "isa", "threads"])
def test_a_table_of_another_machine_is_refused_unless_allowed(field, tmp_path):
    mine = here((LINEAR, NATIVE))
    value = mine.machine.threads + 1 if field == "threads" else "other"
    other = replace(mine, machine=replace(mine.machine, **{field: value}))
    other.save(tmp_path / "table.json")
    here_value = asdict(mine.machine)[field]
    with pytest.raises(ValueError) as error:
        Table.load(tmp_path / "table.json")
    assert f"{field} {here_value}" in str(error.value) and f"{field} {value}" in str(error.value)
    assert Table.load(tmp_path / "table.json", allow_other_machine=True) == other


def broken(change):
    values = {"machine": Machine.of_cpu().to_dict(), "entries": []}
    launch = {"op": "forward", "outputs": 64, **Config(128, 64, 4, 3)._asdict()}
    entry = {**LINEAR._asdict(), "window": LINEAR.window._asdict(), "seconds": dict(NATIVE), "launches": [launch]}
    values["entries"].append(entry)
    change(values, entry)
    return json.dumps(values)


@pytest.mark.parametrize(
    "change",
    [
        lambda v, e: v.pop("machine"),
        lambda v, e: v["machine"].pop("cpu"),
        lambda v, e: v["machine"].update(speed=1),
        lambda v, e: v["machine"].update(gpu="NVIDIA H200", triton="3.6.0"),
        lambda v, e: v.update(machine={"spfde": "0.1.0", "torch": "2.11.0", "gpu": "NVIDIA H200"}),
        lambda v, e: e.update(dtype="float64"),
        lambda v, e: e.update(dtype=["float32"]),
        lambda v, e: v.update(entries=3),
        lambda v, e: v.update(entries=[3]),
        lambda v, e: e.pop("seconds"),
        lambda v, e: e.pop("window"),
        lambda v, e: e.pop("bucket"),
        lambda v, e: e.update(bucket=EMPTY + 1),
        lambda v, e: e.update(bucket=-1),
        lambda v, e: e.update(bucket=True),
        lambda v, e: e.update(batch="128"),
        lambda v, e: e.update(shape=[3, 4, 5]),
        lambda v, e: e.update(shape=[3.0, 4]),
        lambda v, e: e.update(color=1),
        lambda v, e: e["window"].update(padding=None),
        lambda v, e: e["seconds"].pop("dense"),
        lambda v, e: e["seconds"].pop("native"),
        lambda v, e: e["seconds"].update(fast=1.0),
        lambda v, e: e["seconds"].update(native=0.0),
        lambda v, e: e["seconds"].update(native=-1.0),
        lambda v, e: e["seconds"].update(native=float("nan")),
        lambda v, e: e["seconds"].update(native=None),
        lambda v, e: e.update(launches=3),
        lambda v, e: e["launches"][0].pop("depth"),
        lambda v, e: e["launches"][0].update(op="step"),
        lambda v, e: e["launches"][0].update(tokens=48),
        lambda v, e: e["launches"][0].update(stages=0),
        lambda v, e: e["launches"][0].update(outputs=16.0),
    ],
)
def test_a_file_that_is_no_table_is_refused(change, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(broken(lambda v, e: None))
    launches = (Launch("forward", 64, Config(128, 64, 4, 3)),)
    assert Table.load(path).entries == (KernelMeasurement(LINEAR, tuple(NATIVE.items()), launches),)
    path.write_text(broken(change))
    with pytest.raises(ValueError, match=r"table\.json"):
        Table.load(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Table.load(tmp_path / "none.json")
    for text in ("", "{", "[]", "3", "null"):
        (tmp_path / "table.json").write_text(text)
        with pytest.raises(ValueError, match=r"table\.json"):
            Table.load(tmp_path / "table.json")


def test_the_ops_know_a_table_in_use_by_its_name():
    mine = here((LINEAR, DENSE))
    args = ("cpu", torch.float32, 128, (256, 512), 256 * 512 // 4)
    with pytest.raises(ValueError, match="expected kernel"):
        choose_linear(mine.name, *args)
    assert use(mine) == mine.name
    assert choose_linear(mine.name, *args).kernel == "dense"
    assert choose_linear("auto", *args).kernel == "native"
    assert choose_linear(mine.name, "cuda", *args[1:]).kernel == "dense"
    assert choose_linear(mine.name, "cpu", torch.float64, *args[2:]).kernel == "reference"


# ---- on a GPU --------------------------------------------------------------------------------------------------------

GPU = Machine("0.1.0", "2.11.0", gpu="NVIDIA H200", triton="3.6.0")
HALF = LINEAR._replace(block=(64, 64), dtype="bfloat16")
TRITON = {"triton": 1e-3, "dense": 3e-3}


@pytest.fixture
def h200(monkeypatch):
    """What dispatch asks of a machine with an H200 and triton, where spfde was built without nvcc."""
    monkeypatch.setattr(triton_kernel, "why_not", lambda device: None)
    monkeypatch.setattr(cuda, "load", lambda: ImportError("no native core"))
    for module in (triton_kernel, dispatch):
        monkeypatch.setattr(module, "gpu_here", lambda: GPUS["NVIDIA H200"])
    monkeypatch.setattr(in_use, "_process", {})
    dispatch.forget()
    yield monkeypatch
    dispatch.forget()


def gpu_table(problem, seconds, machine=GPU):
    return Table(machine, (KernelMeasurement(problem, tuple(seconds.items())),))


def on_gpu(route, dtype=torch.bfloat16, problem=HALF, device="cuda"):
    stored = int(problem.density * 256 * 512)
    return choose_linear(route, device, dtype, problem.batch, problem.shape, stored, problem.block)


def test_a_table_of_a_gpu_decides_there(h200):
    for seconds, kernel in ((TRITON, "triton"), ({"triton": 3e-3, "dense": 1e-3}, "dense")):
        mine = gpu_table(HALF, seconds)
        choice = on_gpu(use(mine))
        assert choice.problem == HALF
        assert choice.kernel == kernel
        assert choice.reason.startswith("measured") and choice.reason.endswith(f"(table {mine.name})")
    assert mine.name == f"nvidia-h200-{mine.digest}"


def test_a_table_of_a_gpu_is_for_its_precision_its_gpu_and_what_can_run(h200):
    name = use(gpu_table(HALF, TRITON))
    for other in (on_gpu(name, torch.float16), on_gpu(use(gpu_table(HALF, TRITON, replace(GPU, gpu="another"))))):
        assert other.reason.startswith("predicted")
    assert on_gpu(name, device="cpu").reason.startswith("predicted")
    mine = here((LINEAR, NATIVE))
    assert on_gpu(use(mine), torch.float32, LINEAR._replace(block=(64, 64))).reason.startswith("predicted")
    assert on_gpu(name, torch.float64).kernel == "reference"
    h200.setattr(triton_kernel, "why_not", lambda device: "triton is not installed")
    dispatch.forget()
    assert (
        on_gpu(name).reason
        == "no sparse kernel here: spfde was built without nvcc, so without CUDA C++ kernels; triton is not installed"
    )


def test_what_can_be_measured(h200):
    assert dispatch.candidates("cpu", torch.float32, LINEAR) == ("native", "dense")
    assert dispatch.candidates("cuda", torch.bfloat16, LINEAR) == ("triton", "dense")
    for device, dtype, problem in (
        ("cpu", torch.float64, LINEAR),
        ("cuda", torch.float64, HALF),
        ("cuda", torch.float16, CONV),  # blocks without a kernel
        ("cuda", torch.float16, LINEAR._replace(block=(1, 512))),  # whole outputs: one way to run
    ):
        assert dispatch.candidates(device, dtype, problem) == ()


def test_a_table_of_a_gpu_survives_its_file_and_is_refused_elsewhere(tmp_path):
    mine = gpu_table(HALF, TRITON)
    mine.save(tmp_path / "table.json")
    kept = json.loads((tmp_path / "table.json").read_text())
    assert kept["machine"] == {"spfde": "0.1.0", "torch": "2.11.0", "gpu": "NVIDIA H200", "triton": "3.6.0"}
    assert kept["entries"][0]["dtype"] == "bfloat16"
    loaded = Table.load(tmp_path / "table.json", allow_other_machine=True)
    assert (loaded, loaded.name) == (mine, mine.name)
    with pytest.raises(ValueError, match="gpu none.*gpu NVIDIA H200"):
        Table.load(tmp_path / "table.json")


def test_on_a_gpu_a_problem_follows_its_family(h200):
    near, far = HALF._replace(batch=200, shape=(300, 600)), HALF._replace(batch=256)
    mine = gpu_table(HALF, TRITON)
    assert mine.measured(near).problem == HALF
    assert mine.knows(near) and not mine.knows(far)
    assert mine.measured(near._replace(bucket=0)) is None  # it may lose there
    own = KernelMeasurement(near, (("triton", 2.0), ("dense", 1.0)))
    assert mine.with_entries([own]).measured(near) == own  # its own goes first
    for other in (far, HALF._replace(dtype="float16"), HALF._replace(block=(32, 64))):
        assert mine.measured(other) is None
    assert here((LINEAR, NATIVE)).measured(LINEAR._replace(batch=129)) is None  # a CPU's caches know no families


# ---- in use in the process -------------------------------------------------------------------------------------------

ARGS = ("cpu", torch.float32, 128, (256, 512), 256 * 512 // 4)


@pytest.fixture
def nothing_in_use(monkeypatch):
    monkeypatch.delenv(in_use.VARIABLE, raising=False)
    monkeypatch.setattr(in_use, "_known", {})
    monkeypatch.setattr(in_use, "_process", {})
    in_use._from_environment.cache_clear()
    dispatch.forget()
    yield monkeypatch
    monkeypatch.undo()
    in_use._from_environment.cache_clear()
    in_use.launch.cache_clear()
    dispatch.forget()


def test_a_file_decides_for_the_process_until_another_does(nothing_in_use, tmp_path):
    mine = here((LINEAR, DENSE))
    mine.save(tmp_path / "table.json")
    assert choose_linear("auto", *ARGS).kernel == "native"
    before = dispatch.generation
    spfde.use_table(tmp_path / "table.json")
    assert dispatch.generation > before and in_use.process_tables() == [mine.name]
    assert choose_linear("auto", *ARGS).kernel == "dense"
    spfde.use_table(here((LINEAR, NATIVE)))
    assert choose_linear("auto", *ARGS).reason.startswith("measured 3.0x")
    spfde.use_table(None)
    assert in_use.process_tables() == []
    assert choose_linear("auto", *ARGS).reason.startswith("predicted")


def test_a_folder_gives_the_tables_of_this_machine(nothing_in_use, tmp_path):
    here((LINEAR, DENSE)).save(tmp_path / "a.json")
    here((CONV, NATIVE)).save(tmp_path / "b.json")
    table((LINEAR, NATIVE)).save(tmp_path / "other.json")
    spfde.use_table(tmp_path)
    both = here((LINEAR, DENSE), (CONV, NATIVE))
    assert in_use.process_tables() == [both.name]
    for name in "ab":
        (tmp_path / f"{name}.json").unlink()
    with pytest.raises(ValueError, match="this machine"):
        spfde.use_table(tmp_path)
    assert in_use.process_tables() == [both.name]


def test_the_variable_names_a_table_and_a_layers_own_goes_first(nothing_in_use, tmp_path):
    here((LINEAR, DENSE)).save(tmp_path / "table.json")
    nothing_in_use.setenv(in_use.VARIABLE, str(tmp_path / "table.json"))
    assert choose_linear("auto", *ARGS).kernel == "dense"
    own = use(here((LINEAR, NATIVE)))
    assert choose_linear(own, *ARGS).kernel == "native"
    spfde.use_table(here((LINEAR, NATIVE)))
    spfde.use_table(None)
    assert choose_linear(own, *ARGS).reason.startswith("measured")  # the layer's stays
    assert choose_linear("native", *ARGS).reason.startswith("forced")
    nothing_in_use.setenv(in_use.VARIABLE, str(tmp_path / "none"))
    in_use._from_environment.cache_clear()
    dispatch.forget()
    with pytest.raises(ValueError, match=in_use.VARIABLE):
        choose_linear("auto", *ARGS)


def test_tables_of_a_cpu_keep_their_files_and_names():
    kept = table_file._to_json(table().machine, table((LINEAR, NATIVE)).entries)
    assert kept["machine"].keys() == {"spfde", "torch", "cpu", "isa", "threads"}
    assert "dtype" not in kept["entries"][0]
    assert table((LINEAR, NATIVE), (CONV, DENSE)).digest == "2c980db31538"
