"""A path a person gives -> the articles in it, and the bytes of the images beside each.

Three layouts are read, alone or mixed, by one rule ("an article is an XML file; its metadata and its
images stand beside it"):

    PMC10009416.1/PMC10009416.1.xml + .json + media     the layout of PubMed Central's bucket
    any/folder/article.xml (or .nxml) + images          whatever a publisher's export looks like
    package.zip                                         the same inside a zip, as SciELO and others ship

The hard thing is to trust nothing in it. Zip members are read one by one into memory and never
extracted; sizes are capped while reading, since a header may lie; an href of the XML is never used as
a path, it is only compared with the names that the listing holds. So an article cannot reach a file
outside its own folder.

Everything is listed in sorted order, so the same input is always the same sequence. What is passed over
(a linked folder, a link to nowhere, a zip without an article) becomes a `Problem`, which the corpus counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
import zlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from llavamed.errors import InputError

MAX_XML_BYTES = 128 * 2**20
MAX_IMAGE_BYTES = 512 * 2**20
_CONTENT_HASHED_BYTES = 2**30  # inputs larger than this are fingerprinted by name, size and time alone

_XML = frozenset({".xml", ".nxml"})
# Best first: publishers put a full JPEG beside a GIF or PNG thumbnail, and sometimes the TIFF it came from.
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")
_BUCKET_FOLDER = re.compile(r"(PMC\d+)\.(\d+)")


class SourceError(InputError):
    """An article or image that cannot be read. `reason`: "too_large", "unreadable", "zip_damaged",
    "zip_encrypted"."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Container(Protocol):
    """A folder or a zip: names relative to it, with `/`, and their bytes."""

    names: list[str]

    def read(self, name: str, limit: int) -> bytes: ...


@dataclass(frozen=True)
class Source:
    """One article on disk. `name` is the XML's stem (in the bucket layout the PMCID with its version);
    `where` says where it was read from, relative to the path given."""

    name: str
    where: str
    _container: _Container = field(repr=False, compare=False)
    _member: str = field(repr=False, compare=False)
    _names: _Names = field(repr=False, compare=False)

    def xml(self) -> bytes:
        """Raises SourceError for what is too large or cannot be unpacked."""
        return self._container.read(self._member, MAX_XML_BYTES)

    def metadata(self) -> dict[str, Any] | None:
        """The JSON object beside the XML (PubMed Central's `license_code`, `is_retracted`...), or None."""
        name = self._names.beside(self._member, ".json")
        if name is None:
            return None
        try:
            body = json.loads(self._container.read(name, MAX_XML_BYTES))
        except ValueError:  # not JSON, or not UTF-8
            return None
        return body if isinstance(body, dict) else None

    def image(self, href: str) -> bytes | None:
        """The image that `href` names, with or without its extension and in any case, or None.
        Raises SourceError for one that cannot be read."""
        name = self._names.image(self._member, href)
        return None if name is None else self._container.read(name, MAX_IMAGE_BYTES)


@dataclass(frozen=True)
class Problem:
    """Something in the input that is no readable article: `reason` is a short code to count by."""

    where: str
    reason: str
    message: str


@dataclass(frozen=True)
class Listing:
    """All articles below a path, in order, and what could not be opened at all."""

    sources: list[Source]
    problems: list[Problem]
    fingerprint: str  # of the names and contents (or sizes and times, for large inputs)


def scan(path: Path) -> Listing:
    """List the articles in a folder or a zip file. Raises InputError if there is none."""
    expected = "expected a folder of JATS articles (.xml or .nxml, images beside them), or of zips that hold such"
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; {expected}")
    if path.is_file() and path.suffix.lower() != ".zip":
        raise InputError(f"{path}: neither a folder nor a .zip; {expected}")
    sources: list[Source] = []
    problems: list[Problem] = []
    if path.is_file():
        _open_zip(path, path.name, sources, problems)
        files = [path]
    else:
        folder = _Folder(path)
        problems += folder.problems
        sources += _articles(folder, "", problems)
        for name in folder.names:
            if name.lower().endswith(".zip"):
                _open_zip(path / name, name, sources, problems)
        files = [path / name for name in folder.names]
    sources.sort(key=lambda source: source.where)
    sources = _newest(sources, problems)
    if not sources and not problems:
        raise InputError(f"{path}: no article in it; {expected}")
    return Listing(sources, problems, _fingerprint(path, files))


