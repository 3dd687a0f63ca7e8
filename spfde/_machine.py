"""The machine that measured seconds hold for: a CPU or a GPU, and the versions that ran on it."""

from __future__ import annotations

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
        return cls(__version__, str(torch.__version__), gpu=torch.cuda.get_device_name(), triton=triton_version())

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


def cpu_name() -> str:
    """The CPU's model name, or its architecture where the system gives no name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def triton_version() -> str:
    """Triton's version, "" where it is not installed."""
    try:
        from triton import __version__ as version
    except ImportError:
        return ""
    return version
