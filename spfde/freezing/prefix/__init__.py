"""The frozen front of a model as one inference call."""

from spfde.freezing.prefix.engine import Prefix

__all__ = ["Prefix"]
