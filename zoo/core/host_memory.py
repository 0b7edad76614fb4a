"""Keeps CPU memory that a forward pass frees for the next layer, if the C library is glibc."""

import ctypes
import os
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT_BYTES = 2**27  # maximum bytes of freed memory to keep
MAX_HEAP_BLOCK = 2**25  # maximum bytes of a block served from freed memory: glibc's own limit
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@cache
def keep_freed_memory() -> None:
    """Makes glibc keep up to 128 MiB of freed memory instead of returning it to the system.

    A layer's activations are a few megabytes each and are freed before the next layer. glibc would return them at once,
    and the system would clear each page again. A 512-token prefill of a model of 135 million parameters would clear
    430 MB, a quarter of its time. Nothing changes if the environment configures malloc or another one is loaded.
    """
    if any(name in os.environ for name in SETTINGS):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(M_MMAP_THRESHOLD, MAX_HEAP_BLOCK)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
