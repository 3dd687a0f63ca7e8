"""Reparametrisations: weights that a layer makes of its stored values."""
