"""What modules return but for the numbers in it: to stand in for them with as many samples as there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """A tensor's."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def form_of(tensor: Tensor) -> Form:
    """The form of a tensor."""
    return Form(tensor.shape, tensor.dtype, tensor.device)


def filled(form: Any, poison: bool) -> Any:
    """Tensors of a form in place of those that it was taken of; poison: of NaN."""
    if isinstance(form, Mapping):
        return {key: filled(value, poison) for key, value in form.items()}
    if isinstance(form, list | tuple):
        return type(form)(filled(value, poison) for value in form)
    if not isinstance(form, Form):
        return form
    if not form.dtype.is_floating_point:
        return torch.zeros(form.shape, dtype=form.dtype, device=form.device)
    made = torch.empty(form.shape, dtype=form.dtype, device=form.device)
    return made.fill_(torch.nan) if poison else made


class Irregular(Exception):
    """What is returned does not grow evenly with the samples."""


def at(two: Any, three: Any, samples: int) -> Any:
    """The form for so many samples of what has these forms for two and three of them.

    Raises:
        Irregular: that is not to be told.
    """
    if type(two) is not type(three):
        raise Irregular
    if isinstance(two, Mapping):
        if two.keys() != three.keys():
            raise Irregular
        return {key: at(value, three[key], samples) for key, value in two.items()}
    if isinstance(two, list | tuple):
        if len(two) != len(three):
            raise Irregular
        return type(two)(at(*pair, samples) for pair in zip(two, three, strict=True))
    if not isinstance(two, Form):
        if two is not three and two != three:
            raise Irregular
        return two
    if len(two.shape) != len(three.shape) or (two.dtype, two.device) != (three.dtype, three.device):
        raise Irregular
    shape = (a + (b - a) * (samples - 2) for a, b in zip(two.shape, three.shape, strict=True))
    return Form(torch.Size(shape), two.dtype, two.device)
