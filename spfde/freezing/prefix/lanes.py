"""Which of a chain's steps the native core takes together, and in which order all of them run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spfde.freezing.prefix.linear import FoldedLinear
from spfde.kernels.conv_chain import ChainStep, ConvChain, near, pays
from spfde.kernels.dtypes import cast

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
    if any(isinstance(step.folded, FoldedLinear) for step in steps):
        return alone
    x, batch = inputs[0], len(inputs[0])
    if any(other.dtype != x.dtype or len(other) != batch for other in inputs) or x.dtype == torch.float64:
        return alone
    shapes: list[Shape] = [tuple(each.shape[1:]) for each in inputs]
    for step in steps:
        channels, *size = shapes[step.source]
        shapes.append((step.folded.outputs(channels), *step.folded.window.output_size(*size)))
        if step.residual is not None and shapes[step.residual] != shapes[-1]:
            return alone
    if not (near(shapes) if steady else pays(batch, shapes, torch.get_num_threads())):
        return alone
    result = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    stored = [step.folded.stored((batch, *shapes[step.source])) for step in steps]
    order: list[Together | int] = []
    first = 0
    while first < len(steps):
        last = first
        while last < len(steps) and stored[last] is not None:
            last += 1
        if last == first:
            order.append(first)
            first += 1
            continue
        order.append(_together(steps, stored, first, last, len(inputs), shapes, result))
        first = last
    return order


def _together(
    steps: Sequence[Any],
    stored: Sequence[Any],
    first: int,
    last: int,
    inputs: int,
    shapes: Sequence[Shape],
    result: torch.dtype,
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
                step.folded.window, *stored[first + i], step.folded.bias, step.act,
            )
            for i, step in enumerate(here)
        ],
    )  # fmt: skip
    return Together(chain, {v: own[v] for v in read}, {v: own[v] for v in made if v in later}, result)
