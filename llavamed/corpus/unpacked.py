"""A packed file as if it lay unpacked: any part of it by its place, at the cost of unpacking what is near it.

A gzip stream can only be read from its start: to know a byte, all before it must have been unpacked. But a decompressor
is a small state (a window of 32 KB), and it can be copied. So the stream is cut into blocks; on the first pass a copy
of the decompressor is kept where each begins, and from then on a block is unpacked by itself, from its copy. The blocks
in use are held, a bounded number of bytes of them: who reads in the order of the file unpacks each block once, and who
jumps pays one block a jump, never the whole file.

Copies are bounded too: when there are too many, every other one goes and the blocks are twice as large.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

_GZIP = b"\x1f\x8b"
_BLOCK = 4 * 2**20  # bytes unpacked
_MOST_COPIES = 1024  # of 45 KB
_HELD = 64 * 2**20  # bytes of blocks
_READ = 1 << 16


def open_unpacked(path: Path) -> IO[bytes]:
    """The unpacked bytes of a gzip, bzip2 or xz file, or the bytes of any other, to read and to seek in. A bzip2 or xz
    file is read from its start for each step back. Raises OSError; reading raises what the decompressors do."""
    with path.open("rb") as data:
        head = data.read(6)
    if head.startswith(_GZIP):
        return cast(IO[bytes], _Gzip(path))
    if head.startswith(b"BZh"):
        return cast(IO[bytes], bz2.open(path))
    return cast(IO[bytes], lzma.open(path)) if head == b"\xfd7zXZ\0" else path.open("rb")


@dataclass
class _Point:
    """Where a block begins: the state of the decompressor and the place in the packed file it goes on from."""

    state: Any
    packed: int


class _Gzip(io.RawIOBase):
    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._points = [_Point(zlib.decompressobj(wbits=31), 0)]
        self._block = _BLOCK
        self._blocks: OrderedDict[int, bytes] = OrderedDict()  # the last one used is the last
        self._held = 0
        self._at = 0

    def close(self) -> None:
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, "where it ends is not known"
        self._at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; fewer only where the stream ends."""
        parts = []
        while size:
            number, within = divmod(self._at, self._block)
            if (block := self._unpacked(number)) is None:
                continue
            part = block[within:] if size < 0 else block[within : within + size]
            if not part:
                break
            parts.append(part)
            self._at += len(part)
            size -= min(len(part), size) if size > 0 else 0
        return b"".join(parts)

    def _unpacked(self, number: int) -> bytes | None:
        """A block: shorter than the others, or empty, where the stream has ended; None if blocks are larger now."""
        size = self._block
        while len(self._points) <= number:
            if len(self._unpack(len(self._points) - 1)) < size:
                return b""
            if self._block > size:
                return None
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        found = self._unpack(number)
        return found if self._block == size else None

    def _unpack(self, number: int) -> bytes:
        point = self._points[number]
        state, packed, size = point.state.copy(), point.packed, 0
        parts = []
        self._file.seek(packed)
        while size < self._block:
            if state.eof:  # gzip files may stand one after the other
                self._file.seek(packed)
                if self._file.read(len(_GZIP)) != _GZIP:
                    break
                self._file.seek(packed)
                state = zlib.decompressobj(wbits=31)
            data = self._file.read(_READ)
            if not data:
                break
            part = state.decompress(data, self._block - size)
            used = len(data) - len(state.unused_data if state.eof else state.unconsumed_tail)
            packed += used
            if used < len(data):
                self._file.seek(packed)
            parts.append(part)
            size += len(part)
        block = b"".join(parts)
        if size == self._block and len(self._points) == number + 1:
            self._points.append(_Point(state, packed))
        self._hold(number, block)
        if len(self._points) > _MOST_COPIES:  # each second one goes
            self._points = self._points[::2]
            self._block *= 2
            self._blocks.clear()
            self._held = 0
        return block

    def _hold(self, number: int, block: bytes) -> None:
        self._blocks[number] = block
        self._held += len(block)
        while self._held > _HELD and len(self._blocks) > 2:
            self._held -= len(self._blocks.popitem(last=False)[1])
