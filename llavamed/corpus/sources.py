"""A path a person gives -> the articles in it, and the bytes of the images beside each.

Four layouts are read, alone or mixed, by one rule ("an article is an XML file; its metadata and its
images stand beside it"):

    PMC10009416.1/PMC10009416.1.xml + .json + media     the layout of PubMed Central's bucket
    any/folder/article.xml (or .nxml) + images          whatever a publisher's export looks like
    package.zip                                         the same inside a zip, as SciELO and others ship
    PMC7236913.tar.gz                                   PubMed Central's old packages, and any other tar

The hard thing is to trust nothing in it. Archives are never unpacked (`archives`); sizes are capped while
reading, since a header may lie; an href of the XML is never used as a path, it is only compared with the
names that the listing holds. So an article cannot reach a file outside its own folder.

Everything is listed in sorted order, so the same input is always the same sequence. What is passed over
(a linked folder, a link to nowhere, a zip without an article, an article that a mirror has in part) becomes a
`Problem`, which the corpus counts.
An archive is listed as one `Package` and looked into when its turn comes, perhaps in another process: so
are a hundred thousand of them listed at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from llavamed.corpus import archives, settled
from llavamed.corpus.archives import Archive, SourceError
from llavamed.errors import InputError

# Far above any article. Together with what a parser and a decoder make of them they stay below a gigabyte.
MAX_XML_BYTES = 64 * 2**20
MAX_IMAGE_BYTES = 128 * 2**20
_MAX_METADATA_BYTES = 2 * 2**20
_CONTENT_HASHED_BYTES = 2**30  # inputs larger than this are fingerprinted by name, size and time alone

_XML = frozenset({".xml", ".nxml"})
# Best first: publishers put a full JPEG beside a GIF or PNG thumbnail, and sometimes the TIFF it came from.
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")
# Pictures as well, but none of points, or of formats that journals do not use for figures; "" is what has no extension.
_NOT_READ = frozenset(
    {".svg", ".svgz", ".eps", ".ps", ".pdf", ".jp2", ".jpx", ".emf", ".wmf", ".heic", ".avif", ".ai", ".psd", ".pct"}
)
# What may pack articles; of it only archives.SUFFIXES are looked into, and not inside of one another. A table or a scan
# that is packed alone (data.csv.gz) is no such thing.
_PACKED = re.compile(
    r".*\.(?:zip|tar|tgz|tbz2|txz|7z|rar|cpio|(?:tar|xml|nxml)\.(?:gz|bz2|xz|zst|lzma|z))", re.IGNORECASE | re.DOTALL
)
_BUCKET_FOLDER = re.compile(r"(PMC\d+)\.(\d+)")


class _Container(Protocol):
    """A folder or an archive: the bytes of a file in it by its name, with `/`."""

    def read(self, name: str, limit: int) -> bytes: ...


@dataclass(frozen=True)
class Source:
    """One article on disk. `name` is the XML's stem (in the bucket layout the PMCID with its version);
    `where` says where it was read from, relative to the path given."""

    name: str
    where: str
    _container: _Container = field(repr=False, compare=False)
    _member: str = field(repr=False, compare=False)
    _near: _Near = field(repr=False, compare=False)

    def xml(self) -> bytes:
        """Raises SourceError for what is too large or cannot be unpacked."""
        return self._container.read(self._member, MAX_XML_BYTES)

    def metadata(self) -> dict[str, Any] | None:
        """The JSON object beside the XML (PubMed Central's `license_code`, `is_retracted`...), or None. Raises
        SourceError for one that is damaged: it might have said that the article is retracted."""
        name = self._near.beside(self._member, ".json")
        if name is None:
            return None
        try:
            body = json.loads(self._container.read(name, _MAX_METADATA_BYTES))
        except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
            if isinstance(error, SourceError):
                raise
            message = f"{self.where}: its metadata ({_shown(name)}) is no JSON ({error}); fetch the article again"
            raise SourceError(message, "metadata_damaged") from None
        return body if isinstance(body, dict) else None

    @property
    def has_metadata(self) -> bool:
        return self._near.beside(self._member, ".json") is not None

    def image(self, href: str) -> bytes | None:
        """The image that `href` names, with or without its extension and in any case, or None.
        Raises SourceError for one that cannot be read, and for one that is there in no format of images."""
        name = self._near.image(href)
        if name is None and (other := self._near.other(href)) is not None:
            if PurePosixPath(other).suffix.lower() in _NOT_READ:
                raise SourceError(f"{self.where}: {_shown(other)} is not read; save it as PNG or JPEG", "image_format")
            name = other  # without an extension: its first bytes tell
        return None if name is None else self._container.read(name, MAX_IMAGE_BYTES)


@dataclass(frozen=True)
class Package:
    """An archive, not looked into yet."""

    path: Path
    where: str

    def open(self) -> tuple[list[Source], list[Problem]]:
        """The articles in it, and what is wrong with it."""
        problems: list[Problem] = []
        try:
            archive = Archive(self.path)
        except SourceError as error:
            return [], [Problem(self.where, error.reason, str(error))]
        for member in archive.refused:
            where = f"{self.where}!{_shown(member.name)}"
            problems.append(Problem(where, member.reason, f"{where}: {_REFUSED[member.reason]}"))
        for name in filter(_is_packed, archive.names):
            where = f"{self.where}!{_shown(name)}"
            problems.append(
                Problem(where, "nested_archive", f"{where}: an archive in an archive; unpack the outer one")
            )
        if not any(_is_xml(name) for name in archive.names):
            problems.append(Problem(self.where, "archive_without_article", f"{self.where}: no XML in it"))
        found = sorted(_articles(archive, archive.names, f"{self.where}!", problems), key=lambda source: source.where)
        return _newest(found, problems), problems


_REFUSED = {
    "archive_path_out": "a name that leads out of the archive; it is not read",
    "archive_link": "a link, not a file; it is not followed",
    "archive_device": "a device or pipe, not a file; it is not opened",
}


@dataclass(frozen=True)
class Problem:
    """Something in the input that is no readable article: `reason` is a short code to count by."""

    where: str
    reason: str
    message: str


@dataclass(frozen=True)
class Listing:
    """All articles and archives below a path, in order, and what could not be opened at all."""

    entries: list[Source | Package]
    problems: list[Problem]
    fingerprint: str  # of the names and contents (or sizes and times, for large inputs)


def scan(path: Path) -> Listing:
    """List the articles and archives in a folder, or one archive. Raises InputError if there is none."""
    expected = (
        "expected a folder of JATS articles (.xml or .nxml, images beside them), or of zips or tars that hold such"
    )
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; {expected}")
    if path.is_file() and not _is_archive(path.name):
        raise InputError(f"{path}: neither a folder nor one of {', '.join(archives.SUFFIXES)}; {expected}")
    problems: list[Problem] = []
    if path.is_file():
        return Listing([Package(path, _shown(path.name))], problems, _fingerprint(path, lambda: [path]))
    folder = _Folder(path)
    names = folder.list(problems)
    found = sorted(_articles(folder, names, "", problems), key=lambda source: source.where)
    if (fetched := settled.whole(path)) is not None:
        found = _whole(found, fetched, problems)
    for name in names:
        if not _is_archive(name) and _is_packed(name):
            message = f"{_shown(name)}: packed in a way that is not read; unpack it, or pack it as zip or tar.gz"
            problems.append(Problem(_shown(name), "archive_unknown", message))
    entries: list[Source | Package] = [*_newest(found, problems)]
    entries += [Package(path / name, _shown(name)) for name in names if _is_archive(name)]
    entries.sort(key=lambda entry: entry.where)
    if not entries and not problems:
        raise InputError(f"{path}: no article in it; {expected}")
    return Listing(entries, problems, _fingerprint(path, lambda: (path / name for name in names)))


def _articles(container: _Container, names: list[str], prefix: str, problems: list[Problem]) -> Iterator[Source]:
    near = _neighbourhoods(names)
    files = [(member, PurePosixPath(member)) for member in names if _is_xml(member)]
    complete = {at.parent for _, at in files if at.stem == at.parent.name}
    strays: dict[PurePosixPath, list[str]] = defaultdict(list)  # bucket folder without its article -> its XML files
    for member, at in files:
        if _BUCKET_FOLDER.fullmatch(at.parent.name) is None or at.stem == at.parent.name:
            yield Source(_shown(at.stem), _shown(prefix + member), container, member, near[str(at.parent)])
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


def _whole(sources: list[Source], fetched: set[str], problems: list[Problem]) -> list[Source]:
    """Of a mirror's articles those that were fetched and have their metadata; the others are reported. What somebody
    has put beside them is theirs."""
    kept = []
    for source in sources:
        parts = PurePosixPath(source.where).parts
        if len(parts) != 2 or not _BUCKET_FOLDER.fullmatch(parts[0]) or (parts[0] in fetched and source.has_metadata):
            kept.append(source)
        else:
            message = f"{source.where}: not fetched whole; run the same `llavamed corpus fetch` again"
            problems.append(Problem(source.where, "not_fetched", message))
    return kept


class _Near:
    """The files that an article may name, found without ever making a path from an href: those in its folder, then
    those in each folder below that is no other article's. Shared by the articles of a folder, light to send away."""

    def __init__(self, folders: list[list[str]]) -> None:
        self._folders = folders
        self._indexes: list[dict[str, list[str]]] | None = None

    def __getstate__(self) -> list[list[str]]:
        return self._folders

    def __setstate__(self, folders: list[list[str]]) -> None:
        self.__init__(folders)  # type: ignore[misc]

    def _indexed(self) -> list[dict[str, list[str]]]:
        if self._indexes is None:
            self._indexes = [by_stem(names) for names in self._folders]
        return self._indexes

    def beside(self, member: str, suffix: str) -> str | None:
        candidates = self._indexed()[0].get(_folded(PurePosixPath(member).stem), [])
        return next((name for name in candidates if name.lower().endswith(suffix)), None)

    def image(self, href: str) -> str | None:
        return next(filter(None, (best_image(index, href) for index in self._indexed())), None)

    def other(self, href: str) -> str | None:
        """A file of that name which is no image by its extension: a drawing, or what has none."""
        return next(filter(None, (_no_image(index, href) for index in self._indexed())), None)


def _neighbourhoods(names: list[str]) -> dict[str, _Near]:
    """For each folder that holds an article: what the articles in it may name."""
    in_folder: dict[str, list[str]] = defaultdict(list)
    with_xml = set()
    for name in names:
        folder = str(PurePosixPath(name).parent)
        in_folder[folder].append(name)
        if _is_xml(name):
            with_xml.add(folder)
    folders = sorted(in_folder)
    near = {}
    for folder in with_xml:
        found = [in_folder[folder]]
        prefix = "" if folder == "." else f"{folder}/"
        for at in range(bisect_left(folders, prefix), len(folders)):
            if not folders[at].startswith(prefix):
                break
            if folders[at] not in with_xml:
                found.append(in_folder[folders[at]])
        near[folder] = _Near(found)
    return near


def by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """The files of one folder by their names without extension, in lower case."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[_folded(PurePosixPath(name).stem)].append(name)
    return found


def _folded(stem: str) -> str:
    """macOS takes an accent for a sign of its own, articles and Windows do not; and case says nothing."""
    return unicodedata.normalize("NFC", stem).lower()


def _named(names: Mapping[str, list[str]], href: str) -> Iterator[str]:
    """Of the files `by_stem` those an href names, whatever path stands before it, and whatever format it says."""
    base = _folded(PurePosixPath(href.replace("\\", "/").partition("?")[0].rstrip("/")).name)
    stem = next((base.removesuffix(extension) for extension in _IMAGES if base.endswith(extension)), base)
    # "x.y" may be a stem of its own (info:doi/10.1371/journal.pone.0070598.g001)
    yield from names.get(stem, ())
    if PurePosixPath(stem).suffix in _NOT_READ:
        yield from names.get(PurePosixPath(stem).stem, ())


def best_image(names: Mapping[str, list[str]], href: str) -> str | None:
    """Of the files `by_stem` the best image for an href: of the same stem, whatever path stands before it. An
    href's own extension ("x.tif") does not bind: its JPEG is the better file."""
    found = [n for n in _named(names, href) if PurePosixPath(n).suffix.lower() in _IMAGES]
    return min(found, key=lambda n: (_IMAGES.index(PurePosixPath(n).suffix.lower()), n), default=None)


def _no_image(names: Mapping[str, list[str]], href: str) -> str | None:
    """Of the files `by_stem` what an href names that is no image; what has no extension comes first."""
    found = [n for n in _named(names, href) if PurePosixPath(n).suffix.lower() in {"", *_NOT_READ}]
    return min(found, key=lambda n: (PurePosixPath(n).suffix != "", n), default=None)


@dataclass(frozen=True)
class _Folder:
    root: Path

    def list(self, problems: list[Problem]) -> list[str]:
        """All files in it, sorted, with `/`; what is passed over becomes a problem."""
        inside = self.root.resolve()

        def pass_over(path: Path, reason: str, message: str) -> None:
            where = _shown(path.relative_to(self.root).as_posix())
            problems.append(Problem(where, reason, f"{where}: {message}"))

        def unreadable(error: OSError) -> None:
            pass_over(Path(error.filename), "unreadable", f"{error.strerror}; check its permissions")

        found = []
        for folder, folders, files in os.walk(self.root, onerror=unreadable):
            folders[:] = sorted(name for name in folders if not _hidden(name))
            for name in folders:
                if (at := Path(folder) / name).is_symlink():  # never entered: it may lead out, or round in a circle
                    pass_over(at, "linked_folder", "a link to a folder; put the folder itself there")
            for name in sorted(files):
                file = Path(folder) / name
                if _hidden(name):
                    continue
                if not file.is_file():
                    pass_over(file, "no_file", "a link to nothing, or no regular file; put the file itself there")
                elif file.is_symlink() and not file.resolve().is_relative_to(inside):
                    pass_over(file, "link_leads_out", "a link out of the folder; put the file itself there")
                else:
                    found.append(file.relative_to(self.root).as_posix())
        return sorted(found)

    def read(self, name: str, limit: int) -> bytes:
        try:
            with (self.root / name).open("rb") as data:
                return archives.capped(data.read(limit + 1), name, limit)
        except OSError as error:
            where = _shown(str(self.root / name))
            raise SourceError(f"{where}: {error.strerror}; check its permissions", "unreadable") from None


def _is_archive(name: str) -> bool:
    return name.lower().endswith(archives.SUFFIXES)


def _is_packed(name: str) -> bool:
    return _PACKED.fullmatch(name) is not None


def _is_xml(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _XML


def _shown(name: str) -> str:
    """A file name that is not UTF-8 in a form that can be written down."""
    return os.fsencode(name).decode("utf-8", "replace")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _fingerprint(root: Path, files: Callable[[], Iterable[Path]]) -> str:
    """Twice through `files`, which are not kept: there may be millions."""
    by_content = sum(file.stat().st_size for file in files()) <= _CONTENT_HASHED_BYTES
    total = hashlib.sha256()
    for file in files():
        stat = file.stat()
        name = file.relative_to(root).as_posix() if file != root else file.name
        total.update(os.fsencode(f"{name}\0{stat.st_size}\0"))
        if by_content and os.access(file, os.R_OK):
            with file.open("rb") as data:
                total.update(hashlib.file_digest(data, "sha256").digest())
        else:
            total.update(str(stat.st_mtime_ns).encode())
    return total.hexdigest()[:16]
