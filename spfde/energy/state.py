"""The state of a machine beside what it draws: temperatures, clocks, what throttles it, and memory that is left."""

from __future__ import annotations

from pathlib import Path

from spfde.energy.sampling import Channel, value_of

GPU, CPU, EVENTS, MEMORY, REASONS = "GPU clock", "CPU clock", "throttle events", "memory available", "throttled"
# Bits of NVML's reasons for lower clocks that are not the user's choice: power cap, hardware slowdowns, heat.
SLOWED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
POLICIES = 4  # clocks of so many groups of cores


def state_of(root: Path = Path("/"), gpu: str = "") -> tuple[Channel, ...]:
    """The channels of this machine, or of a file tree recorded on another, that can be read now."""
    found = [
        *_temperatures(root),
        *_gpu_clocks(root),
        *_cpu_clocks(root),
        *_throttle_events(root),
        Channel(MEMORY, "B", (str(root / "proc/meminfo"),), 1024, key="MemAvailable:"),
    ]
    if gpu:
        found += [
            Channel("GPU", "C", query="temperature", gpu=gpu),
            Channel(GPU, "Hz", scale=1e6, query="clock", gpu=gpu),
            Channel("GPU memory clock", "Hz", scale=1e6, query="memory clock", gpu=gpu),
            Channel(REASONS, "1", query="throttled", gpu=gpu),
        ]
    return tuple(channel for channel in found if value_of(channel) is not None)


def _temperatures(root: Path) -> list[Channel]:
    zones = sorted(root.glob("sys/class/thermal/thermal_zone*"))
    return [Channel(_text(zone / "type"), "C", (str(zone / "temp"),), 1e-3) for zone in zones if _text(zone / "type")]


def _gpu_clocks(root: Path) -> list[Channel]:
    """Of a GPU that shares the board's memory: ga10b on Orin, gpu-gpc-0 on Thor; and of the memory where root lets."""
    found = []
    for folder in sorted(root.glob("sys/class/devfreq/*")):
        name = _text(folder / "device/of_node/name") or folder.name
        if name in ("gpu", "ga10b", "gv11b") or folder.name.endswith((".gpu", ".ga10b", ".gv11b", "gpu-gpc-0")):
            found.append(Channel(GPU, "Hz", (str(folder / "cur_freq"),)))
    emc = root / "sys/kernel/debug/bpmp/debug/clk/emc/rate"
    return [*found[:1], Channel("memory clock", "Hz", (str(emc),))]


def _cpu_clocks(root: Path) -> list[Channel]:
    policies = sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*"), key=lambda path: int(path.name[6:]))
    return [
        Channel(f"{CPU} {path.name[6:]}", "Hz", (str(path / "scaling_cur_freq"),), 1e3) for path in policies[:POLICIES]
    ]


def _throttle_events(root: Path) -> list[Channel]:
    """Counters that rise when the hardware slows down: over-current of a Jetson, heat of an Intel CPU."""
    files = sorted(root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt"))
    files += sorted(root.glob("sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"))
    return [Channel(f"{EVENTS} {file.name}", "1", (str(file),)) for file in files]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip("\x00\n ")
    except OSError:
        return ""
