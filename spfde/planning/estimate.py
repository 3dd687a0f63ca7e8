"""Seconds of work on a device, from its profile: what was measured, what lies between, the roofline for the rest."""

from __future__ import annotations

import math
from bisect import bisect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from spfde.tuning.device_profile import PARTS, TORCH, TORCH_LAST, DeviceProfile, LayerSeconds
from spfde.tuning.ops import LAST, curve

MEASURED, BETWEEN, ROOFLINE = "measured", "interpolated", "roofline"
NEAR, NEIGHBOURS = 0.02, 4  # a distance that is none; how many measurements a figure between them leans on
FAR = math.log(16)  # of the nearest measurement: further away it says nothing
BYTES = 4
Near = tuple[float, "Shape", LayerSeconds]  # a measurement, and how far away it is


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
        """Where it lies among others: logarithms of positions, outputs, inputs of a group, taps, and half of a side.

        As many positions in few large images are other work than in many small ones: those have more of a border.
        """
        rows, cols, *taps = self.shape
        side = math.log(prod(self.size)) / 2
        return math.log(self.positions), math.log(rows), math.log(cols), math.log(prod(taps)), side / 2

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
    """Seconds of a layer: of its three products alone, of all in a step, and where they are from.

    norm: what a norm and a ReLU behind it add to a step where they are one op with it; None where nobody measured.
    """

    forward: float
    input_grad: float
    weight_grad: float
    step: float
    source: str
    norm: float | None = None

    def needing(self, input_grad: bool, weight_grad: bool) -> float:
        """Of a step with these gradients: less by the share that the others have of the three products."""
        if not (input_grad or weight_grad):
            return self.forward
        spared = (not input_grad) * self.input_grad + (not weight_grad) * self.weight_grad
        return self.step * (1 - spared / (self.forward + self.input_grad + self.weight_grad))

    def scaled(self, factor: float) -> Seconds:
        """That many times as long."""
        parts = {part: getattr(self, part) * factor for part in (*PARTS, "step")}
        return replace(self, **parts)


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
        taps, sides and density, from the nearest of the same kind; of another kernel size or stride where none is.
        """
        near, floor = self._nearest(shape, kernel, density), self._roofline(shape, density)
        if not near or near[0][0] > FAR:
            return Seconds(floor, floor, floor, 3 * floor, ROOFLINE)
        parts = {part: floor * self._over(near, part) for part in PARTS}
        step = 3 * floor * self._over(near, "step", 3)
        rows = [each for each in near if each[2].normed is not None]
        norm = max(0.0, 3 * floor * (self._over(rows, "normed", 3) - self._over(rows, "step", 3))) if rows else None
        return Seconds(**parts, step=step, source=MEASURED if near[0][0] < NEAR else BETWEEN, norm=norm)

    def _over(self, near: Sequence[Near], name: str, products: int = 1) -> float:
        """How many times the roofline of so many products the measurements take, the nearer the more they count."""
        weights = [1 / max(distance, NEAR) ** 3 for distance, _, _ in near]
        logs = [math.log(getattr(row, name) / products / self._roofline(other, row.density)) for _, other, row in near]
        return math.exp(sum(w * each for w, each in zip(weights, logs, strict=True)) / sum(weights))

    def copies(self, shape: Shape, first: bool) -> float:
        """Seconds of turning channels_last images round for a kernel that takes the other format, and back.

        Each product of a step reads or writes the input and the output; first: there is no input gradient.
        """
        once = sum(self.op("aten::clone", 2 * BYTES * numbers)[0] for numbers in shape.ends)
        return (2 if first else 3) * once

    def _nearest(self, shape: Shape, kernel: str, density: float) -> list[Near]:
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
