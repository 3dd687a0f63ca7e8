"""The CUDA kernels themselves on the emulator: in every order of threads, under sanitizers, with planted faults."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_build import ROOT, built
from filelock import FileLock

pytestmark = pytest.mark.full

SOME = "130x67"  # the cases of more than one tile in every direction


def run(program: Path, only: str = "") -> subprocess.CompletedProcess[str]:
    given = [program, *([only] if only else [])]
    return subprocess.run(given, capture_output=True, text=True, timeout=1800)


def test_every_order_of_the_threads(tmp_path):
    done = run(program_of(None, "", tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(order in done.stdout for order in ("lock-step", "warp-greedy", "random"))


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
@pytest.mark.parametrize(
    "only",
    [
        SOME,
        "scatter",
        "2100x1",
        "2x36",
        *(f"conv2d {n}" for n in (2, 4, 7)),
        "norm_act odd",
        "48x80",
        "37x53",
        "conv blocks 2",
        "conv blocks 7",
    ],
)
def test_sanitizers_find_nothing(sanitizer, only, tmp_path):
    done = run(program_of(None, sanitizer, tmp_path), only)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


ONLY = {
    "scatter.cu": "scatter", "places.h": "conv2d 1", "moments.h": "norm_act odd", "norm_act.cu": "norm_act planes",
    "block_product.h": "48x80", "block_sample.h": "48x80", "block_places.h": "37x53",
    "block_pixels.h": "conv blocks 7",
    "block_conv2d.cu": "conv blocks 7",
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One change of the sources, and what must be told of it by a result, a sanitizer or the emulator."""

    name: str
    file: str
    before: str
    after: str
    seen: str
    sanitizer: str = ""


FAULTS = [
    Fault(
        "no wait for the copies", "block_product.h", "    copies_wait<kStages - 2>();\n", "",
        "a thread ends before it has waited for its copies",
    ),
    Fault(
        "a wait for one group of copies too few", "block_product.h",
        "copies_wait<kStages - 2>", "copies_wait<kStages - 1>",
        "a thread ends before it has waited for its copies",
    ),
    Fault(
        "no barrier behind the wait", "block_product.h", "__syncthreads();  // all copies", "// all copies",
        "FAILED blocks",
    ),
    Fault(
        "copies into what is still read", "block_sample.h",
        "    __syncthreads();\n    copy(step + kStages - 1);", "    copy(step + kStages - 1);\n    __syncthreads();",
        "data race", "thread",
    ),
    Fault("an input too far", "block_places.h", "max(0, min(of.inner - feature, kPiece<T>))", "kPiece<T>",
          "heap-buffer-overflow", "address"),
    Fault("a row of the wrong lane", "block_product.h", "lane / 8 % 2 * kPiece<T>", "lane / 16 * kPiece<T>",
          "FAILED blocks"),
    Fault("a row above the image", "block_pixels.h", "static_cast<unsigned>(i) < static_cast<unsigned>(of.h.source)",
          "i < of.h.source", "ERROR: AddressSanitizer", "address"),
    Fault("a channel too many", "block_pixels.h", "max(0, min(of.group_inner - in_group, kPiece<T>))", "kPiece<T>",
          "ERROR: AddressSanitizer", "address"),
    Fault("two channels at an odd one", "block_conv2d.cu", "pixels.group_outer % 2 == 0 &&", "pixels.outer % 2 == 0 &&",
          "misaligned address", "address"),
    Fault("a tap in the other direction", "block_pixels.h", "? -by_stride.quotient", "? by_stride.quotient",
          "FAILED conv blocks"),
    Fault("the channels of another group", "block_pixels.h", "output / group_outer * group_inner", "0",
          "FAILED conv blocks"),
    Fault(
        "no barrier behind the copy", "multiply.h",
        "copier.copy(first, shared.panel);\n    __syncthreads();", "copier.copy(first, shared.panel);",
        "FAILED spmm",
    ),
    Fault(
        "no barrier in front of the copy", "multiply.h",
        "__syncthreads();\n    copier.copy(first, shared.panel);", "copier.copy(first, shared.panel);",
        "data race", "thread",
    ),
    Fault(
        "the queue is written while it is read", "multiply.h",
        "        __syncwarp();\n        at += count;", "        at += count;",
        "data race", "thread",
    ),
    Fault("a column too far", "multiply.h", "first + c < source.columns && t < left;", "t < left;",
          "heap-buffer-overflow", "address"),
    Fault("a channel too far", "moments.h", "v < place.valid ? to_float(from[place.at + v]) : 0.0f;",
          "to_float(from[place.at + v]);", "heap-buffer-overflow", "address"),
    Fault("sums are written while others read them", "moments.h",
          "__syncthreads();  // before anyone writes there again", "", "FAILED norm_act"),
    Fault("a part is left out", "norm_act.cu", "part < parts; part += kThreads", "part < parts - 1; part += kThreads",
          "FAILED norm_act"),
    Fault("a row too far", "scatter.cu", "if (row >= rows) return;", "if (row > rows) return;",
          "heap-buffer-overflow", "address"),
    Fault("a token too far", "sample.h", "source.columns && first + t < end", "source.columns",
          "heap-buffer-overflow", "address"),
    Fault(
        "a pixel outside of the image", "places.h", "at < 0 || at >= w.size", "at < 0 || at > w.size", "FAILED conv2d",
    ),
    Fault(
        "a barrier that some threads do not reach", "sample.h",
        "    shared.before[mine + 1] = last - first;\n  }\n  __syncthreads();",
        "    shared.before[mine + 1] = last - first;\n    __syncthreads();\n  }\n  if (mine < 32) __syncwarp(1);",
        "a lane calls a collective whose mask leaves it out",
    ),
    Fault(
        "a lane waits alone", "multiply.h",
        "        __syncwarp();\n        at += count;", "        if (lane < count) __syncwarp();\n        at += count;",
        "threads wait for what never comes",
    ),
]  # fmt: skip


def planted(fault: Fault | None, sources: Path) -> None:
    """Makes `sources` the kernels', with the fault if any; what did not change is left, so that no more is compiled."""
    origin = ROOT / "csrc"
    wanted = {path.relative_to(origin): path.read_text() for path in origin.rglob("*") if path.is_file()}
    if fault:
        faulty = Path("cuda", fault.file)
        assert wanted[faulty].count(fault.before) == 1
        wanted[faulty] = wanted[faulty].replace(fault.before, fault.after)
    there = {path.relative_to(sources): path for path in sources.rglob("*") if path.is_file()}
    for name in there.keys() - wanted.keys():
        there[name].unlink()
    for name, text in wanted.items():
        if name not in there or there[name].read_text() != text:
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_text(text)


def program_of(fault: Fault | None, sanitizer: str, folder: Path) -> Path:
    """The program in `folder`, of sources with a fault or of sound ones; all of a sanitizer are built in one place."""
    name = f"cuda-{sanitizer or 'plain'}"
    sources = ROOT / f"build/{name}-sources"
    with FileLock(f"{sources}.lock"):  # another process has other sources for the same folders
        planted(fault, sources)
        where = built(name, "cuda_tests", f"-DSOURCES={sources}", f"-DSANITIZE={sanitizer}")
        return Path(shutil.copy2(where / "cuda_tests", folder))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_seen(fault, tmp_path):
    done = run(program_of(fault, fault.sanitizer, tmp_path), ONLY.get(fault.file, SOME))
    assert done.returncode != 0
    assert fault.seen in done.stdout + done.stderr
