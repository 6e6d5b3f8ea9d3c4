"""Freed memory stays with the process while a stage trains on a CPU.

A step frees its activations and the next one asks for as much again. In between glibc hands the free end of its heap
back to the system, and every page comes back as a fault, zeroed: of the demo's training 1.3 million, now 0.2
(docs/experiments.md has what that saves). Here glibc is told to keep what it has, up to the end of the stage. What is
32 MiB or more and fits no free place is a mapping of its own, returned when it is freed, as it would be anyway.

Only on glibc; where another allocator was loaded before it nothing changes. Who sets one of the environment variables
that decide this (`_DECIDES`) is not overruled.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# of malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# as far as glibc raises the second by itself, to the largest mapping that was freed; the first to twice as much
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_NEVER = -1  # mallopt(3)
_DECIDES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within this block glibc keeps freed memory; after it all is given back that nobody uses. From then on glibc trims
    at fixed thresholds, those that it would have moved to by itself at the most."""
    if not _is_ours():
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        libc.malloc_trim(0)


def _is_ours() -> bool:
    return platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in _DECIDES)
