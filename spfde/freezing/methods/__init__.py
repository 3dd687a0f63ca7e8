"""The freezers by name: what recipes and the command line call them.

One is called as `(model, blocks, *, epochs, interval, flops_reduction, fraction, **options)` with as many of the named
ones as it takes; its other parameters are its options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spfde.freezing.methods.autofreeze import AutoFreeze
from spfde.freezing.methods.egeria import Egeria
from spfde.freezing.methods.freezeout import FreezeOut
from spfde.freezing.methods.linear import Linear
from spfde.freezing.methods.progressive import Progressive
from spfde.freezing.methods.simfreeze import SimFreeze
from spfde.freezing.methods.smartfrz import SmartFRZ
from spfde.freezing.methods.static import Static

METHODS: dict[str, Callable[..., Any]] = {
    "progressive": Progressive,
    "static": Static,
    "linear": Linear,
    "freezeout": FreezeOut,
    "egeria": Egeria,
    "autofreeze": AutoFreeze,
    "simfreeze": SimFreeze,
    "smartfrz": SmartFRZ,
}


def register(name: str, method: Callable[..., Any]) -> None:
    """Makes a freezer available by name, to recipes and the command line too. Doing so twice is doing it once.

    Raises:
        ValueError: the name is another one's.
    """
    if METHODS.setdefault(name, method) is not method:
        raise ValueError(f"expected a new name, got {name!r}, which is taken, try another")
