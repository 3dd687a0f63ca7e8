"""`spfde bench`: options, tables, files, what does not go together, and what is left of an interrupted run."""

import json
import re

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from spfde import bench, cli
from spfde.bench import layer_variants, measuring
from spfde.cli.bench_run import energy
from spfde.energy.rails import Rails
from spfde.tuning.timing import TimeLimit

TINY = "--linear 32x48 --batch 4 --repeats 2 --passes 1 --device cpu --sparsity 0.5"


def spfde(arguments, columns=200):
    return CliRunner().invoke(cli.build("bench"), ["bench", *arguments.split()], env={"COLUMNS": str(columns)})


def told(arguments):
    result = spfde(arguments)
    assert isinstance(result.exception, ValueError | ImportError | OSError), result.output
    return str(result.exception)


def test_help_names_every_flag():
    text = re.sub(r"\s+", " ", spfde("--help").output.replace("│", " "))
    flags = "model linear conv input batch size layers pattern sparsity dtype device threads kernels compiled repeats"
    for flag in f"{flags} passes json against tune table seconds".split():
        assert f"--{flag} " in text


def test_a_table_and_a_file(tmp_path):
    path = tmp_path / "deep" / "bench.json"
    result = spfde(f"{TINY} --sparsity 0.75 --conv 16x8x3x3@4 --kernels --json {path}")
    assert result.exit_code == 0, result.output
    assert "linear 32x48 on 4" in result.output and "conv 16x8x3x3@4 on 4" in result.output
    assert len(re.findall(r"^0\.75? .*x", result.output, re.M)) == 6
    assert "not timed: linear 32x48 on 4 triton" in result.output
    kept = bench.load(path)
    assert kept.finished and kept.repeats == 2 and kept.machine["torch"] == torch.__version__
    row = next(row for row in kept.rows if row.variant == "native")
    assert list(row.seconds) == ["forward", "input_grad", "weight_grad", "step"] and len(row.seconds["step"]) == 2
    assert row.flops["step"] == 3 * 2 * 4 * 32 * 48 and row.density == 0.5 and row.size > 0
    assert kept.speedup(row).value > 0 and row.effective("forward") > 0


def test_energy_is_told_or_why_not():
    nobody, sensor = Rails((), (), "", {"board": "no monitor"}), Rails((), ("gpu",), "GPU")
    assert energy(nobody) == "energy not available: board: no monitor"
    assert energy(sensor) == "energy (GPU): spfde bench --device-profile FILE has the joules of a step"
    assert re.search(r"^energy ", spfde(TINY).output, re.M)


def test_a_narrow_terminal_cuts_no_figure():
    result = spfde("--conv 16x8x3x3@4 --batch 1 --repeats 1 --passes 1 --device cpu --sparsity 0.95", columns=80)
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"\d+\.\d\dx", result.output)) >= 12


def test_a_network_and_its_layers(tmp_path):
    path = tmp_path / "net.json"
    result = spfde(
        f"--model resnet20 --size 8 --batch 2 --repeats 1 --passes 1 --sparsity 0.9 --device cpu --json {path}"
    )
    assert result.exit_code == 0, result.output
    kept = bench.load(path)
    network = [row for row in kept.rows if row.kind == "network"]
    assert [row.variant for row in network] == ["dense contiguous", "dense channels_last", "auto"]
    assert list(network[-1].seconds) == ["step", "forward", "backward", "optimizer", "frozen"]
    assert all(row.peak > 0 and row.size > 0 and not row.absent for row in network)
    assert kept.speedup(network[-1], "frozen").value > 0
    assert sum(row.count for row in kept.rows if row.of and row.variant == "auto") == 18


