"""Reports: `compare(runs)` reads run directories; the result is a table, a page, and what they say."""

from spfde.report.comparison import Report, compare
from spfde.report.run import Run

__all__ = ["Report", "Run", "compare"]
