"""One way to time, one table of what was measured, and one tuner that fills it."""

from spfde.kernels.dispatch.table import Table
from spfde.tuning.tune import tune, use_table

__all__ = ["Table", "tune", "use_table"]
