"""What a machine drew, and how it fared, in a span of time: rails and state read by one sampler."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from spfde.energy.rails import Rails, rails_of
from spfde.energy.sampler import SECONDS, Sampler
from spfde.energy.sampling import Channel
from spfde.energy.series import Draw, State, draw, state
from spfde.energy.state import state_of


class Meter:
    """Samples while it is entered; `span` tells what was drawn between two moments of time.monotonic()."""

    def __init__(self, rails: Rails, channels: tuple[Channel, ...], seconds: float = SECONDS) -> None:
        self.rails, self._exits = rails, ExitStack()
        self._sampler = Sampler((*rails.channels, *channels), seconds)

    @classmethod
    def of_machine(cls, root: Path = Path("/"), gpu: str = "") -> Meter:
        """That of this machine. gpu: UUID of the GPU that computes, "" for none."""
        return cls(rails_of(root, gpu), state_of(root, gpu))

    def __enter__(self) -> Meter:
        self._exits.enter_context(self._sampler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def span(self, start: float, end: float) -> tuple[Draw, State]:
        """Joules and state between two moments.

        Raises:
            RuntimeError: the process that samples has died.
        """
        found = self._sampler.between(start, end)
        return draw(found, self.rails, start, end), state(found, start, end)

    def idle(self, seconds: float) -> tuple[Draw, State]:
        """What the machine draws while this process does nothing for so long."""
        start = time.monotonic()
        time.sleep(seconds)
        return self.span(start, time.monotonic())
