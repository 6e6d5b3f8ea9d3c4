"""Zip and tar files as folders that are read and never unpacked.

People hold PubMed Central's old packages (`PMC7236913.tar.gz`), publishers' zips and whatever others sent them. An
archive is a program for the tool that unpacks it: names that climb out of the folder, links to other files, devices,
kilobytes that unfold to terabytes. Here nothing is ever written: a member is read into memory under a limit, by its
name in the archive's own list, and what is not a plain file with a plain name is not in that list but in `refused`,
each under the name of what it tried.

A tar has no list: it is read through once, and the members an article can use are kept while they fit into memory,
since a compressed tar cannot be entered in the middle.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from llavamed.errors import InputError

SUFFIXES = (".zip", ".tar.gz", ".tgz", ".tar")
MAX_MEMBERS = 100_000
MAX_RATIO = 200  # unpacked to packed: text shrinks to a fifth, a scan with white margins to a fiftieth
_ALWAYS_ALLOWED = 64 * 2**20  # bytes, whatever the ratio
_KEPT = 96 * 2**20  # bytes of a tar's members that are held at once

_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError, OverflowError)
_BROKEN_TAR = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError)


class SourceError(InputError):
    """An archive, article or image that cannot be read. `reason`: "too_large", "unreadable", "archive_damaged",
    "archive_encrypted", "archive_bomb", "archive_too_many_files"."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Refused:
    """A member that is not read: `reason` is "archive_path_out", "archive_link" or "archive_device"."""

    name: str
    reason: str


@dataclass
class Archive:
    """The plain files of a zip or tar, sorted, and what was refused. Raises SourceError for an archive that cannot or
    must not be read at all."""

    path: Path
    names: list[str] = field(init=False)
    refused: list[Refused] = field(init=False)

    def __post_init__(self) -> None:
        self._changed_ns = _stat(self.path)
        is_zip = self.path.name.lower().endswith(".zip")
        members = list(_zip_members(self.path) if is_zip else _tar_members(self.path))
        problems = {name: why for name, why in members if why}
        self.names = sorted({name for name, why in members if not why and not _hidden(name)} - problems.keys())
        self.refused = [Refused(name, why) for name, why in sorted(problems.items())]

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of one of `names`. Raises SourceError for what is damaged, encrypted or larger than `limit`."""
        if self.path.name.lower().endswith(".zip"):
            return self._from_zip(name, limit)
        found = _held(self.path, self._changed_ns).get(name)
        if found is None:
            found = _from_tar(self.path, name, limit)
        return capped(found, f"{self.path}!{name}", limit)

    def _from_zip(self, name: str, limit: int) -> bytes:
        where = f"{self.path}!{name}"
        try:
            with _opened(self.path, self._changed_ns).open(name) as data:
                return capped(data.read(limit + 1), where, limit)
        except RuntimeError as error:  # what zipfile raises for an encrypted member
            raise SourceError(f"{where}: {error}; unpack it first", "archive_encrypted") from None
        except (*_BROKEN_ZIP, KeyError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{where}: {error}; fetch the archive again", "archive_damaged") from None


def capped(data: bytes, where: str, limit: int) -> bytes:
    if len(data) > limit:
        raise SourceError(f"{where}: more than {limit // 2**20} MiB; leave it out", "too_large")
    return data


def _stat(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}; fetch it again", "archive_damaged") from None


def _zip_members(path: Path) -> Iterator[tuple[str, str]]:
    """(name, why it is refused or "") of each file. The sizes are those that the archive states; `read` trusts none."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except _BROKEN_ZIP as error:
        raise SourceError(f"{path}: not a readable zip ({error}); fetch it again", "archive_damaged") from None
    _check_size(path, sum(info.file_size for info in infos), len(infos))
    for info in infos:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir() and kind != stat.S_IFLNK:
            if _leads_out(info.filename):
                yield info.filename, "archive_path_out"
        elif _leads_out(info.filename):
            yield info.filename, "archive_path_out"
        elif kind == stat.S_IFLNK:
            yield info.filename, "archive_link"
        elif kind not in (0, stat.S_IFREG):
            yield info.filename, "archive_device"
        else:
            yield info.filename, ""


def _tar_members(path: Path) -> Iterator[tuple[str, str]]:
    for info, _ in _stream(path):
        if _leads_out(info.name):
            yield info.name, "archive_path_out"
        elif info.issym() or info.islnk():
            yield info.name, "archive_link"
        elif info.isreg():
            yield info.name, ""
        elif not info.isdir():
            yield info.name, "archive_device"


def _stream(path: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Each member of a tar in turn, with its bytes; the size of what is unpacked is watched while it goes by."""
    count = unpacked = 0
    try:
        with path.open("rb") as packed, tarfile.open(fileobj=packed, mode="r|*") as archive:
            size = path.stat().st_size
            while (info := archive.next()) is not None:
                cast(Any, archive).members.clear()  # tarfile would keep the header of each
                count += 1
                unpacked += max(info.size, 0)
                _check_size(path, unpacked, count, size)
                yield info, archive.extractfile(info) if info.isreg() else None
    except _BROKEN_TAR as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: not a readable tar ({error}); fetch it again", "archive_damaged") from None


def _from_tar(path: Path, name: str, limit: int) -> bytes:
    for info, data in _stream(path):
        if info.name == name and data is not None:
            return data.read(limit + 1)
    raise SourceError(f"{path}!{name}: not in it any more; fetch it again", "archive_damaged")


@lru_cache(maxsize=1)
def _held(path: Path, _: int) -> dict[str, bytes]:
    """The members of the tar in use, the first that fit."""
    kept: dict[str, bytes] = {}
    free = _KEPT
    for info, data in _stream(path):
        if data is not None and info.size <= free:
            kept[info.name] = data.read(info.size)
            free -= info.size
    return kept


@lru_cache(maxsize=1)
def _opened(path: Path, _: int) -> zipfile.ZipFile:
    """The zip in use, and no other: thousands open at once are more than a process may hold, and one opened anew for
    each member has its whole table of contents read each time."""
    return zipfile.ZipFile(path)


def _check_size(path: Path, unpacked: int, count: int, packed: int | None = None) -> None:
    if count > MAX_MEMBERS:
        raise SourceError(f"{path}: more than {MAX_MEMBERS:,} files; leave it out", "archive_too_many_files")
    size = path.stat().st_size if packed is None else packed
    if unpacked > max(_ALWAYS_ALLOWED, MAX_RATIO * size):
        message = f"{path}: {size:,} bytes that unfold to {unpacked:,} or more; leave it out"
        raise SourceError(message, "archive_bomb")


def _leads_out(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return not parts or ".." in parts or parts[0] == "/" or parts[0].endswith(":") or "\0" in name


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
