"""Which samples an epoch sees: part of them is out at any time and comes back in turn."""

from spfde.sieving.methods import METHODS, register
from spfde.sieving.methods.circular import Circular
from spfde.sieving.methods.random import Random
from spfde.sieving.queue import QueueSieve
from spfde.sieving.sieve import Sieve, SieveEvent

__all__ = ["METHODS", "Circular", "QueueSieve", "Random", "Sieve", "SieveEvent", "register"]
