"""One run at a time in a folder.

    with alone(out):
        ...  # whoever else says so of the same folder gets an InputError

Two runs in one folder take each other's files away: what one is writing is to the other what a killed run left. The
folder itself is locked (flock), not a file in it, so that nothing is left behind and the lock goes with the process,
however that ends. It holds on one machine, and between the machines that share a folder where their file system
carries such locks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llavamed.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder`, which is made where it is absent. Raises InputError if another run holds it."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file; give a folder to write")
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another run is writing here; wait until it ends, or stop it") from None
        except OSError as error:  # NFS locks no folders
            print(f"{folder}: cannot be locked here ({error.strerror}): start no second run in it", file=sys.stderr)
        yield
    finally:
        os.close(handle)
