"""Which of a chain's steps the native core takes together, and in which order all of them run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spfde.freezing.prefix.folded import Folded
from spfde.kernels.call import Seen
from spfde.kernels.conv_chain import ChainStep, ConvChain, near, pays
from spfde.kernels.dispatch import rule
from spfde.kernels.dtypes import cast, compute_and_result_dtype
from spfde.kernels.problem import problem_of
from spfde.nn.conv2d import padding_sides
from spfde.sparse.kernel_index import Window

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Together:
    """Steps that the native core takes as one.

    inputs, outputs: values by their number, and by that which they have in the core. result: precision of the outputs.
    """

    chain: ConvChain
    inputs: dict[int, int]
    outputs: dict[int, int]
    result: torch.dtype

    def run(self, values: dict[int, Any]) -> None:
        """Makes the outputs out of the inputs among `values`."""
        given = {own: cast(values[value], torch.float32) for value, own in self.inputs.items()}
        made = self.chain(given, list(self.outputs.values()))
        values.update((value, cast(y, self.result)) for value, y in zip(self.outputs, made, strict=True))


def schedule(steps: Sequence[Any], inputs: Sequence[Any], steady: bool) -> list[Together | int]:
    """The order of work for such inputs: numbers of steps that run alone, and groups that the core takes.

    steady: an image's result must not depend on its batch, so the core takes small batches too.
    """
    alone: list[Together | int] = list(range(len(steps)))
    if not all(type(x) in (Tensor, nn.Parameter) and x.dim() == 4 and x.is_cpu for x in inputs):
        return alone
    x, batch = inputs[0], len(inputs[0])
    if any(other.dtype != x.dtype or len(other) != batch for other in inputs) or x.dtype == torch.float64:
        return alone
    shapes: list[Shape] = [tuple(each.shape[1:]) for each in inputs]
    for step in steps:
        size = window_of(step.folded).output_size(*shapes[step.source][1:])
        shapes.append((step.folded.outputs, *size))
        if step.residual is not None and shapes[step.residual] != shapes[-1]:
            return alone
    if not (near(shapes) if steady else pays(batch, shapes, torch.get_num_threads())):
        return alone
    _, result = compute_and_result_dtype(x, steps[0].folded.weights)
    order: list[Together | int] = []
    first = 0
    while first < len(steps):
        last = first
        while last < len(steps) and _is_native(steps[last].folded, (batch, *shapes[steps[last].source])):
            last += 1
        if last == first:
            order.append(first)
            first += 1
            continue
        order.append(_together(steps, first, last, len(inputs), shapes, result))
        first = last
    return order


def window_of(folded: Folded) -> Window:
    """How the convolution is applied to what it is given, but for another padding than with zeros."""
    layer = folded.layer
    if not folded.sparse:
        return Window(layer.kernel_size, layer.stride, padding_sides(layer), layer.dilation, layer.groups)
    if layer._pad_before is not None:
        return layer.window._replace(padding=padding_sides(layer))
    return layer.window._replace(stride=layer.stride) if layer._thins else layer.window


def _is_native(folded: Folded, shape: tuple[int, ...]) -> bool:
    layer = folded.layer
    if not folded.sparse or layer._pad_before is not None:
        return False
    plan = layer.plan
    if plan.arranged_block != (1, 1) or plan.kept_rows is not None or folded.weights.dtype != torch.float32:
        return False
    seen = shape[:2] + window_of(folded).output_size(*shape[2:]) if layer._thins else shape
    problem = problem_of(plan.shape, seen, plan.multiplied, plan.block, plan.window, "cpu", torch.float32)
    kernel = rule.choose(layer.dispatch_key, "cpu", torch.float32, problem).kernel
    plan.last_seen = Seen("cpu", torch.float32, seen)
    return kernel == "native"


def _together(
    steps: Sequence[Any], first: int, last: int, inputs: int, shapes: Sequence[Shape], result: torch.dtype
) -> Together:
    """Steps [first, last) as one: all that they read from elsewhere, and all that later ones read of them."""
    here = steps[first:last]
    made = range(inputs + first, inputs + last)
    read = dict.fromkeys(v for step in here for v in (step.source, step.residual) if v is not None and v not in made)
    later = {v for step in steps[last:] for v in (step.source, step.residual)} | {inputs + len(steps) - 1}
    own = {value: i for i, value in enumerate([*read, *made])}
    chain = ConvChain(
        [shapes[value] for value in own],
        [
            ChainStep(
                own[step.source], own[inputs + first + i], None if step.residual is None else own[step.residual],
                window_of(step.folded), step.folded.layer.plan.kernel_index,
                step.folded.layer.plan.arrange(step.folded.weights).contiguous(), step.folded.bias, step.act,
            )
            for i, step in enumerate(here)
        ],
    )  # fmt: skip
    return Together(chain, {v: own[v] for v in read}, {v: own[v] for v in made if v in later}, result)
