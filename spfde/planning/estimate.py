"""Seconds of work on a device, from its profile: what was measured, what lies between, the roofline for the rest."""

from __future__ import annotations

import math
from bisect import bisect
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from spfde.tuning.device_profile import PARTS, TORCH, TORCH_LAST, DeviceProfile, LayerSeconds
from spfde.tuning.ops import LAST, curve

MEASURED, BETWEEN, ROOFLINE = "measured", "interpolated", "roofline"
NEAR, NEIGHBOURS = 0.02, 4  # a distance that is none; how many measurements a figure between them leans on
FAR = math.log(16)  # of the nearest measurement: further away it says nothing
BYTES = 4


@dataclass(frozen=True)
class Shape:
    """A layer at work: `shape` of the dense weight, `batch` x `size` output positions."""

    shape: tuple[int, ...]
    batch: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    groups: int = 1
    dtype: str = "float32"

    @property
    def positions(self) -> int:
        """How often each weight is used."""
        return self.batch * prod(self.size)

    @property
    def multiply_adds(self) -> int:
        """Those of the dense forward product."""
        return self.positions * prod(self.shape)

    @property
    def kind(self) -> tuple[int, ...]:
        """What a kernel is written for: dimensions, taps, stride, depthwise or not."""
        taps = self.shape[2:] if len(self.shape) == 4 else (1, 1)
        return len(self.shape), *taps, self.stride, int(self.groups > 1)

    @property
    def point(self) -> tuple[float, ...]:
        """Where it lies among others: logarithms of positions, outputs, inputs of a group, taps."""
        rows, cols, *taps = self.shape
        return math.log(self.positions), math.log(rows), math.log(cols), math.log(prod(taps))

    @property
    def activations(self) -> int:
        """Numbers read and written: the input without its border, and the output."""
        return sum(self.ends)

    @property
    def ends(self) -> tuple[int, int]:
        """The numbers of the input without its border, and of the output."""
        rows, cols = self.shape[:2]
        return self.positions * cols * self.groups * self.stride**2, self.positions * rows


@dataclass(frozen=True)
class Seconds:
    """Seconds of the three products of a layer, and where they are from."""

    forward: float
    input_grad: float
    weight_grad: float
    source: str

    @property
    def step(self) -> float:
        """All three."""
        return self.forward + self.input_grad + self.weight_grad

    def scaled(self, factor: float) -> Seconds:
        """That many times as long."""
        return Seconds(*(getattr(self, part) * factor for part in PARTS), self.source)


class Estimator:
    """What layers and ops take on the device of a profile."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self._layers: Mapping[tuple[str, str], list[tuple[Shape, LayerSeconds]]] = defaultdict(list)
        for row in profile.layers:
            size = (row.size[0], row.size[-1])
            shape = Shape(row.shape, row.batch, size, row.stride, row.groups, row.dtype)
            self._layers[row.kernel, row.dtype].append((shape, row))

    @cached_property
    def kernels(self) -> tuple[str, ...]:
        """The sparse layers' kernels that were measured."""
        found = dict.fromkeys(row.kernel for row in self.profile.layers)
        return tuple(kernel for kernel in found if kernel not in (TORCH, TORCH_LAST))

    def layer(self, shape: Shape, kernel: str, density: float = 1.0) -> Seconds:
        """Seconds of a layer by a kernel, at a share of stored weights.

        Between measurements the ratio to the roofline is interpolated, in the logarithms of positions, outputs, inputs,
        taps and density, from the nearest of the same kind; of another kernel size or stride where there is none.
        """
        parts = {part: self._roofline(shape, density) for part in PARTS}
        near = self._nearest(shape, kernel, density)
        if not near or near[0][0] > FAR:
            return Seconds(**parts, source=ROOFLINE)
        source = MEASURED if near[0][0] < NEAR else BETWEEN
        weights = [1 / max(distance, NEAR) ** 3 for distance, _, _ in near]
        for part in PARTS:
            logs = [math.log(getattr(row, part) / self._roofline(other, row.density)) for _, other, row in near]
            mean = sum(w * each for w, each in zip(weights, logs, strict=True)) / sum(weights)
            parts[part] *= math.exp(mean)
        return Seconds(**parts, source=source)

    def copies(self, shape: Shape, first: bool) -> float:
        """Seconds of turning channels_last images round for a kernel that takes the other format, and back.

        Each product of a step reads or writes the input and the output; first: there is no input gradient.
        """
        once = sum(self.op("aten::clone", 2 * BYTES * numbers)[0] for numbers in shape.ends)
        return (2 if first else 3) * once

    def _nearest(self, shape: Shape, kernel: str, density: float) -> list[tuple[float, Shape, LayerSeconds]]:
        found = []
        for other, row in self._layers.get((kernel, shape.dtype), ()):
            gaps = [a - b for a, b in zip(shape.point, other.point, strict=True)]
            gaps.append(math.log(density / row.density))
            found.append((math.hypot(*gaps), other, row))
        found.sort(key=lambda each: each[0])
        own = [each for each in found if each[1].kind == shape.kind]
        like = [each for each in found if each[1].kind[::4] == shape.kind[::4]]  # dimensions, and depthwise or not
        return (own or like)[:NEIGHBOURS]

    def _roofline(self, shape: Shape, density: float) -> float:
        peak = self.profile.peak.get(shape.dtype) or next(iter(self.profile.peak.values()))
        weights = prod(shape.shape) * density
        compute = 2 * shape.positions * weights / peak
        return max(compute, BYTES * (shape.activations + weights) / self.profile.bandwidth) + self.profile.overhead / 3

    @cached_property
    def _curves(self) -> Mapping[str, list[tuple[int, float]]]:
        return {row.op: curve(self.profile.ops, row.op) for row in self.profile.ops}

    def op(self, name: str, amount: int) -> tuple[float, str]:
        """Seconds of an op that multiplies no weight, and where they are from.

        Between amounts that were measured the seconds are interpolated in logarithms; above them they grow in
        proportion, below they stay. An op on channels_last images that was not measured takes what others take.
        """
        points = self._curves.get(name) or self._curves.get(name.removesuffix(LAST))
        if not points:
            bytes_per_second = self.profile.bandwidth
            return amount / bytes_per_second + self.profile.overhead / 10, ROOFLINE
        at = bisect([amount_ for amount_, _ in points], amount)
        if at == len(points):
            return points[-1][1] * amount / max(1, points[-1][0]), BETWEEN
        if at == 0:
            return points[0][1], BETWEEN
        (a, low), (b, high) = points[at - 1 : at + 1]
        share = math.log(amount / max(1, a)) / math.log(b / max(1, a)) if b > a and amount > 0 else 0.0
        return low * (high / low) ** share, BETWEEN
