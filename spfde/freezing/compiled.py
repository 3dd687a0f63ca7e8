"""A model's compiled forward pass, whose code can be dropped without that of anything else."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch import nn


class Compiled:
    """Calls a model through `torch.compile`.

    Every freeze changes what the compiled code was made for. torch.compile notices and compiles again, up to
    `torch._dynamo.config.recompile_limit` times (8) for one function, then gives up on it. `drop()` gives the model a
    function of its own anew: the next call compiles, the old code is freed, other compiled models keep theirs.

    Args:
        model: what is compiled at the first call.
        options: those of `torch.compile`.
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.model, self.options = model, options
        self.drop()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        return self._forward(*args, **kwargs)

    def drop(self) -> None:
        """Forgets the compiled code, as after a freeze or an unfreeze."""
        model = self.model

        def forward(*args: Any, **kwargs: Any) -> Any:
            return model(*args, **kwargs)

        # torch keeps compiled code and counts recompilations by code object: a copy has none of either.
        fresh = FunctionType(forward.__code__.replace(), forward.__globals__, "forward", None, forward.__closure__)
        self._forward = torch.compile(fresh, **self.options)
