"""DistributedDataParallel around a model of which parts freeze and thaw."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spfde._modules import Wrapper
from spfde.freezing.wrapped import renewed


class Rebucketed(Wrapper):
    """A DistributedDataParallel that is made anew whenever other parameters train than when it was made.

    DistributedDataParallel fixes at its construction whose gradients it reduces, and in which buckets: it waits for
    those of a frozen part, and leaves those of a thawed one to each rank. This is one handle around the present one:

        ddp = spfde.integrations.Rebucketed(model)
        for epoch in range(160):
            freezer.begin_epoch(epoch)  # the same blocks on all ranks
            for images, targets in loader:
                loss_fn(ddp(images), targets).backward()  # the first one after a freeze wraps the model anew

    Parameters, optimizer, topology and the keys of `state_dict` are as with DistributedDataParallel. All ranks must
    freeze the same at the same time, which a `Progressive` of one model does; where they do not, torch's constructor
    raises.

    Args:
        model: what is wrapped.
        wrap: makes the wrapper, with options and hooks of yours, as
            `lambda model: keep_masks_local(DistributedDataParallel(model, device_ids=[rank]))`.

    Raises:
        TypeError: `wrap` returns no DistributedDataParallel.
        ValueError: it returns one with static_graph.
    """

    def __init__(
        self,
        model: nn.Module,
        wrap: Callable[[nn.Module], DistributedDataParallel] = DistributedDataParallel,
    ) -> None:
        super().__init__()
        self.module = model
        self._wrap = wrap
        self._held: list[DistributedDataParallel] = []  # in a list it is no submodule
        self._trained: list[bool] = []
        self._renew()

    @property
    def wrapper(self) -> DistributedDataParallel:
        """The present wrapper, made anew if other parameters train than it knows of and gradients are computed.

        Raises:
            RuntimeError: something else holds the one before.
        """
        if torch.is_grad_enabled() and self._trained != self._trains():
            self._renew()
        return self._held[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, its gradients reduced over the ranks in the backward pass."""
        return self.wrapper(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients are added up by each rank inside, and reduced in the first backward pass after."""
        with self.wrapper.no_sync():
            yield

    def _trains(self) -> list[bool]:
        return [p.requires_grad for p in self.module.parameters()]

    def _renew(self) -> None:
        self._trained = []
        old = weakref.ref(self._held.pop()) if self._held else None
        gc.collect()  # its hooks on the parameters go with it, and it lives on in its cycles
        if old is not None and old() is not None:
            self._held.append(old())
            raise RuntimeError(
                "expected nothing but the Rebucketed to hold its DistributedDataParallel, got another reference to it,"
                " try ddp.wrapper in the place where it is used"
            )
        made = self._wrap(self.module)
        if not isinstance(made, DistributedDataParallel):
            raise TypeError(
                f"expected wrap to make a DistributedDataParallel, got {type(made).__name__},"
                " try wrap=lambda model: DistributedDataParallel(model)"
            )
        if made.static_graph:
            raise ValueError(
                "expected a wrapper for a graph that changes with each freeze, got static_graph=True, try without it"
            )
        renewed.add(made)
        self._held.append(made)
        self._trained = self._trains()
