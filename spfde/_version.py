"""The version of this package: apart, so that everything may name it."""

__version__ = "0.1.0"
