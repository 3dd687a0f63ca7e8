"""A dense copy of a model."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from spfde.convert.sparsify import densify
from spfde.export.parity import compare, outputs
from spfde.fusing import unfuse


def to_dense(model: nn.Module, example_input: Any = None) -> nn.Module:
    """A copy of the model made of torch's own layers alone, zeros exact: no spfde is needed to run it.

    example_input: a batch (a tuple: positional arguments, a mapping: keywords) on which both are compared in eval mode.

    Raises:
        ValueError: the outputs differ.
        TypeError: model is not a torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    dense = densify(unfuse(copy.deepcopy(model)))
    if example_input is not None:
        compare(outputs(dense, example_input), outputs(model, example_input), "the dense copy")
    return dense
