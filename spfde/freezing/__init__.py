"""What to freeze, and when: blocks of a model that become constant while the rest goes on training."""

from spfde.freezing.block import FreezeBlock
from spfde.freezing.cache import ActivationCache, CacheStats
from spfde.freezing.compiled import Compiled
from spfde.freezing.freeze import freeze, is_frozen, unfreeze
from spfde.freezing.freezer import Freezer, Verdict
from spfde.freezing.methods import METHODS, register
from spfde.freezing.methods.autofreeze import AutoFreeze
from spfde.freezing.methods.egeria import Egeria
from spfde.freezing.methods.freezeout import FreezeOut
from spfde.freezing.methods.linear import Linear
from spfde.freezing.methods.progressive import Progressive
from spfde.freezing.methods.simfreeze import SimFreeze
from spfde.freezing.methods.smartfrz import SmartFRZ
from spfde.freezing.methods.static import Static
from spfde.freezing.partition import blocks
from spfde.freezing.prefix import Prefix
from spfde.freezing.report import FreezeReport
from spfde.freezing.saliency import by_saliency
from spfde.freezing.schedule import FreezeSchedule
from spfde.freezing.seconds import step_seconds
from spfde.freezing.weights import WeightDecision, freeze_weights, frozen_weights, unfreeze_weights

__all__ = [
    "METHODS",
    "ActivationCache",
    "AutoFreeze",
    "CacheStats",
    "Compiled",
    "Egeria",
    "FreezeBlock",
    "FreezeOut",
    "FreezeReport",
    "FreezeSchedule",
    "Freezer",
    "Linear",
    "Prefix",
    "Progressive",
    "SimFreeze",
    "SmartFRZ",
    "Static",
    "Verdict",
    "WeightDecision",
    "blocks",
    "by_saliency",
    "freeze",
    "freeze_weights",
    "frozen_weights",
    "is_frozen",
    "register",
    "step_seconds",
    "unfreeze",
    "unfreeze_weights",
]
