"""What spfde runs on, for people and for JSON: `spfde env`, or `python -m spfde.env` where that fails."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spfde._machine import cpu_name
from spfde._version import __version__


def report() -> dict[str, Any]:
    """Everything a bug report or a benchmark record needs to know about this process, ready for JSON.

    `native` holds the core's facts, or only `error` when it cannot be used. `openmp` names the runtimes that
    torch and the core are bound to, and all that are mapped into the process. `warnings` says what to mend.
    """
    import torch

    native = _native()
    openmp = {
        "torch": _openmp_of_torch(torch.__file__),
        "spfde": native.get("openmp_library"),
        "mapped": openmp_runtimes(Path("/proc/self/maps")),
    }
    return {
        "spfde": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "triton": _version("triton"),
        "native": native,
        "cuda": {
            "torch": torch.version.cuda,
            "available": torch.cuda.is_available(),
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "architectures": [_architecture(i) for i in range(torch.cuda.device_count())],
        },
        "threads": {"torch": torch.get_num_threads(), "cpus": len(os.sched_getaffinity(0))},
        "openmp": openmp,
        "warnings": openmp_warnings(openmp["torch"], openmp["spfde"]),
    }


def portable(facts: Any) -> Any:
    """Facts of `report` for a file that others read: of a path of this machine its last part alone."""
    if isinstance(facts, Mapping):
        return {name: portable(value) for name, value in facts.items()}
    if isinstance(facts, list):
        return [portable(value) for value in facts]
    return re.sub(r"(?<!\S)/\S*/(?=\S)", "", facts) if isinstance(facts, str) else facts


def openmp_runtimes(maps: Path) -> list[str]:
    """Paths of the OpenMP runtimes mapped into a process, in a /proc/<pid>/maps file."""
    names = ("libgomp", "libomp", "libiomp")
    files = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines() if "/" in line}
    return sorted(path for path in files if Path(path).name.startswith(names))


def openmp_warnings(torch: str | None, spfde: str | None) -> list[str]:
    """What to say about the runtimes that torch and the core are bound to: nothing when they share one."""
    if torch is None or spfde is None or os.path.realpath(torch) == os.path.realpath(spfde):
        return []
    return [
        f"two OpenMP runtimes share the cores: torch is bound to {torch}, spfde to {spfde}; "
        "try importing torch before anything else that loads OpenMP, and no LD_PRELOAD of one"
    ]


def rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The report as (what, value) pairs for people to read."""
    native, cuda, threads, openmp = (facts[key] for key in ("native", "cuda", "threads", "openmp"))
    table = [(key, facts[key] or "not installed") for key in ("spfde", "python", "torch", "numpy", "triton")]
    table += [("platform", facts["platform"]), ("cpu", facts["cpu"])]
    if "error" in native:
        table.append(("native core", native["error"]))
    else:
        forced = " (SPFDE_ISA)" if native["forced"] else ""
        table += [
            ("native core", native["path"]),
            ("built with", ", ".join(f"{name} {value}" for name, value in native["build"].items())),
            ("instruction set", native["isa"] + forced),
            ("  compiled", ", ".join(native["compiled"])),
            ("  runnable here", ", ".join(native["runnable"])),
            ("CUDA kernels", cuda_built(native)),
            *(("  on this GPU", verdict) for verdict in cuda_verdicts(native["cuda_archs"], cuda["architectures"])),
        ]
    table += [
        ("CUDA", ", ".join(cuda["devices"]) or ("no device" if cuda["torch"] else "torch without CUDA")),
        ("threads", f"{threads['torch']} of torch on {threads['cpus']} usable CPUs"),
        ("OpenMP of torch", openmp["torch"] or "not found"),
        ("OpenMP of spfde", openmp["spfde"] or "none"),
        ("OpenMP mapped", ", ".join(openmp["mapped"]) or "none"),
    ]
    return table + [("warning", text) for text in facts["warnings"]]


def cuda_built(native: dict[str, Any]) -> str:
    """For which architectures the CUDA kernels were built, by which nvcc, and what that one does not know."""
    if not native["cuda_archs"]:
        return "not built (no nvcc; docs/edge.md): GPU kernels are Triton's"
    nvcc = f"nvcc {native['build'].get('nvcc', 'of unknown version')}"
    unknown = f", which does not know {', '.join(native['cuda_left_out'])}" if native["cuda_left_out"] else ""
    return f"{', '.join(native['cuda_archs'])} by {nvcc}{unknown}"


def cuda_verdicts(built: Sequence[str], architectures: Sequence[str]) -> list[str]:
    """Whether the CUDA kernels that were built run on GPUs of these architectures ("sm_87"), each in words."""
    from spfde.kernels.cuda import built_for

    if not built:
        return []
    found = []
    for name in dict.fromkeys(architectures):
        number = name.removeprefix("sm_")
        runs = built_for(built, (int(number[:-1]), int(number[-1])))
        found.append(f"{name}: {'they run' if runs else f'not built for it, try CUDAARCHS={number} and build again'}")
    return found


def _architecture(device: int) -> str:
    import torch

    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report, with `--json` as JSON; returns 1 when the native core cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if unknown := [argument for argument in arguments if argument != "--json"]:
        sys.stderr.write(f"expected nothing or --json, got {unknown[0]}, try python -m spfde.env --json\n")
        return 2
    facts = report()
    if "--json" in arguments:
        print(json.dumps(facts, indent=2))
    else:
        for what, value in rows(facts):
            print(f"{what:<16} {value}")
    return int("error" in facts["native"])


def _native() -> dict[str, Any]:
    from spfde._native import native

    try:
        core = native()
        return {
            "path": core.__file__,
            "isa": core.isa(),
            "forced": bool(os.environ.get("SPFDE_ISA")),
            "compiled": core.compiled_isas(),
            "runnable": core.isas(),
            "cuda_archs": core.cuda_archs(),
            "cuda_left_out": core.cuda_left_out(),
            "openmp_library": core.openmp_library(),
            "build": core.build_info(),
        }
    except AttributeError as error:
        return {"error": f"expected the core of this version, got an older build ({error}), try make setup"}
    except (ImportError, ValueError) as error:
        return {"error": str(error)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class _SymbolInfo(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _openmp_of_torch(torch_file: str) -> str | None:
    """The runtime that torch calls, found as the loader does: in the global scope, then in torch's own."""
    own = Path(torch_file).parent / "lib" / "libtorch_cpu.so"
    for scope in (None, str(own)):
        try:
            symbol = ctypes.CDLL(scope, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).omp_get_max_threads
        except (OSError, AttributeError):
            continue
        info = _SymbolInfo()
        if ctypes.CDLL(None).dladdr(ctypes.cast(symbol, ctypes.c_void_p), ctypes.byref(info)):
            return os.fsdecode(info.file)
    return None


if __name__ == "__main__":
    raise SystemExit(main())
