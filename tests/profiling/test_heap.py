"""Memory that a step frees is kept for the next one, unless the environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from spfde._heap import OWN

PROGRAM = """
import resource, sys
import numpy as np
from spfde._heap import keep_memory
print(keep_memory() if sys.argv[1] == "keep" else None)
def step():
    held = [np.ones(2**18) for _ in range(40)]  # 2 MiB each
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del held
    held = [np.ones(2**18) for _ in range(40)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
step()
print(step())
"""
GLIBC = platform.libc_ver()[0] == "glibc"


def said(how, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = result.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_a_step_has_the_memory_of_the_one_before():
    assert said("as it is")[1] > 5000, "80 MiB in pages of 4 KiB"
    kept, faults = said("keep")
    assert kept == "True" and faults < 500


@pytest.mark.parametrize("name", OWN)
def test_what_the_environment_says_counts(name):
    kept, _ = said("keep", **{name: "glibc.malloc.tcache_count=7" if name == "GLIBC_TUNABLES" else "131072"})
    assert kept == "False"
