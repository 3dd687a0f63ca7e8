"""Whole models: swap dense layers for sparse ones in place, and back."""

from spfde.convert.sparsify import densify, sparsify

__all__ = ["densify", "sparsify"]
