"""How masks are born and how they move."""

from spfde.topology.base import Topology
from spfde.topology.force import FORCE
from spfde.topology.freezenet import FreezeNet
from spfde.topology.grasp import GraSP
from spfde.topology.lottery import Lottery, Round
from spfde.topology.mest import MEST
from spfde.topology.popup import EdgePopup, Piggyback
from spfde.topology.snip import SNIP
from spfde.topology.synflow import SynFlow

__all__ = [
    "FORCE",
    "MEST",
    "SNIP",
    "EdgePopup",
    "FreezeNet",
    "GraSP",
    "Lottery",
    "Piggyback",
    "Round",
    "SynFlow",
    "Topology",
]
