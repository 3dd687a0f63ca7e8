"""Where the time and memory of a training step go."""

from spfde.profiling.memory import Memory
from spfde.profiling.profile import memory, profile
from spfde.profiling.result import StepProfile

__all__ = ["Memory", "StepProfile", "memory", "profile"]
