"""File trees as boards show them: what sensors are read from, by path, without the leading slash."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

MEMINFO = "MemTotal:        7802140 kB\nMemFree:          411324 kB\nMemAvailable:    5123456 kB\n"


def ina3221(address: str, hwmon: int, rails: Mapping[int, tuple[str, int, int]]) -> dict[str, str]:
    """An INA3221 with (label, mV, mA) by channel, as JetPack's driver shows it; channel 7 sums shunt voltages."""
    folder = f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon{hwmon}"
    files = {f"{folder}/name": "ina3221\n", f"{folder}/in7_label": "sum of shunt voltages\n"}
    files[f"{folder}/in7_input"] = "12\n"
    for channel, (label, volts, amperes) in rails.items():
        files[f"{folder}/in{channel}_label"] = f"{label}\n"
        files[f"{folder}/in{channel}_input"] = f"{volts}\n"
        files[f"{folder}/curr{channel}_input"] = f"{amperes}\n"
    return files


def jetson(model: str, release: str, gpu: str, mode: str, locked: bool) -> dict[str, str]:
    """What every Jetson has: model, L4T, nvpmodel, clocks, temperatures, over-current counters."""
    least = 612000000 if locked else 306000000
    return {
        "proc/device-tree/model": f"{model}\x00",
        "proc/meminfo": MEMINFO,
        "etc/nv_tegra_release": release,
        "usr/sbin/nvpmodel": f"#!/bin/sh\n[ \"$1\" = -q ] && printf 'NV Power Mode: {mode}\\n0\\n'\n",
        f"sys/class/devfreq/{gpu}/min_freq": f"{least}\n",
        f"sys/class/devfreq/{gpu}/max_freq": "612000000\n",
        f"sys/class/devfreq/{gpu}/cur_freq": "612000000\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "1510400\n" if locked else "729600\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1510400\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48468\n",
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "46500\n",
        "sys/class/hwmon/hwmon0/name": "soctherm_oc\n",
        "sys/class/hwmon/hwmon0/oc1_event_cnt": "0\n",
        "sys/class/hwmon/hwmon0/oc3_event_cnt": "2\n",
    }


R36 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"
R39 = "# R39 (release), REVISION: 2.1, GCID: 44012345, BOARD: generic, EABI: aarch64, DATE: Tue Aug 11 2026\n"

ORIN_NANO = {
    **jetson(
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", R36, "17000000.gpu", "15W", locked=True
    ),
    **ina3221(
        "1-0040", 1, {1: ("VDD_IN", 4960, 1400), 2: ("VDD_CPU_GPU_CV", 4952, 480), 3: ("VDD_SOC", 4952, 368)}
    ),
}  # fmt: skip
AGX_ORIN = {
    **jetson("NVIDIA Jetson AGX Orin Developer Kit", R36, "17000000.gpu", "MODE_30W", locked=False),
    **ina3221(
        "1-0040", 1, {1: ("VDD_GPU_SOC", 19000, 200), 2: ("VDD_CPU_CV", 19000, 100), 3: ("VIN_SYS_5V0", 5000, 900)}
    ),
    **ina3221("1-0041", 2, {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 5000, 100), 3: ("NC", 0, 0)}),
}  # fmt: skip
THOR = {
    **jetson("NVIDIA Jetson AGX Thor Developer Kit", R39, "gpu-gpc-0", "MAXN", locked=False),
    **ina3221(
        "2-0040", 1, {1: ("VDD_GPU", 8500, 2000), 2: ("VDD_CPU_SOC_MSS", 8500, 1000), 3: ("VIN_SYS_5V0", 5000, 1800)}
    ),
    "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon3/name": "ina238\n",
    "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon3/power1_input": "41250000\n",
}  # fmt: skip
LAPTOP = {
    "proc/meminfo": MEMINFO,
    "sys/class/dmi/id/sys_vendor": "LENOVO\n",
    "sys/class/dmi/id/product_name": "20XWCTO1WW\n",
    "sys/firmware/acpi/platform_profile": "balanced\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "261000000000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "1\n",
    "sys/class/powercap/intel-rapl:0:2/name": "dram\n",
    "sys/class/powercap/intel-rapl:0:2/energy_uj": "1000000\n",
    "sys/class/powercap/intel-rapl:0:2/max_energy_range_uj": "65712999613\n",
    "sys/class/powercap/intel-rapl:1/name": "psys\n",
    "sys/class/powercap/intel-rapl:1/energy_uj": "5\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "7\n",
}
VIRTUAL = {"proc/meminfo": MEMINFO}


def planted(files: Mapping[str, str], root: Path) -> Path:
    """Writes a tree under `root`, and returns it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.name == "nvpmodel":
            path.chmod(0o755)
    return root
