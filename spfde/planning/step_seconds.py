"""Seconds of what a step does beside its layers, and of a step whose front is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from spfde.freezing.block import FreezeBlock
from spfde.planning.estimate import BYTES, Estimator, Seconds
from spfde.planning.work import BACKWARD, FORWARD, LayerUse, StepWork
from spfde.tuning.ops import NORM, NORM_GRAD, Op

FOLDABLE = ("batch_norm", "norm_act")  # norms that a frozen convolution takes in, with what else follows it:
FOLDED = (*FOLDABLE, "relu", "clamp", "hardtanh", "add")
Used = Mapping[str, Seconds]  # of the layers, by name


def of_ops(estimator: Estimator, ops: Iterable[Op]) -> float:
    """All of them, one after the other."""
    return sum(estimator.op(op.name, op.amount)[0] for op in ops)


def shared_norms(estimator: Estimator, uses: Sequence[LayerUse], used: Used) -> float:
    """What the norms add that are one op with one of these layers; where nobody measured that, as ops alone."""
    seconds = 0.0
    for use in (use for use in uses if use.normed):
        known, size = used[use.name].norm, BYTES * use.shape.ends[1]
        apart = (Op(NORM, 2 * size), Op(NORM_GRAD, 3 * size)) if known is None else ()  # tensors read and written
        seconds += (known or 0.0) + of_ops(estimator, apart)
    return seconds


def around(estimator: Estimator, work: StepWork, used: Used) -> float:
    """Of a step beside its layers: other ops, shared norms, the optimizer."""
    ops = sum(of_ops(estimator, phase) for phase in work.ops.values())
    return ops + shared_norms(estimator, work.layers, used) + estimator.op("optimizer", work.parameters)[0]


def frozen_step(
    estimator: Estimator, work: StepWork, used: Used, blocks: Sequence[FreezeBlock], front: int, prefix: bool
) -> float:
    """Of a step with so many blocks frozen: less backward, less for the optimizer, with `prefix` a folded forward."""
    ops = work.ops
    traced = {each.traced.name: each for block in blocks for each in block.layers}
    traced.update({each.traced.name: each for each in blocks[0].rest})
    seconds, active, frozen = 0.0, [], 0.0
    for use in work.layers:
        layer = traced.get(use.name)
        input_grad = not use.first and (layer is None or front < layer.cut_at)
        weight_grad = layer is None or front < layer.fixed_at
        seconds += used[use.name].needing(input_grad, weight_grad)
        if weight_grad:
            active.append(use)
        else:
            frozen += BYTES * use.density * prod(use.shape.shape)
    begin = min((use.before for use in active), default=len(ops[FORWARD]))
    end = max((use.after for use in active), default=0)
    inference = ops[FORWARD][:begin]
    if prefix and any(name in op.name for op in inference for name in FOLDABLE):
        inference = tuple(op for op in inference if not any(name in op.name for name in FOLDED))
    left = (*inference, *ops[FORWARD][begin:], *ops[BACKWARD][:end])
    optimizer = estimator.op("optimizer", max(0, round(work.parameters - frozen)))[0]
    return seconds + of_ops(estimator, left) + shared_norms(estimator, active, used) + optimizer
