"""Where a command writes: what reads it may go away, be full or lack a letter, and the command goes on."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from rich.console import Console
from rich.segment import Segment

from spfde._names import printable


class Steady:
    """A text file to which nobody may be listening: after an error it takes what is written, and drops it.

    Letters that its encoding lacks are written as escapes.

    Args:
        file: the file.
        lost: told the error; what it raises is raised.
    """

    def __init__(self, file: TextIO, lost: Callable[[OSError], None]) -> None:
        self._file, self._lost, self._gone = file, lost, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write text."""
        self._try(lambda: self._file.write(self._encodable(text)))
        return len(text)

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._try(self._file.flush)

    def _encodable(self, text: str) -> str:
        encoding = self._file.encoding or "utf-8"
        try:
            text.encode(encoding, self._file.errors or "strict")
        except UnicodeEncodeError:
            return text.encode(encoding, "backslashreplace").decode(encoding)
        return text

    def _try(self, action: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            action()
        except OSError as error:
            self._gone = True
            # Python flushes at its end, what is left in the buffer too.
            with contextlib.suppress(OSError, ValueError):
                empty = os.open(os.devnull, os.O_WRONLY)
                os.dup2(empty, self._file.fileno())
                os.close(empty)
            self._lost(error)


class Terminal(Console):
    """A rich console that shows control characters of text escaped; its own styles stay."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Render, escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def steady(lost: Callable[[OSError], None] | None = None, *, stderr: bool = False, **options: Any) -> Console:
    """Make a console on standard output, or on standard error, that outlives it; see `Steady`.

    A pipe that is closed is what its reader wants (`| head -1`), so by default any other error is raised.
    """
    file = sys.stderr if stderr else sys.stdout
    if file is None:  # closed before the start
        return Terminal(stderr=stderr, **options)
    return Terminal(file=Steady(file, lost or unless_closed), **options)  # type: ignore[arg-type]


def unless_closed(error: OSError) -> None:
    """Raise an error unless it is a closed pipe."""
    if not isinstance(error, BrokenPipeError):
        raise error