def _open_zip(path: Path, where: str, sources: list[Source], problems: list[Problem]) -> None:
    try:
        container = _Zip(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        problems.append(Problem(_shown(where), "zip_damaged", f"{_shown(where)}: not a readable zip ({error})"))
        return
    if not any(_is_xml(name) for name in container.names):
        problems.append(Problem(_shown(where), "zip_without_article", f"{_shown(where)}: no XML in it"))
    sources += _articles(container, f"{where}!", problems)


def _articles(container: _Container, prefix: str, problems: list[Problem]) -> Iterator[Source]:
    names = _Names(container.names)
    files = [(member, PurePosixPath(member)) for member in container.names if _is_xml(member)]
    complete = {at.parent for _, at in files if at.stem == at.parent.name}
    strays: dict[PurePosixPath, list[str]] = defaultdict(list)  # bucket folder without its article -> its XML files
    for member, at in files:
        if _BUCKET_FOLDER.fullmatch(at.parent.name) is None or at.stem == at.parent.name:
            yield Source(_shown(at.stem), _shown(prefix + member), container, member, names)
        elif at.parent not in complete:  # else a supplementary file of that article
            strays[at.parent].append(at.name)
    for folder, found in strays.items():
        where = _shown(f"{prefix}{folder}")
        message = f"{where}: no {folder.name}.xml, only {_shown(', '.join(found))}; give the article the folder's name"
        problems.append(Problem(where, "bucket_without_article", message))


def _newest(sources: list[Source], problems: list[Problem]) -> list[Source]:
    """Of several versions of one PubMed Central article only the last; the others are reported."""
    last: dict[str, int] = {}
    for source in sources:
        if match := _BUCKET_FOLDER.fullmatch(source.name):
            last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    kept = []
    for source in sources:
        match = _BUCKET_FOLDER.fullmatch(source.name)
        if match and int(match[2]) < last[match[1]]:
            problems.append(
                Problem(source.where, "superseded", f"{source.where}: version {last[match[1]]} is here too")
            )
        else:
            kept.append(source)
    return kept


class _Names:
    """Finds files by name without ever making a path from an href."""

    def __init__(self, names: list[str]) -> None:
        self._in_folder: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self._with_xml = set()
        for name in names:
            at = PurePosixPath(name)
            folder = str(at.parent)
            if _is_xml(name):
                self._with_xml.add(folder)
            self._in_folder[folder][at.stem.lower()].append(name)
        self._folders = sorted(self._in_folder)
        self._below: dict[str, list[str]] = {}

    def beside(self, member: str, suffix: str) -> str | None:
        at = PurePosixPath(member)
        candidates = self._in_folder[str(at.parent)].get(at.stem.lower(), [])
        return next((name for name in candidates if name.lower().endswith(suffix)), None)

    def image(self, member: str, href: str) -> str | None:
        """The best image for an href in the article's folder, or in one below that is no other article's."""
        for folder in self._near(str(PurePosixPath(member).parent)):
            if found := best_image(self._in_folder[folder], href):
                return found
        return None

    def _near(self, folder: str) -> list[str]:
        if folder not in self._below:
            prefix = "" if folder == "." else f"{folder}/"
            found = [folder]
            for at in range(bisect_left(self._folders, prefix), len(self._folders)):
                below = self._folders[at]
                if not below.startswith(prefix):
                    break
                if below != folder and below not in self._with_xml:
                    found.append(below)
            self._below[folder] = found
        return self._below[folder]


def by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """The files of one folder by their names without extension, in lower case."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[PurePosixPath(name).stem.lower()].append(name)
    return found


def best_image(names: Mapping[str, list[str]], href: str) -> str | None:
    """Of the files `by_stem` the best image for an href: of the same stem, whatever path stands before it. An
    href's own extension ("x.tif") does not bind: its JPEG is the better file."""
    base = PurePosixPath(href.replace("\\", "/").partition("?")[0].rstrip("/")).name.lower()
    stem = next((base.removesuffix(extension) for extension in _IMAGES if base.endswith(extension)), base)
    # "x.y" may be a stem of its own (info:doi/10.1371/journal.pone.0070598.g001)
    found = [n for n in names.get(stem, ()) if PurePosixPath(n).suffix.lower() in _IMAGES]
    return min(found, key=lambda n: (_IMAGES.index(PurePosixPath(n).suffix.lower()), n), default=None)


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.problems: list[Problem] = []
        self._inside = root.resolve()
        found = []
        for folder, folders, files in os.walk(root, onerror=self._unreadable):
            folders[:] = sorted(name for name in folders if not _hidden(name))
            for name in folders:
                if (at := Path(folder) / name).is_symlink():  # never entered: it may lead out, or round in a circle
                    self._pass_over(at, "linked_folder", "a link to a folder; put the folder itself there")
            for name in sorted(files):
                if not _hidden(name) and self._is_readable(Path(folder) / name):
                    found.append((Path(folder) / name).relative_to(root).as_posix())
        self.names = sorted(found)

    def _is_readable(self, file: Path) -> bool:
        if not file.is_file():
            self._pass_over(file, "no_file", "a link to nothing, or no regular file; put the file itself there")
        elif file.is_symlink() and not file.resolve().is_relative_to(self._inside):
            self._pass_over(file, "link_leads_out", "a link out of the folder; put the file itself there")
        else:
            return True
        return False

    def _unreadable(self, error: OSError) -> None:
        self._pass_over(Path(error.filename), "unreadable", f"{error.strerror}; check its permissions")

    def _pass_over(self, path: Path, reason: str, message: str) -> None:
        where = _shown(path.relative_to(self._root).as_posix())
        self.problems.append(Problem(where, reason, f"{where}: {message}"))

    def read(self, name: str, limit: int) -> bytes:
        try:
            with (self._root / name).open("rb") as data:
                return _capped(data.read(limit + 1), name, limit)
        except OSError as error:
            where = _shown(str(self._root / name))
            raise SourceError(f"{where}: {error.strerror}; check its permissions", "unreadable") from None


class _Zip:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed_ns = path.stat().st_mtime_ns
        with zipfile.ZipFile(path) as archive:
            self.names = sorted({i.filename for i in archive.infolist() if not i.is_dir() and _safe(i.filename)})

    def read(self, name: str, limit: int) -> bytes:
        try:
            with _opened(self._path, self._changed_ns).open(name) as data:
                return _capped(data.read(limit + 1), name, limit)
        except RuntimeError as error:  # what zipfile raises for an encrypted member
            raise SourceError(f"{self._path}!{name}: {error}; unpack it first", "zip_encrypted") from None
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
            raise SourceError(f"{self._path}!{name}: {error}; fetch the zip again", "zip_damaged") from None


@lru_cache(maxsize=1)
def _opened(path: Path, _: int) -> zipfile.ZipFile:
    """The zip in use, and no other: thousands open at once are more than a process may hold, and one opened anew for
    each member has its whole table of contents read each time."""
    return zipfile.ZipFile(path)


def _capped(data: bytes, name: str, limit: int) -> bytes:
    if len(data) > limit:
        raise SourceError(f"{name}: more than {limit // 2**20} MiB; leave it out", "too_large")
    return data


def _safe(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and ".." not in parts and parts[0] != "/" and not any(_hidden(part) for part in parts)


def _is_xml(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _XML


def _shown(name: str) -> str:
    """A file name that is not UTF-8 in a form that can be written down."""
    return os.fsencode(name).decode("utf-8", "replace")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _fingerprint(root: Path, files: Iterable[Path]) -> str:
    stats = [(file, file.stat()) for file in files]
    by_content = sum(stat.st_size for _, stat in stats) <= _CONTENT_HASHED_BYTES
    total = hashlib.sha256()
    for file, stat in stats:
        name = file.relative_to(root).as_posix() if file != root else file.name
        total.update(os.fsencode(f"{name}\0{stat.st_size}\0"))
        if by_content and os.access(file, os.R_OK):
            with file.open("rb") as data:
                total.update(hashlib.file_digest(data, "sha256").digest())
        else:
            total.update(str(stat.st_mtime_ns).encode())
    return total.hexdigest()[:16]
