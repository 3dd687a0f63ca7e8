"""Makes a plan: sums what the estimator says of the work that a step was seen to do."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spfde._modules import batch_size, map_tensors
from spfde.bench.device import roofline
from spfde.convert.sparsify import sparsify
from spfde.freezing import blocks as blocks_of
from spfde.freezing.block import FreezeBlock
from spfde.freezing.costs import training_flops
from spfde.freezing.schemes import Unreachable
from spfde.fusing import fuse
from spfde.kernels.dispatch import rule
from spfde.kernels.dispatch.cost import constants, masked, ratio
from spfde.kernels.problem import Problem, bucket_of, problem_of
from spfde.kernels.registry import skips_zeros
from spfde.nn import SparseLayer
from spfde.planning.advice import advice
from spfde.planning.estimate import ROOFLINE, Estimator, Seconds, Shape
from spfde.planning.step_seconds import around, frozen_step, shared_norms
from spfde.planning.values import LayerPlan, Lever, Plan
from spfde.planning.work import LayerUse, StepWork, step_work
from spfde.profiling.dense_baseline import takes_images
from spfde.profiling.memory import size_of
from spfde.sparse.pattern import Pattern
from spfde.train.build import freezer
from spfde.train.recipe import Recipe
from spfde.tuning import device_profile
from spfde.tuning.device_profile import TORCH, TORCH_LAST, Device, DeviceProfile
from spfde.tuning.this_device import this_device

GRID = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)  # where a break-even is looked for
MOMENTS = {"sgd": 1, "adamw": 2}  # tensors of the optimizer's state by parameter
SHOWN = ("sparsity", "pattern", "distribution", "fuse", "epochs", "interval", "freeze", "freeze_by", "sieve", "prefix")


def plan(
    model: nn.Module,
    example_input: Any,
    recipe: Recipe | None = None,
    *,
    device: DeviceProfile | str | Path | None = None,
) -> Plan:
    """What training the model by the recipe will take on a device, before anything is trained.

    model: dense, on the CPU; it stays as it is. example_input: a batch as in training (a tuple: positional arguments, a
    mapping: keywords). recipe: its sparsity, pattern, distribution, fuse, optimizer, freeze... and sieve count; None:
    `Recipe()`. device: a profile, its file, or the name of one that is shipped; None: one that is shipped for this
    machine and this number of threads, else two seconds of measuring, from which the rest is guessed.

    A layer's seconds are those that were measured on the device, interpolated between the nearest of its kind, or the
    roofline (see `Estimator.layer`); everything else in a step is a torch op with a curve of its own. The step is
    looked at on a few samples.

    Raises:
        OSError, ValueError: the profile cannot be read, or the recipe does not fit the model.
    """
    recipe = Recipe() if recipe is None else recipe
    profile, here = _profile(device)
    dense_model = deepcopy(model).train()
    sparse_model = deepcopy(model).train()
    if recipe.sparsity:
        sparse_model = sparsify(
            sparse_model, recipe.sparsity, pattern=recipe.pattern, distribution=recipe.distribution
        )  # fmt: skip
    if recipe.fuse:
        sparse_model = fuse(sparse_model)
    return _Planner(profile, here, recipe, dense_model, sparse_model, example_input).plan()


def _profile(device: DeviceProfile | str | Path | None) -> tuple[DeviceProfile, bool]:
    """The profile, and whether this is the device."""
    here = this_device("cpu")
    if device is not None:
        found = device if isinstance(device, DeviceProfile) else device_profile.named(device)
        return found, _same(found.device, here)
    for name in device_profile.shipped():
        found = device_profile.named(name)
        if _same(found.device, here):
            return found, True
    return roofline(here, "spfde plan"), True


def _same(one: Device, other: Device) -> bool:
    """Whether two are one device; a virtual machine's CPU may be any of its maker's, so the instruction set counts."""
    return one.label == other.label and one.facts.get("isa") == other.facts.get("isa")


class _Planner:
    """The sums of one plan."""

    def __init__(
        self, profile: DeviceProfile, here: bool, recipe: Recipe, dense: nn.Module, sparse: nn.Module, inputs: Any
    ) -> None:
        self.profile, self.here, self.recipe = profile, here, recipe
        self.dense_model, self.sparse_model, self.inputs = dense, sparse, inputs
        self.batch = batch_size(inputs)
        self.estimator = Estimator(profile)
        # Dense in each memory format, and with the kernels of the layers in it.
        self.dense_works = {TORCH: step_work(dense, inputs)}
        if takes_images(inputs):
            last = torch.channels_last
            images = map_tensors(lambda x: x.contiguous(memory_format=last) if x.dim() == 4 else x, inputs)
            self.dense_works[TORCH_LAST] = step_work(deepcopy(dense).to(memory_format=last), images)
        self.dense_work, self.sparse_work = self.dense_works[TORCH], step_work(sparse, inputs)
        self.used: dict[str, Seconds] = {}  # seconds of the layers of the sparse step, by name

    def plan(self) -> Plan:
        totals = {kernel: self._torch_total(kernel) + self._around(work) for kernel, work in self.dense_works.items()}
        best, dense = min(totals.items(), key=lambda each: each[1])
        rows = [self._row(use, best) for use in self.sparse_work.layers]
        sparse = sum(row.planned for row in rows) + self._around(self.sparse_work)
        guessed = sum(row.planned for row in rows if row.source == ROOFLINE) + self._guessed_ops()
        found, schedule, unreachable = self._blocks()
        given = self.estimator, self.sparse_work, self.used, found
        stages = [sparse, *(frozen_step(*given, front, self.recipe.prefix) for front in range(1, len(found) + 1))]
        fronts = self._fronts(found, schedule)
        mean = sum(stages[front] for front in fronts) / len(fronts) if fronts else sparse
        most = max(fronts, default=0) or len(found) // 2
        kept = 1 - (self.recipe.sieve or 0.0)
        made = Plan(
            self.profile.device.label, f"{self.profile.date[:10]} by {self.profile.command}", self.batch,
            {name: getattr(self.recipe, name) for name in SHOWN}, tuple(rows), dense, sparse,
            stages[most] if found else None, tuple(stages), mean, kept,
            self._levers(found, fronts, stages, dense, sparse, mean, kept), self._parts(rows), guessed / sparse, (),
        )  # fmt: skip
        return replace(made, advice=(*unreachable, *advice(made)))

    # ---- seconds ----------------------------------------------------------------------------------------------------

    def _torch_total(self, kernel: str) -> float:
        return sum(_of_step(self._torch(use.shape, kernel), use) for use in self.dense_work.layers)

    def _torch(self, shape: Shape, kernel: str) -> Seconds:
        found = self.estimator.layer(shape, kernel if len(shape.shape) == 4 else TORCH)
        return found if found.source != ROOFLINE else self.estimator.layer(shape, TORCH)

    def _sparse(self, shape: Shape, kernel: str, density: float, problem: Problem) -> Seconds:
        """Seconds of a sparse layer; a pattern that was not measured goes by the cost model, from single weights.

        Where nothing was measured on a CPU the dense seconds do: at the roofline a sparse product would lose nothing
        to its index and to moving activations. The cost model is of CPUs; a GPU's roofline stays what it is.
        """
        if not skips_zeros(kernel):
            return self._torch(shape, TORCH).scaled(masked(problem))
        found, cost = self.estimator.layer(shape, kernel, density), constants(problem.op, "avx2")
        if found.source == ROOFLINE:
            if self.profile.device.kind != "cpu":
                return found
            size = prod(shape.shape)
            here = problem._replace(bucket=bucket_of(round(density * size), size))
            return replace(self._torch(shape, TORCH).scaled(ratio(here, cost)), source=ROOFLINE)
        if problem.block == (1, 1):
            return found
        return found.scaled(ratio(problem, cost) / ratio(problem._replace(block=(1, 1)), cost))

    def _around(self, work: StepWork) -> float:
        return around(self.estimator, work, self.used)

    def _guessed_ops(self) -> float:
        found = [self.estimator.op(op.name, op.amount) for phase in self.sparse_work.ops.values() for op in phase]
        return sum(seconds for seconds, source in found if source == ROOFLINE)

    def _row(self, use: LayerUse, best: str) -> LayerPlan:
        dense = self._torch(use.shape, best)
        if use.sparse is None:
            planned = self.used[use.name] = self._torch(use.shape, TORCH)  # the sparse step's images are contiguous
            return LayerPlan(
                use.name, use.kind, use.shape.shape, 0.0, "dense", "stays dense", _of_step(dense, use),
                _of_step(planned, use), None, planned.source,
            )  # fmt: skip
        kernel, reason, problem = self._choice(use.sparse, use.shape, use.density)
        planned = self._sparse(use.shape, kernel, use.density, problem)
        source = ROOFLINE if ROOFLINE in (dense.source, planned.source) else planned.source
        copies = self._copies(use) if skips_zeros(kernel) else 0.0
        self.used[use.name] = planned.scaled(1 + copies / planned.step)
        return LayerPlan(
            use.name, use.kind, use.shape.shape, 1 - use.density, kernel, reason, _of_step(dense, use),
            _of_step(planned, use) + copies, self._break_even(use, problem, _of_step(dense, use)), source,
        )  # fmt: skip

    def _copies(self, use: LayerUse) -> float:
        """A CPU's sparse kernels take contiguous images alone."""
        return self.estimator.copies(use.shape, use.first) if use.last and self.profile.device.kind == "cpu" else 0.0

    def _choice(self, layer: SparseLayer, shape: Shape, density: float) -> tuple[str, str, Problem]:
        """The kernel at the full batch: dispatch's on this machine, the fastest by the profile on another."""
        x_shape = (shape.batch, layer.plan.shape[1] * layer.plan.window.groups, *_input_size(shape))
        plan_ = layer.plan
        problem = problem_of(
            plan_.shape, x_shape, plan_.multiplied, plan_.block, plan_.window, "cpu", torch.float32
        )._replace(size=shape.size)  # fmt: skip
        if self.here or not self.estimator.kernels:
            choice = rule.choose("auto", "cpu", torch.float32, problem)
            return choice.kernel, choice.reason, problem
        kernel = min(self.estimator.kernels, key=lambda k: self._sparse(shape, k, density, problem).step)
        return kernel, f"the fastest by the profile of {self.profile.device.label}", problem

    def _break_even(self, use: LayerUse, problem: Problem, dense: float) -> float | None:
        kernels = [kernel for kernel in self.estimator.kernels if skips_zeros(kernel)] or ["native"]
        fixed = Pattern.parse(self.recipe.pattern).sparsity
        for sparsity in GRID if fixed is None else [fixed]:
            for kernel in kernels:
                if _of_step(self._sparse(use.shape, kernel, 1 - sparsity, problem), use) + self._copies(use) < dense:
                    return sparsity
        return None

    # ---- freezing ---------------------------------------------------------------------------------------------------

    def _blocks(self) -> tuple[list[FreezeBlock], Any, tuple[str, ...]]:
        """The blocks, the recipe's freezer, and why it saves less than was asked; nothing if there are no blocks."""
        try:
            found = blocks_of(self.sparse_model, self.inputs)
        except (ValueError, TypeError):
            if self.recipe.freeze:
                raise
            return [], None, ()
        if not self.recipe.freeze:
            return found, None, ()
        try:
            return found, freezer(self.sparse_model, tuple(found), self.recipe, None), ()
        except ValueError as error:
            if not isinstance(error.__cause__, Unreachable):
                raise
            wanted, most = self.recipe.freeze, error.__cause__.most
            self.recipe = replace(self.recipe, freeze=most)
            how = f"planned with freeze {most:g}" if most else "planned without freezing"
            told = f"freeze {wanted:g} is out of reach, {how}: {error.__cause__}"
        made = freezer(self.sparse_model, tuple(found), self.recipe, None) if most else None
        return found, made, (told,)

    def _fronts(self, found: Sequence[FreezeBlock], schedule: Any) -> list[int]:
        """How many blocks are frozen in each epoch; nothing where that is decided as the training goes."""
        planned = getattr(schedule.report(), "planned", ()) if hasattr(schedule, "report") else ()
        names = [block.name for block in found]
        fronts = []
        for frozen in planned:
            count = next((i for i, name in enumerate(names) if name not in frozen), len(names))
            fronts.append(count)
        return fronts

    # ---- what it saves ----------------------------------------------------------------------------------------------

    def _levers(
        self, found: Sequence[FreezeBlock], fronts: Sequence[int], stages: Sequence[float], dense: float, sparse: float,
        mean: float, kept: float,
    ) -> tuple[Lever, ...]:  # fmt: skip
        levers = []
        whole, stored = (_flops(work.layers) for work in (self.dense_work, self.sparse_work))
        if self.recipe.sparsity:
            bytes_ = self._weights_memory(self.dense_model) - self._weights_memory(self.sparse_model)
            levers.append(Lever("weight sparsity", 1 - stored / whole, 1 - sparse / dense, bytes_, "of a dense step"))
        if self.recipe.freeze and fronts:
            costs = training_flops(found)
            flops = 1 - sum(costs[front] for front in fronts) / (costs[0] * len(fronts))
            memory = round(self.sparse_work.kept * max(fronts) / max(1, len(found)))
            note = "of the sparse training; memory once the most blocks are frozen, in proportion to their number"
            levers.append(Lever("layer freezing", flops, 1 - mean / sparse, memory, note))
        elif self.recipe.freeze:
            levers.append(Lever("layer freezing", 0.0, None, 0, "decided as the training goes"))
        if self.recipe.sieve:
            levers.append(Lever("data sieving", 1 - kept, 1 - kept, 0, "of the steps of an epoch"))
        return tuple(levers)

    def _weights_memory(self, model: nn.Module) -> int:
        """Bytes of weights, gradients, optimizer state and index."""
        parameters = size_of(list(model.parameters()))
        plans = [m.plan for m in model.modules() if isinstance(m, SparseLayer)]
        return parameters * (2 + MOMENTS.get(self.recipe.optimizer, 1)) + size_of([list(model.buffers()), plans])

    def _parts(self, rows: Sequence[LayerPlan]) -> dict[str, float]:
        parts: dict[str, float] = {}
        for row in rows:
            kind = "sparse layers" if row.sparsity and skips_zeros(row.kernel) else "dense layers"
            parts[kind] = parts.get(kind, 0.0) + row.planned
        for op in (op for phase in self.sparse_work.ops.values() for op in phase):
            kind = _kind(op.name)
            parts[kind] = parts.get(kind, 0.0) + self.estimator.op(op.name, op.amount)[0]
        if norms := shared_norms(self.estimator, self.sparse_work.layers, self.used):
            parts["norms"] = parts.get("norms", 0.0) + norms
        parts["optimizer"] = self.estimator.op("optimizer", self.sparse_work.parameters)[0]
        return dict(sorted(parts.items(), key=lambda each: -each[1]))


def _of_step(seconds: Seconds, use: LayerUse) -> float:
    return seconds.needing(not use.first, True)


def _input_size(shape: Shape) -> tuple[int, ...]:
    return tuple(side * shape.stride for side in shape.size) if len(shape.shape) == 4 else ()


def _flops(uses: Sequence[LayerUse]) -> float:
    return sum(2 * use.shape.multiply_adds * use.density * (2 if use.first else 3) for use in uses)


def _kind(name: str) -> str:
    for word, kind in (("norm", "norms"), ("attention", "attention"), ("bmm", "attention"), ("softmax", "attention")):
        if word in name:
            return kind
    words = ("relu", "gelu", "silu", "threshold", "sigmoid", "hardtanh", "hardswish", "tanh", "clamp")
    return "activations" if any(word in name for word in words) else "other ops"
