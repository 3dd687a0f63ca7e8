"""What a machine is, in the words that a measurement has to name: module, software, power mode, clocks, memory."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spfde.energy.sampling import Channel

WITHOUT_NAME = ("", "System Product Name", "To Be Filled By O.E.M.", "Default string")


@dataclass(frozen=True)
class Board:
    """A machine's facts. l4t: NVIDIA's Linux for Tegra, "" elsewhere. clocks: least, most and present Hz by processor.

    power_mode: nvpmodel's on a Jetson, the GPU's power limit elsewhere, or the platform's profile; "" where none is
    told. clocks_locked: whether least and most are one everywhere (jetson_clocks); None: not told. memory: bytes.
    """

    model: str
    l4t: str
    power_mode: str
    clocks_locked: bool | None
    clocks: Mapping[str, tuple[float, float, float]]
    memory: int
    available: int
    kernel: str = field(default_factory=platform.release)


def board_of(root: Path = Path("/"), gpu: str = "", cpu: str = "") -> Board:
    """The facts of this machine, or of a file tree recorded on another. gpu: UUID of the GPU. cpu: the CPU's name."""
    clocks = _clocks(root)
    bounds = [(least, most) for least, most, _ in clocks.values()]
    meminfo = _text(root / "proc/meminfo")
    return Board(
        model=_text(root / "proc/device-tree/model") or _product(root) or cpu or platform.machine(),
        l4t=l4t_release(_text(root / "etc/nv_tegra_release")),
        power_mode=_nvpmodel(root) or _power_limit(gpu) or _text(root / "sys/firmware/acpi/platform_profile"),
        clocks_locked=all(least == most for least, most in bounds) if bounds else None,
        clocks=clocks,
        memory=_kilobytes(meminfo, "MemTotal:"),
        available=_kilobytes(meminfo, "MemAvailable:"),
    )


def l4t_release(text: str) -> str:
    """36.4.3 of "# R36 (release), REVISION: 4.3, ..."; "" of anything else."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else ""


def power_mode(answer: str) -> str:
    """15W of nvpmodel's "NV Power Mode: 15W", the mode's number on the next line; "" of anything else."""
    found = re.search(r"NV Power Mode:\s*(.+)", answer)
    return found[1].strip() if found else ""


def _nvpmodel(root: Path) -> str:
    path = root / "usr/sbin/nvpmodel"
    program = str(path) if path.exists() else shutil.which("nvpmodel") if root == Path("/") else None
    if program is None:
        return ""
    try:
        done = subprocess.run([program, "-q"], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return power_mode(done.stdout)


def _power_limit(gpu: str) -> str:
    try:
        return f"{Channel('limit', 'W', scale=1e-3, query='limit', gpu=gpu).read():.0f}W" if gpu else ""
    except (OSError, AttributeError):
        return ""


def _product(root: Path) -> str:
    name = _text(root / "sys/class/dmi/id/product_name")
    return "" if name in WITHOUT_NAME else f"{_text(root / 'sys/class/dmi/id/sys_vendor')} {name}".strip()


def _clocks(root: Path) -> dict[str, tuple[float, float, float]]:
    found = {}
    for folder in sorted(root.glob("sys/class/devfreq/*")):
        name = _text(folder / "device/of_node/name") or folder.name
        found[name] = tuple(_number(folder / f"{which}_freq") for which in ("min", "max", "cur"))
    for folder in sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*")):
        which = ("scaling_min_freq", "scaling_max_freq", "scaling_cur_freq")
        found[f"cpu {folder.name[6:]}"] = tuple(1e3 * _number(folder / name) for name in which)
    return {name: hertz for name, hertz in found.items() if all(hertz)}


def _kilobytes(meminfo: str, key: str) -> int:
    found = re.search(rf"{key}\s+(\d+) kB", meminfo)
    return int(found[1]) * 1024 if found else 0


def _number(path: Path) -> float:
    text = _text(path)
    return float(text) if text.isdigit() else 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip("\x00\n ")
    except OSError:
        return ""
