"""Where power is read, from recorded file trees, and from stand-ins for NVIDIA's driver library."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from energy.boards import AGX_ORIN, LAPTOP, ORIN_NANO, THOR, VIRTUAL, planted

from spfde.energy import sampling
from spfde.energy.rails import rails_of
from spfde.energy.sampling import Nvml
from spfde.energy.state import state_of

GPU = "GPU-0f9c"
# A driver library with one GPU; the status of a query is STATUS, but the energy counter's COUNTER (3: not supported).
LIBRARY = """
#include <string.h>
typedef unsigned int u; typedef unsigned long long ull; static int one;
int nvmlInit_v2(void) { return 0; }
const char* nvmlErrorString(int status) { return status == 3 ? "Not Supported" : "Not Found"; }
int nvmlDeviceGetHandleByUUID(const char* uuid, void** d) { *d = &one; return strcmp(uuid, "GPU-0f9c") ? 6 : 0; }
int nvmlDeviceGetTotalEnergyConsumption(void* d, ull* mj) { *mj = 5000; return d == &one ? COUNTER : 2; }
int nvmlDeviceGetPowerUsage(void* d, u* mw) { *mw = 42000; return STATUS; }
int nvmlDeviceGetEnforcedPowerLimit(void* d, u* mw) { *mw = 115000; return STATUS; }
int nvmlDeviceGetTemperature(void* d, u which, u* c) { *c = which ? 0 : 61; return STATUS; }
int nvmlDeviceGetClockInfo(void* d, u which, u* mhz) { *mhz = 1000 * which; return STATUS; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void* d, ull* bits) { *bits = 4; return STATUS; }
"""


def library(folder: Path, status: int, counter: int) -> Nvml:
    made = folder / "libnvidia-ml.so"
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-w",
        f"-DSTATUS={status}",
        f"-DCOUNTER={counter}",
        "-xc",
        "-",
        "-o",
        str(made),
    ]
    subprocess.run(command, input=LIBRARY, text=True, check=True)
    return Nvml(str(made))


@pytest.mark.parametrize(
    ("files", "names", "total", "watts", "covers"),
    [
        (ORIN_NANO, ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"], ["VDD_IN"], 4.960 * 1.400, "in front of every other"),
        (
            AGX_ORIN,
            ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"],
            ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"],
            19 * 0.3 + 5 * 1.0,
            "carrier board is not",
        ),
        (THOR, ["VIN", "VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"], ["VIN"], 41.25, "in front of every other"),
        (LAPTOP, ["package-0", "dram-0"], ["package-0", "dram-0"], 261e3 + 1, "package-0 + dram-0"),
    ],
    ids=["orin nano", "agx orin", "thor", "laptop"],
)  # fmt: skip
def test_rails_and_their_total(files, names, total, watts, covers, tmp_path):
    rails = rails_of(planted(files, tmp_path))
    assert [channel.name for channel in rails.channels] == names
    assert list(rails.total) == total
    assert covers in rails.covers
    assert rails.why_not == ""
    values = {channel.name: channel.read() for channel in rails.channels}
    assert sum(values[name] for name in total) == pytest.approx(watts)


def test_monitors_outside_of_their_drivers_folder_count_once(tmp_path):
    root = planted(ORIN_NANO, tmp_path)
    (root / "sys/class/hwmon/hwmon1").symlink_to(root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1")
    assert len(rails_of(root).channels) == 3
    (root / "sys/bus/i2c/drivers").rename(root / "elsewhere")
    (root / "sys/class/hwmon/hwmon1").unlink()
    (root / "sys/class/hwmon/hwmon1").symlink_to(root / "elsewhere/ina3221/1-0040/hwmon/hwmon1")
    assert len(rails_of(root).channels) == 3


def test_a_machine_without_sensors_says_why(tmp_path):
    rails = rails_of(planted(VIRTUAL, tmp_path))
    assert rails.total == ()
    for word in ("INA3221", "powercap", "no GPU"):
        assert word in rails.why_not


def test_a_counter_of_roots_is_told_with_the_way_out(tmp_path, monkeypatch):
    def refused(path, *args, **options):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return text(path, *args, **options)

    text = Path.read_text
    monkeypatch.setattr(Path, "read_text", refused)
    assert "sudo chmod a+r" in rails_of(planted(LAPTOP, tmp_path)).why_not


@pytest.mark.parametrize(("counter", "unit", "value"), [(0, "J", 5.0), (3, "W", 42.0)])
def test_a_gpu_tells_energy_or_else_power(counter, unit, value, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "nvml", lambda: made)
    made = library(tmp_path, 0, counter)
    rails = rails_of(planted(LAPTOP, tmp_path), GPU)
    assert rails.total == ("GPU", "package-0", "dram-0")
    assert (rails.channels[0].unit, rails.channels[0].read()) == (unit, value)
    state = {channel.name: channel.read() for channel in state_of(tmp_path, GPU)}
    assert (state["GPU"], state["GPU clock"], state["GPU memory clock"], state["throttled"]) == (61, 1e9, 2e9, 4)


def test_a_driver_without_power_is_not_zero_watts(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "nvml", lambda: made)
    made = library(tmp_path, 3, 3)
    alone = rails_of(planted(LAPTOP, tmp_path / "laptop"), GPU)
    assert (alone.total, [c.name for c in alone.channels]) == ((), ["package-0", "dram-0"])
    assert "NVML: Not Supported" in alone.why_not
    on_board = rails_of(planted(ORIN_NANO, tmp_path / "nano"), GPU)  # the case of every Jetson
    assert on_board.total == ("VDD_IN",)
    assert not [c for c in state_of(tmp_path / "nano", GPU) if c.query]
    assert "Not Found" in rails_of(tmp_path / "laptop", "GPU-other").why_not


def test_no_driver_library():
    with pytest.raises(OSError, match="libnothing"):
        Nvml("libnothing.so")


def test_the_state_of_a_jetson(tmp_path):
    state = {channel.name: channel.read() for channel in state_of(planted(ORIN_NANO, tmp_path))}
    assert state == {
        "cpu-thermal": pytest.approx(48.468),
        "gpu-thermal": 46.5,
        "GPU clock": 612e6,
        "CPU clock 0": 1510.4e6,
        "throttle events oc1_event_cnt": 0,
        "throttle events oc3_event_cnt": 2,
        "memory available": 5123456 * 1024,
    }
