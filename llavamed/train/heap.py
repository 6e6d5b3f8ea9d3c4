"""Freed memory stays with the process while a stage trains on a CPU.

A step frees its activations and the next one asks for as much again. In between glibc hands the free end of its heap
back to the system, and every page comes back as a fault, zeroed: of the demo's training 1.3 million, now 0.2
(docs/experiments.md has what that saves). Here glibc is told to keep what it has, up to the end of the stage. Tensors
of more than 32 MiB stay mappings of their own, returned when they are freed: a large model's heap does not go to
pieces.

Only where glibc is what allocates. Who sets one of its `MALLOC_..._` variables or GLIBC_TUNABLES has decided it, and
nothing is changed.
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
_NEVER = 2**31 - 1  # bytes free at the end of the heap; an int, of which this is the largest


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within this block glibc keeps freed memory; after it all is given back that nobody uses."""
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
    decided = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    return platform.libc_ver()[0] == "glibc" and not decided
