"""Which samples an epoch sees: part of them is out at any time and comes back in turn."""

from spfde.sieving.circular import Circular
from spfde.sieving.control import Random
from spfde.sieving.sieve import Sieve, SieveEvent

__all__ = ["Circular", "Random", "Sieve", "SieveEvent"]
