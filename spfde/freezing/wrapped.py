"""What DistributedDataParallel makes of a freeze: it fixes at its construction which parameters have gradients."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator
from weakref import WeakSet

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# Wrappers that their owner makes anew once other parameters train.
renewed: WeakSet[DistributedDataParallel] = WeakSet()
ANEW = "try ddp = spfde.integrations.Rebucketed(model), which wraps the model anew after a freeze and a thaw"


def check_wrapped(parameters: Collection[nn.Parameter]) -> None:
    """Refuses to stop `parameters` from training where a wrapper would wait for their gradients.

    Raises:
        RuntimeError: a DistributedDataParallel that holds some of them has static_graph or lacks
            find_unused_parameters, and nobody makes it anew.
    """
    moving = {p for p in parameters if p.requires_grad}

    def waits(wrapper: DistributedDataParallel) -> str | None:
        if all(p in moving for p in wrapper.parameters() if p.requires_grad):
            return None  # nothing of it will go backward
        if wrapper.static_graph:
            return "static_graph=True"
        return None if wrapper.find_unused_parameters else "find_unused_parameters=False"

    got = _fault(moving, waits)
    if got is not None:
        raise RuntimeError(
            f"expected DistributedDataParallel(find_unused_parameters=True) around what is frozen, got {got}; {ANEW}"
        )


def check_reduced(parameters: Collection[nn.Parameter]) -> None:
    """Refuses to have `parameters` train again where a wrapper would leave their gradients to each rank.

    Raises:
        RuntimeError: a DistributedDataParallel was made when some of them were frozen, and nobody makes it anew.
    """
    back = {p for p in parameters if not p.requires_grad}

    def lacks(wrapper: DistributedDataParallel) -> str | None:
        if wrapper.logger is None:  # torch.compile's own reducer: it goes by each gradient
            return None
        known = wrapper._get_ddp_logging_data()["num_parameter_tensors"]
        own = (p for name, p in wrapper.module.named_parameters() if name not in wrapper.parameters_to_ignore)
        trains = sum(p.requires_grad or p in back for p in own)
        return f"one for {known} of {trains} tensors" if trains > known else None

    got = _fault(back, lacks)
    if got is not None:
        raise RuntimeError(
            f"expected a DistributedDataParallel that was made when all it holds trained, got {got}; {ANEW}"
        )


def _fault(parameters: Collection[nn.Parameter], of: Callable[[DistributedDataParallel], str | None]) -> str | None:
    """What is wrong with a living wrapper that holds one of `parameters` and that nobody makes anew; None: nothing."""
    if not (parameters and dist.is_available() and dist.is_initialized()):
        return None
    kinds, fault = set(_subclasses(DistributedDataParallel)), None
    for look in range(2):
        every = [one for one in gc.get_objects() if type(one) in kinds]
        held = (one for one in every if one not in renewed and any(p in parameters for p in one.parameters()))
        fault = next((what for what in map(of, held) if what is not None), None)
        if fault is None:
            break
        if look == 0:
            del every, held
            gc.collect()  # a wrapper that was deleted lives on in its cycles
    return fault


def _subclasses(kind: type) -> Iterator[type]:
    yield kind
    for each in kind.__subclasses__():
        yield from _subclasses(each)
