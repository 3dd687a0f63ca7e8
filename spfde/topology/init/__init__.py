"""Mask initialisation: which weights are stored at first."""

from spfde.topology.init.functional_scores import ScoringContext
from spfde.topology.init.registry import INITS, Init, block_scores, register_init, resolve

__all__ = ["INITS", "Init", "ScoringContext", "block_scores", "register_init", "resolve"]
