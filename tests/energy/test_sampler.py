"""The process that samples: what it reads, what it costs, and how it ends."""

import os
import signal
import time
from pathlib import Path

import pytest

from spfde.energy.sampler import Sampler
from spfde.energy.sampling import Channel
from spfde.energy.series import joules


@pytest.fixture
def power(tmp_path):
    path = tmp_path / "power1_input"
    path.write_text("5000000\n")
    return Channel("VIN", "W", (str(path),), 1e-6)


def test_joules_of_a_span(power, tmp_path):
    gone = Channel("gone", "W", (str(tmp_path / "nothing"),))
    memory = Channel("memory available", "B", ("/proc/meminfo",), 1024, key="MemAvailable:")
    with Sampler([power, gone, memory], 0.01) as sampler:
        start = time.monotonic()
        time.sleep(0.3)
        end = time.monotonic()
        drawn, nothing, left = sampler.between(start, end)
    assert joules(drawn, start, end) == pytest.approx(5 * (end - start))
    assert joules(nothing, start, end) is None
    assert 1 <= len(left.values) < len(drawn.values)
    assert left.values[0] > 2**20


def test_a_process_of_its_own_that_imports_no_torch(power):
    with Sampler([power], 0.01) as sampler:
        number = sampler._process.pid
        assert number != os.getpid()
        assert "torch" not in Path(f"/proc/{number}/maps").read_text()
    assert not Path(f"/proc/{number}").exists()


def test_it_ends_with_whoever_started_it(power):
    with Sampler([power], 0.01) as sampler:
        sampler._process.stdin.close()
        assert sampler._process.wait(10) == 0


def test_a_process_that_died_is_told(power):
    with Sampler([power], 0.01) as sampler:
        sampler._process.send_signal(signal.SIGKILL)
        sampler._process.wait()
        with pytest.raises(RuntimeError, match="one that ended"):
            sampler.between(0, time.monotonic() + 1)
