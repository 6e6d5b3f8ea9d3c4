"""A folder that a person gives: which of its files are read, and by what it is told that one has changed.

Nothing outside the folder is reached: linked folders are not entered, links that lead out are not followed, and what is
passed over is a `Problem`, which the corpus counts.

A build that is run again has to know, of each file, whether it is the one it read before. Where all files together are
at most 1 GiB their bytes are hashed (half a second), so that a copy of the folder is the same input; beyond it size and
time stand for them, as for make and rsync: a file is taken for changed when it was written again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from llavamed.corpus import archives
from llavamed.corpus.archives import SourceError

_CONTENT_HASHED_BYTES = 2**30
_AT_ONCE = 256  # files that a thread takes


class File(NamedTuple):
    """`name` is its path in the folder, with `/`."""

    name: str
    size: int
    changed_ns: int


@dataclass(frozen=True)
class Problem:
    """Something in the input that is no readable article: `reason` is a short code to count by."""

    where: str
    reason: str
    message: str


@dataclass(frozen=True)
class Folder:
    root: Path

    def list(self, problems: list[Problem]) -> list[File]:
        """All files in it, sorted by name; what is passed over becomes a problem."""
        inside = self.root.resolve()
        found: list[File] = []

        def pass_over(name: str, reason: str, message: str) -> None:
            problems.append(Problem(shown(name), reason, f"{shown(name)}: {message}"))

        waiting = [""]
        while waiting:
            below = waiting.pop()
            try:
                with os.scandir(self.root / below) as listed:
                    entries = sorted((one for one in listed if not _hidden(one.name)), key=lambda one: one.name)
            except OSError as error:
                pass_over(below or ".", "unreadable", f"{error.strerror}; check its permissions")
                continue
            prefix = f"{below}/" if below else ""
            folders = []
            for entry in entries:
                name, linked = prefix + entry.name, entry.is_symlink()
                if linked and os.path.isdir(entry.path):  # never entered: it may lead out, or round in a circle
                    pass_over(name, "linked_folder", "a link to a folder; put the folder itself there")
                elif not linked and entry.is_dir():
                    folders.append(name)
                elif not (os.path.isfile(entry.path) if linked else entry.is_file()):
                    pass_over(name, "no_file", "a link to nothing, or no regular file; put the file itself there")
                elif linked and not Path(entry.path).resolve().is_relative_to(inside):
                    pass_over(name, "link_leads_out", "a link out of the folder; put the file itself there")
                else:
                    about = entry.stat()
                    found.append(File(name, about.st_size, about.st_mtime_ns))
            waiting += reversed(folders)
        return sorted(found)

    def read(self, name: str, limit: int) -> bytes:
        try:
            with (self.root / name).open("rb") as data:
                return archives.capped(data.read(limit + 1), name, limit)
        except OSError as error:
            where = shown(str(self.root / name))
            raise SourceError(f"{where}: {error.strerror}; check its permissions", "unreadable") from None


def stamps(root: Path, files: Sequence[File], workers: int = 1) -> Iterator[bytes]:
    """Of each file what is another when the file is another; bytes are hashed in `workers` threads."""
    if sum(file.size for file in files) > _CONTENT_HASHED_BYTES:
        return (_time(file) for file in files)  # not kept: there may be millions

    def of_part(start: int) -> list[bytes]:
        return [_content(f"{root}/{file.name}") or _time(file) for file in files[start : start + _AT_ONCE]]

    with ThreadPoolExecutor(workers) as pool:  # hashing does not hold the interpreter's lock
        return chain.from_iterable(list(pool.map(of_part, range(0, len(files), _AT_ONCE))))


def _content(path: str) -> bytes:
    """sha256 of its bytes, or nothing for a file that cannot be read."""
    try:
        with open(path, "rb", buffering=0) as data:
            if os.fstat(data.fileno()).st_size > 2**24:
                return hashlib.file_digest(data, "sha256").digest()
            return hashlib.sha256(data.read()).digest()  # file_digest's buffer costs more than a small file
    except OSError:
        return b""


def _time(file: File) -> bytes:
    return f"{file.size} {file.changed_ns}".encode()


def shown(name: str) -> str:
    """A file name that is not UTF-8 in a form that can be written down."""
    return os.fsencode(name).decode("utf-8", "replace")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
