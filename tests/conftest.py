"""Shared by all tests: one thread, the same random numbers in every run, and patience where the machine is busy."""

import signal
import zlib

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("spfde", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("spfde")


@pytest.fixture(autouse=True, scope="session")
def one_thread():  # so that they do not fight over the machine
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def interruptible():  # a shell's background jobs ignore SIGINT, and so would the programs that tests interrupt
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded(request):
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
