"""A device profile: what work takes on one device, measured there and read anywhere (docs/device-profiles.md).

`spfde bench --device-profile` writes one, `spfde plan --device` reads it. Nothing in it is estimated: what a device
does not tell, or was not measured, is absent, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Any

from spfde._files import write_json
from spfde._names import unknown
from spfde._schema import read, to_plain
from spfde._words import count
from spfde.energy.cost import TrainingCost

FORMAT, VERSION = "spfde device profile", 1
KINDS = ("cpu", "cuda")
# The dense layer itself; every other name is a sparse layer's kernel.
TORCH, TORCH_LAST = "torch", "torch channels_last"
PARTS = ("forward", "input_grad", "weight_grad")


@dataclass(frozen=True)
class Device:
    """Which device: a profile holds for one name, number of threads or multiprocessors, and power mode.

    kind: "cpu" or "cuda". units: threads of a CPU, multiprocessors of a GPU. memory: bytes. mode: the power mode that
    was set, "" where there is none. facts: whatever else was asked of it ("l4t": "39.2"). absent: fact -> why the
    device does not tell it.
    """

    name: str
    kind: str
    units: int
    memory: int
    mode: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name, units and mode in words."""
        units = count(self.units, "thread" if self.kind == "cpu" else "multiprocessor")
        return ", ".join([self.name, units, *([self.mode] if self.mode else [])])


@dataclass(frozen=True)
class LayerSeconds:
    """Median seconds of the three products of one layer by one kernel.

    shape: of the dense weight, [outputs, inputs] or [outputs, inputs / groups, kernel_h, kernel_w]. batch: samples; of
    a linear layer: rows of its input. size: rows and columns of a convolution's output, [1, 1] of a linear layer.
    kernel: "torch" or "torch channels_last" of the dense layer, whose density is 1; else that of a sparse layer, of
    which "dense" is the masked dense product. density: share of the weights that is stored. spread: the largest of
    the three (see `samples.Timing`). joules: of the three together, above the idle device; None where nobody tells.
    training: seconds of forward and both gradients in one call, as a training step makes it. normed: of that with a
    norm and a ReLU behind the layer, in the same op; None where they are ops of their own, or nobody measured.
    """

    shape: tuple[int, ...]
    batch: int
    size: tuple[int, ...]
    stride: int
    groups: int
    dtype: str
    pattern: str
    density: float
    kernel: str
    forward: float
    input_grad: float
    weight_grad: float
    spread: float
    joules: float | None = None
    training: float | None = None
    normed: float | None = None

    @property
    def step(self) -> float:
        """Seconds of all three: in one call, if that was measured, else one by one."""
        return self.training or self.forward + self.input_grad + self.weight_grad

    @property
    def multiply_adds(self) -> int:
        """Those of the dense forward product."""
        return self.batch * prod(self.size) * prod(self.shape)

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two rows the same measurement."""
        how = (self.stride, self.groups, self.dtype, self.pattern, self.density, self.kernel)
        return self.shape, self.batch, self.size, *how

    def least(self, other: LayerSeconds) -> LayerSeconds:
        """The lesser figures of two of the same measurement."""
        found = {name: (getattr(self, name), getattr(other, name)) for name in (*PARTS, "training", "normed")}
        return replace(
            self, **{name: min((s for s in two if s is not None), default=None) for name, two in found.items()}
        )


@dataclass(frozen=True)
class OpSeconds:
    """Median seconds of one torch op that multiplies no weight, by how much there is of it.

    op: as torch names it ("aten::native_batch_norm"), or "optimizer" for a fused SGD step. amount: bytes read and
    written; of a product of two activations (a batched one, attention) FLOPs; of "optimizer" bytes of its parameters.
    """

    op: str
    amount: int
    seconds: float


@dataclass(frozen=True)
class DeviceProfile:
    """What work takes on a device.

    software: versions that ran, by name ("torch", "spfde", "isa", "triton", "cuda"). peak: the most dense FLOP/s that
    were measured, by dtype. bandwidth: bytes/s of a copy far larger than any cache. overhead: seconds that a call of a
    small layer takes beside its work. idle_watts: None where nobody tells. training: windows of training steps with
    what the machine drew. date: ISO 8601. command: what measured it.
    """

    device: Device
    software: Mapping[str, str]
    date: str
    command: str
    peak: Mapping[str, float]
    bandwidth: float
    overhead: float
    layers: tuple[LayerSeconds, ...] = ()
    ops: tuple[OpSeconds, ...] = ()
    idle_watts: float | None = None
    training: tuple[TrainingCost, ...] = ()
    format: str = FORMAT
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, value in (("bandwidth", self.bandwidth), *((f"peak {k}", v) for k, v in self.peak.items())):
            if not value > 0:
                raise ValueError(f"expected a positive {name} in a device profile, got {value!r}, try measuring again")
        if not self.peak:
            raise ValueError("expected the peak of at least one dtype in a device profile, got none, try float32")
        if self.device.kind not in KINDS:
            raise ValueError(f"expected a device of kind {' or '.join(KINDS)}, got {self.device.kind!r}")
        for row in self.layers:
            seconds = [getattr(row, part) for part in PARTS] + [s for s in (row.training, row.normed) if s is not None]
            if len(row.shape) not in (2, 4) or not all(each > 0 for each in seconds) or row.density <= 0:
                raise ValueError(f"expected a layer with positive seconds and density, got {row}, try measuring again")
        for row in self.ops:
            if row.amount < 0 or row.seconds <= 0:
                raise ValueError(f"expected an op with positive seconds, got {row}, try measuring again")

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; format and version first."""
        return to_plain(self)

    def save(self, path: str | Path) -> Path:
        """Writes JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())
        return Path(path)

    def least(self, other: DeviceProfile) -> DeviceProfile:
        """This profile with the lesser figures of another of the same device, and what that has beside.

        A virtual machine is slow for seconds at a time, by what its host does: that is in one of two runs, seldom both.
        """
        layers = {row.key: row for row in self.layers}
        for row in other.layers:
            layers[row.key] = row.least(layers[row.key]) if row.key in layers else row
        ops = {(row.op, row.amount): row for row in self.ops}
        for op in other.ops:
            at = op.op, op.amount
            ops[at] = min(op, ops.get(at, op), key=lambda each: each.seconds)
        return replace(self, layers=tuple(layers.values()), ops=tuple(ops.values()))

    def joined(self, other: DeviceProfile) -> DeviceProfile:
        """This profile with the layers and ops of another of the same device added."""
        return replace(self, layers=(*self.layers, *other.layers), ops=(*self.ops, *other.ops))


def load(path: str | Path) -> DeviceProfile:
    """Reads what `save` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no device profile, of a later version, or damaged; names the file and the key.
    """
    return read(DeviceProfile, path, "a device profile", "spfde bench --device-profile")


def shipped() -> dict[str, Path]:
    """The profiles that come with spfde, by name."""
    folder = files("spfde.tuning") / "devices"
    return {path.stem: path for path in sorted(Path(str(folder)).glob("*.json"))}


def named(name: str | Path) -> DeviceProfile:
    """A profile by its file, or by the name of one that is shipped.

    Raises:
        OSError, ValueError: see `load`; or there is none of that name.
    """
    known = shipped()
    if str(name) in known:
        return load(known[str(name)])
    if Path(name).suffix == ".json" or Path(name).exists():
        return load(name)
    raise unknown("a device", str(name), known) if known else ValueError(f"expected a profile's file, got {name!r}")
