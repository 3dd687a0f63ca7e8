"""Whole models: swap dense layers for sparse ones in place, and back."""

from spfde.convert.sparsify import densify, sparsify
from spfde.nn.kinds import register, unregister

__all__ = ["densify", "register", "sparsify", "unregister"]
