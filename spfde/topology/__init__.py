"""How masks are born and how they move."""

from spfde.topology.base import Topology
from spfde.topology.capacity import reserve
from spfde.topology.deepr import DeepR
from spfde.topology.dsr import DSR
from spfde.topology.dstee import DSTEE
from spfde.topology.force import FORCE
from spfde.topology.freezenet import FreezeNet
from spfde.topology.gap import GaP
from spfde.topology.gmp import GMP
from spfde.topology.grasp import GraSP
from spfde.topology.history import LayerReport, Report
from spfde.topology.itop import ITOP
from spfde.topology.lottery import Lottery, Round
from spfde.topology.mest import MEST
from spfde.topology.popup import EdgePopup, Piggyback
from spfde.topology.powerprop import Powerprop, powerpropagate
from spfde.topology.rigl import RigL
from spfde.topology.set import SET
from spfde.topology.snfs import SNFS
from spfde.topology.snip import SNIP
from spfde.topology.srigl import SRigL
from spfde.topology.synflow import SynFlow
from spfde.topology.thresholds import SoftThreshold, Thresholds, learn_thresholds
from spfde.topology.topkast import TopKAST

METHODS: dict[str, type[Topology]] = {
    method.__name__: method for method in (SET, RigL, SNFS, DSR, DeepR, MEST, DSTEE, ITOP, SRigL, TopKAST, GaP, GMP)
}

__all__ = [
    "DSR",
    "DSTEE",
    "FORCE",
    "GMP",
    "ITOP",
    "MEST",
    "METHODS",
    "SET",
    "SNFS",
    "SNIP",
    "DeepR",
    "EdgePopup",
    "FreezeNet",
    "GaP",
    "GraSP",
    "LayerReport",
    "Lottery",
    "Piggyback",
    "Powerprop",
    "Report",
    "RigL",
    "Round",
    "SRigL",
    "SoftThreshold",
    "SynFlow",
    "Thresholds",
    "TopKAST",
    "Topology",
    "learn_thresholds",
    "powerpropagate",
    "reserve",
]
