"""What DistributedDataParallel makes of a freeze: it fixes at its construction which parameters have gradients."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def check_wrapped(parameters: Collection[nn.Parameter]) -> None:
    """Refuses to stop `parameters` from training where a wrapper would wait for their gradients.

    Raises:
        RuntimeError: a DistributedDataParallel that holds some of them has static_graph or lacks
            find_unused_parameters.
    """
    moving = {p for p in parameters if p.requires_grad}
    if not moving:
        return
    for wrapper in _wrappers(moving):
        if all(p in moving for p in wrapper.parameters() if p.requires_grad):
            continue  # nothing of it will go backward
        if wrapper.static_graph or not wrapper.find_unused_parameters:
            got = "static_graph=True" if wrapper.static_graph else "find_unused_parameters=False"
            raise RuntimeError(
                f"expected DistributedDataParallel(find_unused_parameters=True) around what is frozen, got {got}; try "
                "that, or delete the wrapper, freeze, and wrap the model anew"
            )


def _wrappers(parameters: Collection[nn.Parameter]) -> Iterator[DistributedDataParallel]:
    """Living wrappers that hold one of `parameters`."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    for look in range(2):
        every = [one for one in gc.get_objects() if issubclass(type(one), DistributedDataParallel)]
        found = [one for one in every if any(p in parameters for p in one.parameters())]
        if look == 0 and found:
            del every, found
            gc.collect()  # a wrapper that was deleted lives on in its cycles
            continue
        yield from found
        return
