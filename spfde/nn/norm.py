"""A BatchNorm2d that adds a residual and applies an activation in the same passes over memory."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from spfde._names import unknown
from spfde.kernels.memory_format import memory_format_of
from spfde.kernels.norm_act import activation_of, norm_act

# What is done with a y and a residual, by name: the order matters to the memory format, in place to the precision.
ADDITIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": operator.add, "radd": lambda y, residual: residual + y, "add_": operator.iadd,
}  # fmt: skip


class FusedNormAct2d(nn.BatchNorm2d):
    """y = act(batch_norm(x) + residual): nn.BatchNorm2d with the same parameters, buffers and state_dict keys.

    Called with x alone it is a BatchNorm2d. `spfde.fuse` puts it where a norm, an addition and an activation follow one
    another, and passes the other two along.
    """

    def forward(
        self, x: Tensor, residual: Any = None, act: str = "none", recompute: bool = False, add: str = "add"
    ) -> Tensor:
        """y [N, C, H, W] in the memory format of x; act: "none", "relu", "relu6", or another of `norm_act`.

        residual: a tensor like x; anything else that can be added to y is, afterwards. recompute: as in `norm_act`.
        add: "add", "radd" where the residual comes first, so that the sum has its memory format, or "add_" to y itself,
        whose precision and shape the sum then has.

        Raises:
            ValueError: x is not [N, C, H, W], `act` or `add` names none, or one value per channel would give a
                variance; the running statistics have not moved then.
        """
        if residual is not None and not _in_same_passes(x, residual, add):
            return activation_of(act)(ADDITIONS[add](self(x), residual))
        self._check_input_dim(x)
        return counted(self, partial(norm_act, x), residual=residual, act=act, recompute=recompute)


def counted(norm: nn.BatchNorm2d, op: Callable[..., Any], **options: Any) -> Any:
    """What `op` makes with the norm's parameters, as `norm_act` takes them: a batch that counts, unless None.

    op: (running_mean, running_var, weight, bias, training=, momentum=, eps=, **options) -> y or None.
    """
    track = norm.training and norm.track_running_stats
    batch = norm.training or norm.running_mean is None
    running = (norm.running_mean, norm.running_var) if track or not batch else (None, None)
    count = norm.num_batches_tracked if track else None
    momentum = norm.momentum
    if momentum is None:  # all batches so far weigh the same
        momentum = 0.0 if count is None else 1.0 / (float(count) + 1.0)
    y = op(*running, norm.weight, norm.bias, training=batch, momentum=momentum, eps=norm.eps, **options)
    if count is not None and y is not None:
        count.add_(1)  # last: what raises has not counted
    return y


def _in_same_passes(x: Tensor, residual: Any, add: str) -> bool:
    """Whether the sum is what `norm_act` makes: like x, but of a wider precision where the residual has one."""
    if add not in ADDITIONS:
        raise unknown("add", add, ADDITIONS)
    if not isinstance(residual, Tensor) or residual.shape != x.shape:
        return False
    if add == "radd":
        return memory_format_of(residual) == memory_format_of(x)
    return add == "add" or residual.dtype == x.dtype
