"""Timing single layers: dense beside sparse for people, and the launches of the GPU kernels for the table."""
