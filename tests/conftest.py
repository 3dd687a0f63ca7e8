"""Shared by all tests: one thread, so that tests do not depend on the machine and do not fight over it."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
