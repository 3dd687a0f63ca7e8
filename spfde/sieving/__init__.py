"""Which samples an epoch sees: part of them is out at any time, for a while or for good."""

from spfde.sieving.methods import METHODS, register
from spfde.sieving.methods.circular import Circular
from spfde.sieving.methods.el2n import EL2N
from spfde.sieving.methods.epsgreedy import EpsGreedy
from spfde.sieving.methods.forgetting import Forgetting
from spfde.sieving.methods.grand import GraNd
from spfde.sieving.methods.infobatch import InfoBatch
from spfde.sieving.methods.kakurenbo import Kakurenbo
from spfde.sieving.methods.once import Once
from spfde.sieving.methods.oscillating import Oscillating
from spfde.sieving.methods.random import Random
from spfde.sieving.methods.ucb import UCB
from spfde.sieving.oneshot import OneShot
from spfde.sieving.queue import QueueSieve
from spfde.sieving.record import SieveRecord
from spfde.sieving.report import SieveReport
from spfde.sieving.reselect import ReselectSieve
from spfde.sieving.sieve import Sieve, SieveEvent

__all__ = [
    "EL2N",
    "METHODS",
    "UCB",
    "Circular",
    "EpsGreedy",
    "Forgetting",
    "GraNd",
    "InfoBatch",
    "Kakurenbo",
    "Once",
    "OneShot",
    "Oscillating",
    "QueueSieve",
    "Random",
    "ReselectSieve",
    "Sieve",
    "SieveEvent",
    "SieveRecord",
    "SieveReport",
    "register",
]
