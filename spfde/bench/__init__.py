"""What layers and networks take, sparse beside dense: `spfde bench`, its files, and how two of them differ."""

from spfde.bench.against import Change, changes
from spfde.bench.measuring import Group, run
from spfde.bench.record import Record, Row, load
from spfde.bench.subject import Layer, Network, conv, layers_of, linear
from spfde.bench.workload import Workload, workload

__all__ = [
    "Change", "Group", "Layer", "Network", "Record", "Row", "Workload", "changes", "conv", "layers_of", "linear",
    "load", "run", "workload",
]  # fmt: skip
