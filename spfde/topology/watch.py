"""Which backward passes are watched for the gradients of weights that are not stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from spfde.nn import SparseLayer
from spfde.sparse.no_sync import read
from spfde.topology.gradient import Probe, agree


class Watch:
    """Probes on the layers of an armed step; none on any other, so that other steps pay nothing.

    A copy of a topology is armed as its original was, with nothing seen yet; a copy of a model has no probes.
    """

    def __init__(self) -> None:
        self.probes: dict[str, Probe] = {}

    def arm(self, layers: Mapping[str, SparseLayer]) -> None:
        """Watches these layers; what was seen before is forgotten."""
        self.disarm()
        self.probes = {name: Probe(layer) for name, layer in layers.items()}
        for probe in self.probes.values():
            probe.layer._grad_probe = probe

    def disarm(self) -> None:
        """Watches nothing."""
        for probe in self.probes.values():
            probe.layer._grad_probe = None
        self.probes = {}

    def seen(self, layers: Mapping[str, SparseLayer]) -> dict[str, SparseLayer]:
        """Those layers whose dense gradient was seen, on any rank.

        Raises:
            ValueError: nothing is armed, or a layer has a gradient that came about unseen.
        """
        if layers and not self.probes:
            raise ValueError(
                "expected an update to follow backward passes that were watched, got none, try step() in its place, or "
                "arm() before the backward pass"
            )
        watched = {name: layer for name, layer in layers.items() if name in self.probes}
        for name, layer in watched.items():
            if not self.probes[name].seen and layer.values.grad is not None and bool(layer.values.grad.any()):
                raise ValueError(
                    f"expected the backward pass of {name!r} to be watched, got a gradient from elsewhere (a compiled "
                    f"model?), try the model itself, uncompiled, while topology.armed is true"
                )
        seen = agree([self.probes[name].seen for name in watched], any_rank=True)
        return {name: layer for (name, layer), there in zip(watched.items(), seen, strict=True) if there}

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": {name: probe.layer for name, probe in self.probes.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.probes = {}
        self.arm(state["layers"])


def finite_gradients(optimizer: Optimizer) -> bool:
    """Whether every gradient that the optimizer sees is finite, on all ranks: GradScaler skips a step otherwise."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return agree([all(read([torch.isfinite(grad).all() for grad in grads]))], any_rank=False)[0]
