"""Shared by all tests: one thread, so that they do not fight over the machine, and patience where it is busy."""

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("spfde", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("spfde")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
