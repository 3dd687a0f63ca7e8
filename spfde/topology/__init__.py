"""How masks are born and how they move."""

from spfde.topology.base import Topology
from spfde.topology.capacity import reserve
from spfde.topology.history import LayerReport, Report
from spfde.topology.mest import MEST

__all__ = ["MEST", "LayerReport", "Report", "Topology", "reserve"]
