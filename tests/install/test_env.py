"""The environment report, also where there is little to report."""

from __future__ import annotations

import json
import os
import sysconfig
from types import SimpleNamespace

import pytest
import torch

from spfde import __version__, env


@pytest.fixture(scope="module")
def facts():
    return env.report()


def test_the_report_is_json_and_states_versions_threads_and_instruction_sets(facts):
    assert json.loads(json.dumps(facts)) == facts
    assert facts["spfde"] == __version__
    assert facts["torch"] == torch.__version__
    assert facts["threads"]["torch"] == torch.get_num_threads()
    native = facts["native"]
    assert native["isa"] in native["runnable"]
    assert set(native["runnable"]) <= set(native["compiled"])


def test_what_others_read_has_no_directories():
    told = "torch is bound to {}libomp.so, spfde to {}x.so; try"
    facts = [
        {"path": f"{a}_C.so", "mapped": [f"{b}libgomp.so.1"], "threads": {"cpus": 2}, "warnings": [told.format(a, b)]}
        for a, b in (("/home/me/a/", "/usr/lib/"), ("", ""))
    ]
    assert env.portable(facts[0]) == facts[1]
    assert env.portable({"platform": "Linux-6.1/glibc"}) == {"platform": "Linux-6.1/glibc"}


def test_torch_and_the_core_share_one_openmp_runtime(facts):
    openmp = facts["openmp"]
    assert os.path.realpath(openmp["spfde"]) == os.path.realpath(openmp["torch"])
    assert os.path.realpath(openmp["spfde"]) in map(os.path.realpath, openmp["mapped"])
    assert facts["warnings"] == []


def test_every_row_of_the_table_is_text_and_warnings_come_last(facts):
    table = env.rows(facts | {"warnings": ["two"]})
    assert all(isinstance(text, str) and text for row in table for text in row)
    assert table[-1] == ("warning", "two")
    assert ("instruction set", facts["native"]["isa"]) in env.rows(
        facts | {"native": facts["native"] | {"forced": False}}
    )


def test_a_forced_instruction_set_is_marked(facts):
    native = facts["native"] | {"isa": "baseline", "forced": True}
    assert ("instruction set", "baseline (SPFDE_ISA)") in env.rows(facts | {"native": native})


def test_runtimes_are_found_in_a_memory_map(tmp_path):
    maps = tmp_path / "maps"
    maps.write_text(
        "7f0-7f1 r-xp 00000000 fe:00 12   /usr/lib/libgomp.so.1.0.0\n"
        "7f1-7f2 r--p 00000000 fe:00 12   /usr/lib/libgomp.so.1.0.0\n"
        "7f2-7f3 r-xp 00000000 fe:00 13   /opt/with space/libiomp5.so\n"
        "7f3-7f4 r-xp 00000000 fe:00 14   /usr/lib/libomptarget-is-none-of-them.so.d/libm.so.6\n"
        "7f4-7f5 rw-p 00000000 00:00 0 \n"
        "7f5-7f6 rw-p 00000000 00:00 0    [heap]\n"
    )
    assert env.openmp_runtimes(maps) == ["/opt/with space/libiomp5.so", "/usr/lib/libgomp.so.1.0.0"]


def test_two_bound_runtimes_are_warned_about(tmp_path):
    first, second, link = tmp_path / "libgomp.so.1", tmp_path / "libomp.so", tmp_path / "link.so"
    first.touch()
    link.symlink_to(first)
    [warning] = env.openmp_warnings(str(first), str(second))
    assert str(first) in warning
    assert str(second) in warning
    assert env.openmp_warnings(str(first), str(link)) == []
    assert env.openmp_warnings(str(first), None) == []


def test_the_command_prints_the_table_or_json(capsys):
    assert env.main([]) == 0
    assert "instruction set" in capsys.readouterr().out
    assert env.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spfde"] == __version__


def test_an_unknown_argument_is_refused(capsys):
    assert env.main(["--jsn"]) == 2
    assert "--jsn" in capsys.readouterr().err


def test_an_instruction_set_that_does_not_run_is_reported(root, python):
    done = python(root, "-m", "spfde.env", "--json", **os.environ | {"SPFDE_ISA": "sse9"})
    assert done.returncode == 1
    assert "sse9" in json.loads(done.stdout)["native"]["error"]


WITHOUT_CORE = """
import runpy, sys
sys.modules["spfde._C"] = None
import spfde
assert not {"typer", "rich", "matplotlib", "sklearn"} & set(sys.modules)  # what only the command line needs
try:
    spfde._native.native()
except ImportError as error:
    assert "spfde._C" in str(error)
sys.argv = ["spfde", "env", "--json"]
runpy.run_module("spfde", run_name="__main__")
"""


def test_a_missing_core_is_told_at_first_use_not_at_import_and_reported(root, python):
    done = python(root, "-c", WITHOUT_CORE, **os.environ)
    assert done.returncode == 1, done.stderr
    assert "spfde._C" in json.loads(done.stdout)["native"]["error"]
    assert done.stderr == ""


def test_a_core_that_is_no_library_is_reported_with_the_loaders_reason(package, python):
    (package / "spfde" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"not a shared object")
    # It has to hide the package that is being tested.
    done = python(package, "-m", "spfde.env", **os.environ | {"PYTHONPATH": str(package)})
    assert done.returncode == 1, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("native core")]
    assert "file too short" in line or "invalid ELF header" in line


def test_a_core_of_another_version_is_reported(monkeypatch):
    older = SimpleNamespace(__file__="_C.so", isa=lambda: "avx2")
    monkeypatch.setattr("spfde._native.native", lambda: older)
    assert "older build" in env.report()["native"]["error"]


MISSING, AGAIN = "not built for it, try CUDAARCHS=", " and build again"


@pytest.mark.parametrize(
    ("built", "verdicts"),
    [
        (
            ["80-real", "121-virtual"],
            ["sm_87: they run", "sm_110: not built for it, try CUDAARCHS=110 and build again"],
        ),
        (["90-virtual"], ["sm_87: not built for it, try CUDAARCHS=87 and build again", "sm_110: they run"]),
        ([], []),
    ],
)
def test_gpus_are_told_whether_the_kernels_were_built_for_them(facts, built, verdicts):
    assert env.cuda_verdicts(built, ["sm_87", "sm_110", "sm_87"]) == verdicts
    native = facts["native"] | {"cuda_archs": built}
    table = env.rows(facts | {"native": native, "cuda": facts["cuda"] | {"architectures": ["sm_87", "sm_110"]}})
    assert [value for what, value in table if what == "  on this GPU"] == verdicts


@pytest.mark.parametrize(
    ("native", "told"),
    [
        ({"cuda_archs": [], "cuda_left_out": []}, "not built"),
        ({"cuda_archs": ["87"], "cuda_left_out": []}, "87 by nvcc 13.0.88"),
        (
            {"cuda_archs": ["90-real", "90-virtual"], "cuda_left_out": ["100", "110"]},
            "90-real, 90-virtual by nvcc 13.0.88, which does not know 100, 110",
        ),
    ],
)
def test_it_tells_what_cuda_kernels_were_built_with(native, told):
    assert env.cuda_built(native | {"build": {"nvcc": "13.0.88"}}).startswith(told)
