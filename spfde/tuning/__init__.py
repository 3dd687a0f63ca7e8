"""One way to time, one table of what was measured, and what fills it."""

from spfde.tuning.tune import tune, use_table

__all__ = ["tune", "use_table"]
