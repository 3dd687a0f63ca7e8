"""Which weights are stored: how a mask starts (`init`), how it moves in training (`methods`), and what else prunes."""

from spfde.topology.base import Topology
from spfde.topology.init import INITS, Init, ScoringContext, register_init
from spfde.topology.init.force import FORCE
from spfde.topology.init.grasp import GraSP
from spfde.topology.init.snip import SNIP
from spfde.topology.init.synflow import SynFlow
from spfde.topology.layers import LayerState, reserve
from spfde.topology.lottery import Lottery, Round
from spfde.topology.methods import METHODS, create, register
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
from spfde.topology.options import Option, option
from spfde.topology.reparam.freezenet import FreezeNet
from spfde.topology.reparam.permutations import Permutations, permute
from spfde.topology.reparam.popup import EdgePopup, Piggyback
from spfde.topology.reparam.powerprop import Powerprop, powerpropagate
from spfde.topology.reparam.thresholds import SoftThreshold, Thresholds, learn_thresholds
from spfde.topology.report import LayerReport, Report

__all__ = [
    "DSR",
    "DSTEE",
    "FORCE",
    "GMP",
    "INITS",
    "ITOP",
    "MEST",
    "METHODS",
    "SET",
    "SNFS",
    "SNIP",
    "CompressedSensing",
    "ConstrainedL0",
    "DeepR",
    "DirectionalPruning",
    "EdgePopup",
    "FreezeNet",
    "GaP",
    "GraSP",
    "Init",
    "LayerReport",
    "LayerState",
    "Lottery",
    "Option",
    "PGaP",
    "Permutations",
    "Piggyback",
    "Polarization",
    "Powerprop",
    "Report",
    "RigL",
    "Round",
    "SRigL",
    "ScoringContext",
    "SoftThreshold",
    "SynFlow",
    "Thresholds",
    "TopKAST",
    "Topology",
    "create",
    "learn_thresholds",
    "option",
    "permute",
    "powerpropagate",
    "register",
    "register_init",
    "reserve",
]
