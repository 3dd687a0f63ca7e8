"""Samples in a process of its own, and what was sampled in a span of time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from spfde.energy import sampling
from spfde.energy.sampling import Channel
from spfde.energy.series import Series

SECONDS = 0.05  # between samples
PATIENCE = 30.0  # seconds for a sample to come
MARGIN = 1.0  # seconds of samples around a span, so that its ends lie between two of them


class Sampler:
    """Samples channels while it is entered; `between` tells what was seen.

    Raises:
        RuntimeError: the process does not begin.
    """

    def __init__(self, channels: Sequence[Channel], seconds: float = SECONDS) -> None:
        self._channels, self._seconds = tuple(channels), seconds
        self._rows: list[list[float]] = []  # time, then a value or None of each channel

    def __enter__(self) -> Sampler:
        # Lines go to memory that both processes hold: a pipe would fill, a file would wake up a board's card.
        self._lines, self._read = os.memfd_create("spfde-samples"), 0
        command = [sys.executable, "-I", "-S", sampling.__file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self._lines, stderr=subprocess.PIPE)
        try:
            with contextlib.suppress(BrokenPipeError):  # it has died, as the wait will tell
                self._process.stdin.write(json.dumps([self._seconds, self._channels]).encode() + b"\n")  # type: ignore
                self._process.stdin.flush()  # type: ignore
            self._wait_for(time.monotonic())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def between(self, start: float, end: float) -> list[Series]:
        """What each channel told from just before `start` to just after `end`, times of time.monotonic().

        Raises:
            RuntimeError: the process has died.
        """
        self._wait_for(end)
        rows = [row for row in self._rows if start - MARGIN <= row[0] <= end + MARGIN]
        made = []
        for number, channel in enumerate(self._channels, start=1):
            told = [(row[0], row[number]) for row in rows if row[number] is not None]
            made.append(Series(channel, [t for t, _ in told], [value for _, value in told]))
        return made

    def _wait_for(self, moment: float) -> None:
        """Waits for a sample that is later than that.

        Raises:
            RuntimeError: the process has died, or takes longer than PATIENCE.
        """
        limit = time.monotonic() + PATIENCE
        while not any(row[0] >= moment for row in self._read_rows()[-1:]):
            if self._process.poll() is not None:
                said = self._process.stderr.read().decode().strip()  # type: ignore
                raise RuntimeError(f"expected a process that samples, got one that ended: {said or 'without a word'}")
            if time.monotonic() > limit:
                raise RuntimeError(f"expected samples of {len(self._channels)} channels, got none in {PATIENCE:g} s")
            time.sleep(self._seconds / 2)

    def _read_rows(self) -> list[list[float]]:
        """All rows, with those that came since the last call."""
        text = os.pread(self._lines, os.fstat(self._lines).st_size - self._read, self._read)
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        self._rows += map(json.loads, whole.splitlines())
        return self._rows

    def _end(self) -> None:
        with self._process as process:
            try:
                process.communicate(timeout=PATIENCE)  # closes its input, which ends it
            except (subprocess.TimeoutExpired, ValueError):  # ValueError: its input was closed before
                process.kill()
        os.close(self._lines)
