"""The methods of `spfde.topology` by name, one file each: the registry of Python, recipes and the command line.

`METHODS["rigl"]` is the class, `METHODS["rigl"].options()` what it has of its own (default, kind, range and help by
name), `create("rigl", model, optimizer, total_steps=..., end=0.5)` an instance, and `register("mine", Mine)` adds one.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from spfde._names import unknown
from spfde.topology.base import Topology
from spfde.topology.methods.compressedsensing import CompressedSensing
from spfde.topology.methods.constrainedl0 import ConstrainedL0
from spfde.topology.methods.deepr import DeepR
from spfde.topology.methods.directionalpruning import DirectionalPruning
from spfde.topology.methods.dsr import DSR
from spfde.topology.methods.dstee import DSTEE
from spfde.topology.methods.gap import GaP
from spfde.topology.methods.gmp import GMP
from spfde.topology.methods.itop import ITOP
from spfde.topology.methods.mest import MEST
from spfde.topology.methods.pgap import PGaP
from spfde.topology.methods.polarization import Polarization
from spfde.topology.methods.rigl import RigL
from spfde.topology.methods.set import SET
from spfde.topology.methods.snfs import SNFS
from spfde.topology.methods.srigl import SRigL
from spfde.topology.methods.topkast import TopKAST

METHODS: dict[str, type[Topology]] = {
    "mest": MEST,
    "set": SET,
    "rigl": RigL,
    "snfs": SNFS,
    "dsr": DSR,
    "deepr": DeepR,
    "dst-ee": DSTEE,
    "itop": ITOP,
    "srigl": SRigL,
    "top-kast": TopKAST,
    "gap": GaP,
    "p-gap": PGaP,
    "gmp": GMP,
    "constrained-l0": ConstrainedL0,
    "compressed-sensing": CompressedSensing,
    "directional-pruning": DirectionalPruning,
    "polarization": Polarization,
}


def register(name: str, method: type[Topology]) -> None:
    """Makes a method available by name, to recipes and the command line too. Doing so twice is doing it once.

    Raises:
        TypeError: `method` is not a subclass of Topology.
        ValueError: the name is another method's.
    """
    if not (isinstance(method, type) and issubclass(method, Topology)):
        raise TypeError(f"expected a subclass of spfde.topology.Topology, got {method!r}")
    if METHODS.setdefault(name, method) is not method:
        raise ValueError(f"expected a new name, got {name!r}, which is {METHODS[name].__name__}, try another")


def create(name: str, model: nn.Module, optimizer: Optimizer, **arguments: Any) -> Topology:
    """The method of this name on a model. arguments: as its class takes them, options of its own included.

    Raises:
        ValueError: there is no such method, or it refuses an argument.
    """
    if name not in METHODS:
        raise unknown("topology", name, METHODS)
    return METHODS[name](model, optimizer, **arguments)
