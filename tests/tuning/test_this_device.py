"""The device of this process as profiles name it, with the file trees of boards and a GPU that torch would describe."""

from types import SimpleNamespace

import pytest
import torch
from energy.boards import AGX_ORIN, LAPTOP, ORIN_NANO, THOR, VIRTUAL, planted

from spfde._machine import cpu_name
from spfde.tuning.this_device import this_device


def gpu(name, capability, units, integrated, memory=2**33):
    return SimpleNamespace(
        name=name, major=capability[0], minor=capability[1], multi_processor_count=units, is_integrated=integrated,
        total_memory=memory, L2_cache_size=2**22, uuid="0f9c",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("files", "card", "label", "unified"),
    [
        (ORIN_NANO, gpu("Orin", (8, 7), 8, 1), "Orin Nano Engineering Reference Developer Kit Super, 8 multi", True),
        (AGX_ORIN, gpu("Orin", (8, 7), 16, 1), "AGX Orin Developer Kit, 16 multiprocessors, MODE_30W", True),
        (THOR, gpu("NVIDIA Thor", (11, 0), 20, 1), "AGX Thor Developer Kit, 20 multiprocessors, MAXN", True),
        (LAPTOP, gpu("NVIDIA GeForce RTX 3060", (8, 6), 28, 0), "RTX 3060, 28 multiprocessors, balanced", False),
    ],
    ids=["orin nano", "agx orin", "thor", "laptop"],
)
def test_a_gpu_goes_by_module_multiprocessors_and_power_mode(files, card, label, unified, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    device = this_device("cuda", planted(files, tmp_path))
    assert label in device.label
    assert device.memory == (7802140 * 1024 if unified else 2**33)
    assert device.facts["unified memory"] == ("yes" if unified else "no")
    assert ("power" in device.facts) == unified  # of the laptop, RAPL would tell the CPU's alone
    assert ("NVML" in device.absent.get("power", "")) == (not unified)


def test_a_cpu_goes_by_its_name_and_threads(tmp_path):
    device = this_device("cpu", planted(VIRTUAL, tmp_path))
    assert (device.name, device.units, device.mode) == (cpu_name(), torch.get_num_threads(), "")
    assert {"power", "power mode", "clocks"} == device.absent.keys()
    assert this_device("cpu", planted(LAPTOP, tmp_path / "laptop")).facts["power"] == "package-0 + dram-0"


def test_a_jetsons_facts(tmp_path):
    facts = this_device("cpu", planted(ORIN_NANO, tmp_path)).facts
    assert facts["l4t"] == "36.4.3"
    assert facts["clocks locked"] == "yes"
    assert facts["clock of 17000000.gpu"] == "612 to 612 MHz, at first 612"
