"""Small cases for what needs no GPU, and a record made up."""

from gpu.cases import Case, Network

CASE = Case("linear", "bfloat16", 8, 32, 48, 16, 0.5)
CONV = Case("conv2d", "tf32", 2, 32, 32, 16, 0.5, 5, 2)
CLUSTERED = Case("clustered", "tf32", 8, 128, 192, 64, 0.5)
SMALL = Network("small", 2, 16, 0.5)
ABOUT = {"gpu": "NVIDIA H200", "date": "2026-01-02T03:04:05+00:00"}
