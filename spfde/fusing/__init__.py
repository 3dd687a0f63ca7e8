"""Fused chains in whole models: `fuse`, `unfuse`, `report`."""

from spfde.fusing.fuse import NormFusing, Report, fuse, report, unfuse

__all__ = ["NormFusing", "Report", "fuse", "report", "unfuse"]
