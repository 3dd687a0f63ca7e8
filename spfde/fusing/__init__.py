"""Fused chains in whole models: `fuse`, `unfuse`, `report`."""

from spfde.fusing.fuse import LayerFusing, NormFusing, Report, fuse, report, unfuse

__all__ = ["LayerFusing", "NormFusing", "Report", "fuse", "report", "unfuse"]
