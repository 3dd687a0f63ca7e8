"""How masks are born and how they move."""

from spfde.topology.base import Topology
from spfde.topology.mest import MEST

__all__ = ["MEST", "Topology"]