def test_a_network_of_anybody(tmp_path, monkeypatch):
    (tmp_path / "my_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 4))\n"
        "def both():\n    return build(), torch.randn(3, 8)\n"
    )
    monkeypatch.chdir(tmp_path)
    for flags in ("--model my_net:both", "--model my_net:build --input 8 --batch 5"):
        result = spfde(f"{flags} --repeats 1 --sparsity 0.5 --device cpu")
        assert result.exit_code == 0, result.output
        assert re.search(r"(both on 3|build on 5): float32", result.output)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--linear 3", "--linear"),
        ("--linear 3x4x5", "--linear"),
        ("--conv 3x4x3x3", "--conv"),
        ("--conv 3x4x3x3@8g2", "groups"),
        ("--model resnet31", "resnet32"),
        ("--model no_such_module:net", "no_such_module"),
        ("--model torch:no_such_net", "no_such_net"),
        ("--model torch.nn:ReLU", "--input"),
        ("--model math:pi --input 3", "nn.Module"),
        ("--model torch.nn:ReLU --size 4", "--size"),
        ("--model resnet20 --input 3x32x32", "--input"),
        ("--model torch.nn:ReLU --input 3,4", "sizes"),
        ("--size 4", "--size"),
        ("--dtype int8 --device cpu", "dtype"),
        ("--dtype tf32 --device cpu", "dtype"),
        ("--device tpu", "device"),
        ("--sparsity 1.5 --device cpu", "sparsities"),
        ("--seconds 3", "--seconds"),
        ("--table x.json", "--table"),
        ("--against nowhere.json --device cpu", "nowhere.json"),
        ("--tune --sparsity 0.5", "--sparsity"),
        ("--tune --json x.json", "--json"),
        ("--tune --passes 2", "--passes"),
        ("--device-profile x --passes 2 --device cpu", "--passes"),
        ("--tune --model resnet20", "--model"),
        ("--tune --size 8", "--size"),
        ("--tune --input 8", "--input"),
        ("--tune --no-layers", "--no-layers"),
        ("--tune --kernels", "--kernels"),
        ("--tune --compiled", "--compiled"),
        ("--tune --clock processor", "--clock"),
        ("--tune --device-profile x", "--device-profile"),
        ("--tune --threads 1 --threads 2 --device cpu", "--threads"),
        ("--device-profile x --size 8", "--size"),
        ("--device-profile x --against y", "--against"),
        ("--device-profile x --kernels", "--kernels"),
        ("--device-profile x --compiled", "--compiled"),
        ("--device-profile x --no-layers", "--no-layers"),
        ("--device-profile x --window 0 --model resnet20", "--model"),
        ("--device-profile x --threads 1 --threads 2 --device cpu", "--threads"),
        ("--linear 8x8 --no-layers", "--no-layers"),
        ("--model resnet20 --no-layers --kernels", "--kernels"),
        ("--tune --device tpu", "device"),
        ("--tune --linear 8x8 --dtype bfloat16 --device cpu", "dtype"),
        ("--tune --linear 8x8 --linear 9x9 --device cpu", "--linear"),
        ("--tune --linear 8x8 --conv 8x8x3x3@4 --device cpu", "both"),
        ("--tune --conv 8x4x3x3@4g2 --device cpu", "group"),
        ("--tune --pattern block:16x16", "--pattern"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, named):
    assert named in told(flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_absent():
    assert "CUDA device" in told(f"{TINY} --device cuda")


def test_a_file_that_cannot_be_written_is_told_before_anything_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "measure", None)
    (tmp_path / "file").touch()
    told(f"{TINY} --json {tmp_path / 'file' / 'bench.json'}")
    assert str(tmp_path) in told(f"{TINY} --json {tmp_path}")


OUT_OF_MEMORY = {"MemoryError": MemoryError(), "can't allocate": RuntimeError("can't allocate memory")}


@pytest.mark.parametrize(("why", "error"), OUT_OF_MEMORY.items())
def test_out_of_memory_in_one_row_leaves_the_others(tmp_path, monkeypatch, why, error):
    make = layer_variants._sparse_layer

    def poor(layer, pattern, sparsity, *rest):
        if sparsity == 0.5:
            raise error
        return make(layer, pattern, sparsity, *rest)

    monkeypatch.setattr(layer_variants, "_sparse_layer", poor)
    path = tmp_path / "bench.json"
    result = spfde(f"{TINY} --sparsity 0.75 --json {path}")
    assert result.exit_code == 0 and why in result.output
    assert [bool(row.seconds) for row in bench.load(path).rows] == [True, False, True]


def test_what_fails_while_it_is_timed_leaves_the_others(monkeypatch):
    ran, forward = [0], nn.Linear.forward

    def breaks(layer, x):
        ran[0] += 1
        if ran[0] == 15:
            raise RuntimeError("the driver is lost")
        return forward(layer, x)

    group = bench.Group(bench.linear("8x8", 2), (0.5,))
    with monkeypatch.context() as patched:
        patched.setattr(nn.Linear, "forward", breaks)
        dense, sparse = measuring.measure(group, 2)
    assert "the driver is lost" in " ".join(dense.absent.values())
    assert list(sparse.seconds) == ["forward", "input_grad", "weight_grad", "step"]


