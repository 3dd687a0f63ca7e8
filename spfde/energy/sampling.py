"""What is sampled, and the process that samples it.

That process runs this file by its path (see `sampler`), so it imports the standard library alone: neither torch nor
spfde take a core, or memory that a board shares with its GPU, from what is being measured.
"""

from __future__ import annotations

import ctypes
import json
import select
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

RARELY = 10  # samples of power and energy for one of everything else

# What NVML answers, by a channel's query: its function, the type of the answer, arguments in front of it.
QUERIES = {
    "energy": ("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong, ()),  # mJ since the driver was loaded
    "power": ("nvmlDeviceGetPowerUsage", ctypes.c_uint, ()),  # mW
    "limit": ("nvmlDeviceGetEnforcedPowerLimit", ctypes.c_uint, ()),  # mW
    "temperature": ("nvmlDeviceGetTemperature", ctypes.c_uint, (0,)),  # C, of the GPU
    "clock": ("nvmlDeviceGetClockInfo", ctypes.c_uint, (1,)),  # MHz, of the multiprocessors
    "memory clock": ("nvmlDeviceGetClockInfo", ctypes.c_uint, (2,)),  # MHz
    "throttled": ("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong, ()),  # bits
}


class Channel(NamedTuple):
    """A number that the machine tells, times `scale`, in `unit`.

    files: it is the product of the whole numbers in them, of each the first behind the word `key`. query: it is what
    NVML answers of the GPU `gpu`, a UUID. unit: "W", "J" (a counter that starts again at `wraps`), "Hz", "C", "B", or
    "1" for a count or bits.
    """

    name: str
    unit: str
    files: Sequence[str] = ()
    scale: float = 1.0
    wraps: float = 0.0
    key: str = ""
    query: str = ""
    gpu: str = ""

    def read(self) -> float:
        """Its value now.

        Raises:
            OSError, ValueError: it cannot be read now.
        """
        if self.query:
            return nvml().ask(self.query, self.gpu) * self.scale
        value = 1
        for path in self.files:
            with open(path, encoding="ascii") as file:
                value *= _number(file.read(), self.key)
        return value * self.scale


class Nvml:
    """The part of NVIDIA's management library that is asked, by ctypes: it comes with the driver, in no package."""

    def __init__(self, library: str = "libnvidia-ml.so.1") -> None:
        """Opens the library.

        Raises:
            OSError: it is not there, or has no driver to ask.
        """
        self._library = ctypes.CDLL(library)
        self._checked(self._library.nvmlInit_v2())
        self._handles: dict[str, ctypes.c_void_p] = {}

    def ask(self, query: str, gpu: str) -> int:
        """The answer to a query of QUERIES about a GPU, by its UUID.

        Raises:
            OSError: NVML has none; on a Jetson that is every one about power, clocks and temperature.
        """
        name, kind, given = QUERIES[query]
        answer = kind()
        self._checked(getattr(self._library, name)(self._handle(gpu), *given, ctypes.byref(answer)))
        return answer.value

    def _handle(self, gpu: str) -> ctypes.c_void_p:
        if gpu not in self._handles:
            handle = ctypes.c_void_p()
            self._checked(self._library.nvmlDeviceGetHandleByUUID(gpu.encode(), ctypes.byref(handle)))
            self._handles[gpu] = handle
        return self._handles[gpu]

    def _checked(self, status: int) -> None:
        if status:
            words = self._library.nvmlErrorString
            words.restype = ctypes.c_char_p
            raise OSError(words(status).decode())


@lru_cache(maxsize=1)
def nvml() -> Nvml:
    """The library, opened once in each process.

    Raises:
        OSError: see `Nvml`.
    """
    return Nvml()


def value_of(channel: Channel) -> float | None:
    """Its value now; None where it cannot be read: never 0 for what is unknown."""
    try:
        return channel.read()
    except (OSError, ValueError):
        return None


def sample(
    channels: Sequence[Channel], seconds: float, put: Callable[[str], object], stopped: Callable[[float], bool]
) -> None:
    """Puts a line [time, value or null, ...] every so many seconds until `stopped`, which waits, says so.

    Power and energy are read each time, the rest rarely. The clock is time.monotonic(), one for all processes.
    """
    often = [channel.unit in ("W", "J") for channel in channels]
    start, count = time.monotonic(), 0
    while True:
        now = time.monotonic()
        values = [value_of(c) if count % RARELY == 0 or each else None for c, each in zip(channels, often, strict=True)]
        put(json.dumps([now, *values]) + "\n")
        count += 1
        if stopped(max(0.0, start + count * seconds - time.monotonic())):
            return


def _number(text: str, key: str) -> int:
    """The first word behind `key`, or of all.

    Raises:
        ValueError: that is no whole number.
    """
    words = text[text.index(key) + len(key) :].split(maxsplit=1)
    return int(words[0]) if words else int("")


def main() -> None:
    """Reads [seconds, channels] from a line of standard input, and samples to standard output until the input ends."""
    seconds, channels = json.loads(sys.stdin.readline())
    made = [Channel(*each) for each in channels]

    def put(line: str) -> None:
        sys.stdout.write(line)
        sys.stdout.flush()

    sample(made, seconds, put, lambda wait: bool(select.select([sys.stdin], [], [], wait)[0]))


if __name__ == "__main__":
    main()
