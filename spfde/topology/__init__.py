"""How masks are born and how they move."""

from spfde.topology.base import Topology
from spfde.topology.capacity import reserve
from spfde.topology.history import LayerReport, Report
from spfde.topology.init.force import FORCE
from spfde.topology.init.grasp import GraSP
from spfde.topology.init.snip import SNIP
from spfde.topology.init.synflow import SynFlow
from spfde.topology.lottery import Lottery, Round
from spfde.topology.methods.deepr import DeepR
from spfde.topology.methods.dsr import DSR
from spfde.topology.methods.dstee import DSTEE
from spfde.topology.methods.gap import GaP
from spfde.topology.methods.gmp import GMP
from spfde.topology.methods.itop import ITOP
from spfde.topology.methods.mest import MEST
from spfde.topology.methods.rigl import RigL
from spfde.topology.methods.set import SET
from spfde.topology.methods.snfs import SNFS
from spfde.topology.methods.srigl import SRigL
from spfde.topology.methods.topkast import TopKAST
from spfde.topology.reparam.freezenet import FreezeNet
from spfde.topology.reparam.popup import EdgePopup, Piggyback
from spfde.topology.reparam.powerprop import Powerprop, powerpropagate
from spfde.topology.reparam.thresholds import SoftThreshold, Thresholds, learn_thresholds

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
