"""The machine that measured seconds hold for: a CPU or a GPU, and the versions that ran on it."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from spfde._native import native
from spfde._version import __version__

_COMMON, _CPU, _GPU = ("spfde", "torch"), ("cpu", "isa", "threads"), ("gpu", "triton")


@dataclass(frozen=True)
class Machine:
    """A CPU with an instruction set and threads, or a GPU with Triton's version."""

    spfde: str
    torch: str
    cpu: str = ""
    isa: str = ""
    threads: int = 0
    gpu: str = ""
    triton: str = ""

    @classmethod
    def of_cpu(cls, threads: int | None = None) -> Machine:
        """The CPU of this process, with torch's threads unless told otherwise."""
        threads = torch.get_num_threads() if threads is None else threads
        return cls(__version__, str(torch.__version__), cpu_name(), native().isa(), threads)

    @classmethod
    def of_gpu(cls) -> Machine:
        """The current GPU of this process."""
        facts = GpuFacts.of(torch.device("cuda", torch.cuda.current_device()))
        return cls(__version__, str(torch.__version__), gpu=facts.identity, triton=triton_version())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Machine:
        """Reads what `to_dict` made.

        Raises:
            ValueError: it names a GPU beside a CPU, or lacks a field.
        """
        machine = cls(**values)
        if not (machine.to_dict().keys() == values.keys() in ({*_COMMON, *_CPU}, {*_COMMON, *_GPU})):
            raise ValueError(f"expected a machine with {', '.join(_CPU)} or {', '.join(_GPU)}, got {', '.join(values)}")
        return machine

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not empty: those of the CPU or those of the GPU."""
        return {name: value for name, value in asdict(self).items() if value}

    @property
    def label(self) -> str:
        """Instruction set and threads, or the GPU."""
        return "-".join(self.gpu.lower().split()) if self.gpu else f"{self.isa}-{self.threads}t"

    def differences(self, other: Machine) -> list[str]:
        """Names of the fields in which two machines differ."""
        mine, theirs = asdict(self), asdict(other)
        return [name for name in mine if mine[name] != theirs[name]]

    def describe(self, fields: Sequence[str]) -> str:
        """Some fields in words."""
        return ", ".join(f"{name} {getattr(self, name) or 'none'}" for name in fields)


@dataclass(frozen=True)
class GpuFacts:
    """What CUDA tells of a GPU; 0 where it does not.

    units: multiprocessors. shared: bytes of shared memory that a program may have. clock: GHz of units, at most.
    memory: 10^12 bytes/s. integrated: whether it shares the board's memory.
    """

    name: str
    capability: tuple[int, int]
    units: int
    shared: int
    clock: float = 0.0
    memory: float = 0.0
    integrated: bool = False

    @classmethod
    def of(cls, device: torch.device) -> GpuFacts:
        """Those of a device that is there."""
        facts = torch.cuda.get_device_properties(device)

        def told(name: str, attribute: int) -> int:  # older releases of torch lack them
            found = getattr(facts, name, None)
            return _from_driver(attribute, device.index or 0) if found is None else int(found)

        integrated = bool(told("is_integrated", 18))
        # Two words for each tick of the memory's clock. On a board CUDA gives the multiprocessors' clock for it.
        moved = 0 if integrated else 2e3 * told("memory_clock_rate", 36) * told("memory_bus_width", 37) / 8
        return cls(
            facts.name,
            (facts.major, facts.minor),
            facts.multi_processor_count,
            getattr(facts, "shared_memory_per_block_optin", 99 * 1024),
            told("clock_rate", 13) / 1e6,
            moved / 1e12,
            integrated,
        )

    @property
    def identity(self) -> str:
        """What it goes by: its name, and on a board also multiprocessors and clock.

        Every Jetson Orin calls itself "Orin", whatever its module; and its power mode sets how many multiprocessors it
        has and how fast they may be.
        """
        return f"{self.name} {self.units}sm {1000 * self.clock:.0f}MHz" if self.integrated else self.name


def cpu_name() -> str:
    """The CPU's model name, or its architecture where the system gives no name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _from_driver(attribute: int, index: int) -> int:
    """A CUdevice_attribute of a device, in the order in which CUDA shows them to this process; 0 where none is told."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    value = ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, index)
    return 0 if failed else value.value


def triton_version() -> str:
    """Triton's version, "" where it is not installed."""
    try:
        from triton import __version__ as version
    except ImportError:
        return ""
    return version
