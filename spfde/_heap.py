"""Memory that a step frees, kept for the next one."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT = 2**31 - 1  # bytes that stay at the top of the heap
MAPPED = (2**30, 2**25)  # least bytes that are mapped by themselves; glibc before 2.35 takes no more than the second
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # what glibc reads when a process begins


def keep_memory() -> bool:
    """Lets the C library keep memory that a training step frees, for the next step; tells whether it now does.

    glibc gives the system back what is free at the top of its heap, or does not, by how the heap happens to lie: then
    each step has its activations anew, page by page, zeroed by the kernel while the other threads wait. Kept, the
    process stays as large as its largest step. It holds for all of this process, from now on. Where the C library is
    another one, or the environment says already what glibc is to do (MALLOC_..., GLIBC_TUNABLES), nothing changes.
    """
    if any(name in os.environ for name in OWN):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return mallopt(TRIM_THRESHOLD, KEPT) == 1 and any(mallopt(MMAP_THRESHOLD, size) == 1 for size in MAPPED)