def test_an_interrupted_run_keeps_what_is_done(tmp_path, monkeypatch):
    measure = measuring.measure

    def stopped(group, repeats):
        if "conv" in str(group):
            raise KeyboardInterrupt
        return measure(group, repeats)

    monkeypatch.setattr(measuring, "measure", stopped)
    path = tmp_path / "bench.json"
    result = spfde(f"{TINY} --conv 8x8x3x3@4 --json {path}")
    assert result.exit_code == 130 and f"stopped; 2 rows that are done, in {path}" in result.output
    kept = bench.load(path)
    assert not kept.finished and len(kept.rows) == 2


def test_another_pass_adds_rounds_with_everything_made_anew(monkeypatch):
    made, makers = [], bench.Group.makers
    monkeypatch.setattr(bench.Group, "makers", lambda group: made.append(group) or makers(group))
    groups = [bench.Group(bench.linear("8x8", 2), (0.5,)), bench.Group(bench.linear("8x4", 2), (0.5,))]
    saved = []
    record = bench.run(bench.Record({}, "", "", 2), groups, saved.append, passes=3)
    assert record.finished and record.passes == 3 and len(record.rows) == 4
    assert all(len(times) == 6 for row in record.rows for times in row.seconds.values())
    assert [(len(each.rows), each.passes) for each in saved] == [
        (0, 0),
        (2, 0),
        (4, 0),
        (4, 1),
        (4, 1),
        (4, 2),
        (4, 2),
        (4, 3),
    ]
    assert made == 3 * groups


def test_a_pass_that_would_end_too_late_is_not_begun():
    now = iter(range(0, 1000, 10))
    limit = TimeLimit(25, clock=lambda: next(now))  # each look at the clock takes ten seconds
    record = bench.run(
        bench.Record({}, "", "", 1), [bench.Group(bench.linear("8x8", 2), (0.5,))], passes=9, limit=limit
    )
    assert record.finished and record.passes == 1


def test_a_part_that_failed_in_one_pass_keeps_the_rounds_of_the_other():
    def rows(**sparse):
        dense = {"forward": (1.0,), "step": (3.0,)}
        named = {"dense contiguous": dense, "auto": sparse}
        return [bench.Row("a", "layer", name, "float32", 1, "cpu", seconds=seconds) for name, seconds in named.items()]

    whole, broken = rows(forward=(2.0,), step=(4.0,)), rows(forward=(2.5,))
    for first, second in ((whole, broken), (broken, whole)):
        dense, sparse = measuring.joined(first, second)
        assert dense.seconds == {"forward": (1.0, 1.0), "step": (3.0,)}
        assert sparse.seconds == {"forward": first[1].seconds["forward"] + second[1].seconds["forward"]} | (
            {"step": (4.0,)} if first is whole else {}
        )


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    monkeypatch.setattr(layer_variants, "TOLERANCE", {"float32": -1.0})
    _, sparse = measuring.measure(bench.Group(bench.linear("8x8", 2), (0.5,)), 1)
    assert sparse.absent["all"].startswith("ValueError: wrong output: relative error") and not sparse.seconds


def test_against_an_older_file(tmp_path):
    path = tmp_path / "old.json"
    assert spfde(f"{TINY} --repeats 3 --json {path}").exit_code == 0
    result = spfde(f"{TINY} --repeats 3 --against {path}")
    assert " of 4 got slower beyond noise" in result.output
    values = json.loads(path.read_text())
    for row in values["rows"]:
        if not row["variant"].startswith("dense"):  # as if the sparse layer had been a thousand times as fast
            row["seconds"] = {part: [s / 1000 for s in times] for part, times in row["seconds"].items()}
    path.write_text(json.dumps(values))
    result = spfde(f"{TINY} --repeats 3 --against {path}")
    assert result.exit_code == 1 and result.output.count("SLOWER") == 4
    assert "rows that both files have" in told(f"--linear 16x16 --batch 2 --device cpu --repeats 1 --against {path}")
