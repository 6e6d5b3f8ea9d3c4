"""Zip and tar files as folders that are read and never unpacked.

People hold PubMed Central's old packages (`PMC7236913.tar.gz`), publishers' zips and whatever others sent them. An
archive is a program for the tool that unpacks it: names that climb out of the folder, links to other files, devices,
kilobytes that unfold to terabytes. Here nothing is ever written: a member is read into memory under a limit, by its
name in the archive's own list, and what is not a plain file with a plain name is not in that list but in `refused`,
each under the name of what it tried.

A tar has no list: it is read through once, member by member, and where each begins is written down. From then on a
member is read from its place, also in a compressed tar (`unpacked`), so a tar of a million files costs no more for each
of them than a small one.

A zip made on Windows may part its folders by backslashes: they are slashes here.
"""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from llavamed.corpus.unpacked import open_unpacked
from llavamed.errors import InputError

SUFFIXES = (".zip", ".tar.gz", ".tgz", ".tar")
MAX_MEMBERS = 100_000
MAX_RATIO = 200  # unpacked to packed: text shrinks to a fifth, a scan with white margins to a fiftieth
_ALWAYS_ALLOWED = 64 * 2**20  # bytes, whatever the ratio

_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError, OverflowError)
_BROKEN_TAR = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, OverflowError)


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


@dataclass(frozen=True)
class _Member:
    """A file in an archive. `name` is as we write it, `own` as the archive does; `problem` says why it is refused.
    `parts` says where a tar has its bytes: (offset in the tar, offset in the file, length) of each part."""

    name: str
    own: str
    problem: str = ""
    size: int = 0
    parts: tuple[tuple[int, int, int], ...] = ()


@dataclass
class Archive:
    """The plain files of a zip or tar, sorted, and what was refused. Raises SourceError for an archive that cannot or
    must not be read at all."""

    path: Path
    names: list[str] = field(init=False)
    refused: list[Refused] = field(init=False)

    def __post_init__(self) -> None:
        self._changed_ns = _stat(self.path)
        self._is_zip = self.path.name.lower().endswith(".zip")
        members = list(_zip_members(self.path) if self._is_zip else _tar_members(self.path, self._changed_ns))
        problems = {member.name: member.problem for member in members if member.problem}
        usable = (member for member in members if member.name not in problems and not _hidden(member.name))
        self._members = {member.name: member for member in usable}  # of one name twice, the last, as tar unpacks it
        self.names = sorted(self._members)
        self.refused = [Refused(name, why) for name, why in sorted(problems.items())]

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of one of `names`. Raises SourceError for what is damaged, encrypted or larger than `limit`."""
        return self._from_zip(name, limit) if self._is_zip else self._from_tar(self._members[name], limit)

    def _from_tar(self, member: _Member, limit: int) -> bytes:
        where = f"{self.path}!{member.name}"
        if max(member.size, sum(length for *_, length in member.parts)) > limit:
            raise _too_large(where, limit)
        data = bytearray(member.size)
        try:
            tar = _opened_tar(self.path, self._changed_ns)
            for offset, at, length in member.parts:
                tar.seek(offset)
                part = tar.read(length)
                if len(part) < length:
                    raise EOFError("it ends before the file does")
                data[at : at + length] = part
        except _BROKEN_TAR as error:
            raise SourceError(f"{where}: {error}; fetch the archive again", "archive_damaged") from None
        return capped(bytes(data), where, limit)

    def _from_zip(self, name: str, limit: int) -> bytes:
        where = f"{self.path}!{name}"
        try:
            with _opened_zip(self.path, self._changed_ns).open(self._members[name].own) as data:
                return capped(data.read(limit + 1), where, limit)
        except RuntimeError as error:  # what zipfile raises for an encrypted member
            raise SourceError(f"{where}: {error}; unpack it first", "archive_encrypted") from None
        except (*_BROKEN_ZIP, KeyError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(f"{where}: {error}; fetch the archive again", "archive_damaged") from None


def capped(data: bytes, where: str, limit: int) -> bytes:
    if len(data) > limit:
        raise _too_large(where, limit)
    return data


def _too_large(where: str, limit: int) -> SourceError:
    return SourceError(f"{where}: more than {limit // 2**20} MiB; leave it out", "too_large")


def _stat(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}; fetch it again", "archive_damaged") from None


def _zip_members(path: Path) -> Iterator[_Member]:
    """The sizes are those that the archive states; `read` trusts none."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except _BROKEN_ZIP as error:
        raise SourceError(f"{path}: not a readable zip ({error}); fetch it again", "archive_damaged") from None
    _check_size(path, sum(info.file_size for info in infos), len(infos))
    for info in infos:
        name = info.filename.replace("\\", "/")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if _leads_out(name):
            yield _Member(name, info.filename, "archive_path_out")
        elif kind == stat.S_IFLNK:
            yield _Member(name, info.filename, "archive_link")
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield _Member(name, info.filename, "archive_device")
        elif not name.endswith("/"):
            yield _Member(name, info.filename)


def _tar_members(path: Path, changed_ns: int) -> Iterator[_Member]:
    for info in _stream(path, changed_ns):
        if _leads_out(info.name):
            yield _Member(info.name, info.name, "archive_path_out")
        elif info.issym() or info.islnk():
            yield _Member(info.name, info.name, "archive_link")
        elif info.isreg():
            yield _Member(info.name, info.name, "", info.size, tuple(_parts(info)))
        elif not info.isdir():
            yield _Member(info.name, info.name, "archive_device")


def _parts(info: tarfile.TarInfo) -> Iterator[tuple[int, int, int]]:
    """A tar leaves the empty parts of a sparse file out."""
    offset = info.offset_data
    for at, length in cast(Any, info.sparse) or [(0, info.size)]:
        yield offset, at, length
        offset += length


def _stream(path: Path, changed_ns: int) -> Iterator[tarfile.TarInfo]:
    """The header of each member of a tar in turn; the size of what is unpacked is watched while it goes by."""
    count = unpacked = 0
    try:
        packed = _opened_tar(path, changed_ns)
        packed.seek(0)
        with tarfile.open(fileobj=packed, mode="r|") as archive:
            size = path.stat().st_size
            while (info := archive.next()) is not None:
                cast(Any, archive).members.clear()  # tarfile would keep the header of each
                count += 1
                unpacked += max(info.size, 0)
                _check_size(path, unpacked, count, size)
                yield info
    except _BROKEN_TAR as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: not a readable tar ({error}); fetch it again", "archive_damaged") from None


@lru_cache(maxsize=1)
def _opened_tar(path: Path, _: int) -> IO[bytes]:
    """The tar in use, and no other."""
    return open_unpacked(path)


@lru_cache(maxsize=1)
def _opened_zip(path: Path, _: int) -> zipfile.ZipFile:
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
