"""Ctrl-C and SIGTERM as a wish that a run meets between two steps, once its checkpoint is written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# A handler that the caller has put in place stays.
_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop and has kept where it was; `signal` is what asked."""

    def __init__(self, message: str, signal: signal.Signals) -> None:
        super().__init__(message)
        self.signal = signal


class Interrupts:
    """Whether a signal asked the run to stop: `asked` is that signal, or None."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take note of the first signal instead of dying of it; the second one acts as usual.

        Outside of the main thread, where Python handles no signals, nothing changes.
        """
        main = threading.current_thread() is threading.main_thread()
        ours = [each for each, usual in _USUAL.items() if main and signal.getsignal(each) == usual]

        def note(number: int, frame: FrameType | None) -> None:
            self.asked = signal.Signals(number)
            usual()

        def usual() -> None:
            for each in ours:
                signal.signal(each, _USUAL[each])

        try:
            for each in ours:
                signal.signal(each, note)
            yield
        finally:
            usual()
