"""Where the machine tells what it draws: rails of a Jetson, NVIDIA's driver, RAPL; and why others tell nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spfde.energy.sampling import Channel

WHOLE = ("VDD_IN", "VIN")  # a rail of this name is what the whole module, or board, draws; the others are parts of it
UNCONNECTED = ("NC", "sum of shunt voltages")


@dataclass(frozen=True)
class Rails:
    """Channels of power and energy, and those among them whose sum is the total.

    covers: what the total is of, in words. missing: why a kind of sensor tells nothing.
    """

    channels: tuple[Channel, ...]
    total: tuple[str, ...]
    covers: str
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def why_not(self) -> str:
        """Why there is no total, "" where there is one."""
        return "" if self.total else "; ".join(f"{kind}: {reason}" for kind, reason in self.missing.items())


def rails_of(root: Path = Path("/"), gpu: str = "") -> Rails:
    """The rails of this machine, or of a file tree recorded on another.

    gpu: UUID of the GPU that computes, "" for none. The total is the board's own monitors' where it has them, as they
    see CPU, GPU and memory alike; else the GPU's and what the CPU's RAPL counts.
    """
    board, missing_board = hwmon(root)
    if board:
        return Rails(board, total_of(board), _words(board), {})
    cpu, missing_cpu = rapl(root)
    card, missing_card = nvml_power(gpu)
    found, missing = (*card, *cpu), {"board": missing_board, "RAPL": missing_cpu, "NVML": missing_card}
    if gpu and not card:  # the CPU alone would pass for the whole
        return Rails(found, (), "", missing)
    return Rails(found, tuple(c.name for c in found), " + ".join(c.name for c in found), missing)


def total_of(board: tuple[Channel, ...]) -> tuple[str, ...]:
    """The rails to add up: the one in front of all others where it is measured (Orin Nano and NX, Thor), else all."""
    names = tuple(channel.name for channel in board)
    return next(((name,) for name in WHOLE if name in names), names)


def _words(board: tuple[Channel, ...]) -> str:
    total = total_of(board)
    if total[0] in WHOLE:
        return f"{total[0]}, in front of every other rail"
    return f"the sum of {', '.join(total)}; the carrier board is not in it"


def hwmon(root: Path) -> tuple[tuple[Channel, ...], str]:
    """The rails of INA3221 and INA238 monitors, and why there are none.

    INA3221: in<n>_input in mV, curr<n>_input in mA. INA238: power1_input in microwatts.
    """
    folders = {path.resolve() for path in root.glob("sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*")}
    folders |= {path.resolve() for path in root.glob("sys/class/hwmon/hwmon*") if _text(path / "name")[:3] == "ina"}
    found = [channel for folder in sorted(folders) for channel in _monitor(folder)]
    if not found:
        return (), "no INA3221 or INA238 power monitor, as Jetson modules have"
    return tuple(found), ""


def _monitor(folder: Path) -> list[Channel]:
    found = []
    for label in sorted(folder.glob("in*_label")):
        name, number = _text(label), label.name[2 : -len("_label")]
        volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
        if name not in UNCONNECTED and volts.exists() and amperes.exists():
            found.append(Channel(name, "W", (str(volts), str(amperes)), 1e-6))
    power = folder / "power1_input"
    if not found and power.exists():
        name = _text(folder / "power1_label") or _text(folder / "in1_label") or "VIN"
        found.append(Channel(name, "W", (str(power),), 1e-6))
    return found


def rapl(root: Path) -> tuple[tuple[Channel, ...], str]:
    """The energy counters of CPU packages and, where they are apart, of memory; and why there are none."""
    found = []
    for folder in sorted(root.glob("sys/class/powercap/intel-rapl:*")):
        name, counter = _text(folder / "name"), folder / "energy_uj"
        if not name.startswith(("package", "dram")):
            continue  # a part of a package, or the platform with it
        try:
            counter.read_text()
        except PermissionError:
            return (), f"{counter} is readable by root alone; try sudo chmod a+r {folder.parent}/intel-rapl:*/energy_uj"
        except OSError as error:
            return (), f"{counter}: {error.strerror}"
        package = folder.name.split(":")[1]
        name = name if name.startswith("package") else f"{name}-{package}"
        most = float(_text(folder / "max_energy_range_uj") or 0) * 1e-6
        found.append(Channel(name, "J", (str(counter),), 1e-6, most))
    return tuple(found), "" if found else "no package counter under /sys/class/powercap (virtual machines have none)"


def nvml_power(gpu: str) -> tuple[tuple[Channel, ...], str]:
    """The GPU's energy counter, or its power where it has none; and why there is neither."""
    if not gpu:
        return (), "no GPU is measured"
    reason = ""
    for channel in (
        Channel("GPU", "J", scale=1e-3, query="energy", gpu=gpu),
        Channel("GPU", "W", scale=1e-3, query="power", gpu=gpu),
    ):
        try:
            channel.read()
        except (OSError, AttributeError) as error:
            reason = str(error)
        else:
            return (channel,), ""
    return (), reason


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
