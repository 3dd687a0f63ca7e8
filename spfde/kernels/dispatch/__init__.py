"""Which kernel runs: a problem, what each kernel would cost, what was measured, and the rule that chooses."""

from spfde.kernels.problem import KernelChoice, Problem

__all__ = ["KernelChoice", "Problem"]
