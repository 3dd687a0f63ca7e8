"""Mask initialisation: which weights are stored at first."""
