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
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from llavamed.corpus import archives, settled
from llavamed.corpus.archives import Archive, SourceError
from llavamed.corpus.folder import File, Folder, Problem, shown, stamps
from llavamed.corpus.neighbours import IMAGES, NOT_READ, XML, Near, folded, folder_of, neighbourhoods
from llavamed.errors import InputError

# Far above any article. Together with what a parser and a decoder make of them they stay below a gigabyte.
MAX_XML_BYTES = 64 * 2**20
MAX_IMAGE_BYTES = 128 * 2**20
_MAX_METADATA_BYTES = 2 * 2**20
_LEAST_SPLIT_BYTES = 8 * 2**20  # of a zip; there may be a hundred thousand small ones, and each would be looked into

_METADATA = ".json"
_MATTER = frozenset({"", ".", _METADATA, *XML, *IMAGES, *NOT_READ})  # without an extension: its first bytes tell
# What may pack articles; of it only archives.SUFFIXES are looked into, and not inside of one another. A table or a scan
# that is packed alone (data.csv.gz) is no such thing.
_PACKED = re.compile(
    r".*\.(?:zip|tar|tgz|tbz2|txz|7z|rar|cpio|(?:tar|xml|nxml)\.(?:gz|bz2|xz|zst|lzma|z))", re.IGNORECASE | re.DOTALL
)
_BUCKET_FOLDER = re.compile(r"(PMC\d+)\.(\d+)")


class _Container(Protocol):
    """A folder or an archive: the bytes of a file in it by its name, with `/`."""

    def read(self, name: str, limit: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Source:
    """One article on disk. `name` is the XML's stem (in the bucket layout the PMCID with its version);
    `where` says where it was read from, relative to the path given."""

    name: str
    where: str
    _container: _Container = field(repr=False, compare=False)
    _member: str = field(repr=False, compare=False)
    _near: Near = field(repr=False, compare=False)
    stamp: str = ""  # another when a file is another that it may read; "" in an archive, whose own stamp tells

    def xml(self) -> bytes:
        """Raises SourceError for what is too large or cannot be unpacked."""
        return self._container.read(self._member, MAX_XML_BYTES)

    def metadata(self) -> dict[str, Any] | None:
        """The JSON object beside the XML (PubMed Central's `license_code`, `is_retracted`...), or None. Raises
        SourceError for one that is damaged: it might have said that the article is retracted."""
        name = self._near.beside(self._member, _METADATA)
        if name is None:
            return None
        try:
            body = json.loads(self._container.read(name, _MAX_METADATA_BYTES))
        except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
            if isinstance(error, SourceError):
                raise
            message = f"{self.where}: its metadata ({shown(name)}) is no JSON ({error}); fetch the article again"
            raise SourceError(message, "metadata_damaged") from None
        return body if isinstance(body, dict) else None

    @property
    def has_metadata(self) -> bool:
        return self._near.beside(self._member, _METADATA) is not None

    def image(self, href: str) -> bytes | None:
        """The image that `href` names, with or without its extension and in any case, or None.
        Raises SourceError for one that cannot be read, and for one that is there in no format of images."""
        name = self._near.image(href)
        if name is None and (other := self._near.other(href)) is not None:
            if PurePosixPath(other).suffix.lower() in NOT_READ:
                raise SourceError(f"{self.where}: {shown(other)} is not read; save it as PNG or JPEG", "image_format")
            name = other  # without an extension: its first bytes tell
        return None if name is None else self._container.read(name, MAX_IMAGE_BYTES)


@dataclass(frozen=True)
class Package:
    """An archive, not looked into yet, or one part of its articles: `part` counts from 0, of `parts`."""

    path: Path
    where: str
    stamp: str
    size: int  # bytes, packed
    part: int = 0
    parts: int = 1

    def open(self) -> tuple[list[Source], list[Problem]]:
        """The articles in it, or in this part of it, and what is wrong with it, which the first part says."""
        found, problems = _inside(self.path, self.where, self.stamp)
        start, end = (len(found) * number // self.parts for number in (self.part, self.part + 1))
        return list(found[start:end]), list(problems if self.part == 0 else ())

    def split(self, most: int) -> list[Package]:
        """Parts of `most` articles, or itself: a small one, and a tar, which is read from its start."""
        if not self.path.name.lower().endswith(".zip") or self.size < _LEAST_SPLIT_BYTES:
            return [self]
        parts = -(-len(_inside(self.path, self.where, self.stamp)[0]) // most)
        return [replace(self, part=part, parts=parts) for part in range(parts)] if parts > 1 else [self]


@lru_cache(maxsize=1)
def _inside(path: Path, where: str, _: str) -> tuple[list[Source], list[Problem]]:
    """Of the archive in use, as its parts come one after the other."""
    problems: list[Problem] = []
    try:
        archive = Archive(path)
    except SourceError as error:
        return [], [Problem(where, error.reason, str(error))]
    for member in archive.refused:
        at = f"{where}!{shown(member.name)}"
        problems.append(Problem(at, member.reason, f"{at}: {_REFUSED[member.reason]}"))
    for name in filter(_is_packed, archive.names):
        at = f"{where}!{shown(name)}"
        problems.append(Problem(at, "nested_archive", f"{at}: an archive in an archive; unpack the outer one"))
    if not any(_is_xml(name) for name in archive.names):
        problems.append(Problem(where, "archive_without_article", f"{where}: no XML in it"))
    found = sorted(_articles(archive, archive.names, f"{where}!", problems), key=lambda source: source.where)
    return _newest(found, problems), problems


_REFUSED = {
    "archive_path_out": "a name that leads out of the archive; it is not read",
    "archive_link": "a link, not a file; it is not followed",
    "archive_device": "a device or pipe, not a file; it is not opened",
}


@dataclass(frozen=True)
class Listing:
    """All articles and archives below a path, in order, and what could not be opened at all."""

    entries: list[Source | Package]
    problems: list[Problem]

    @property
    def fingerprint(self) -> str:
        """Of all that a corpus is made of: the names of articles, their stamps, and the problems."""
        total = hashlib.sha256()
        for entry in self.entries:
            total.update(f"{entry.where}\0{entry.stamp}\0".encode())
        for problem in self.problems:
            total.update(f"{problem.where}\0{problem.reason}\0{problem.message}\0".encode())
        return total.hexdigest()[:16]


def scan(path: Path, workers: int = 1) -> Listing:
    """List the articles and archives in a folder, or one archive, with `workers` threads. Raises InputError if there
    is none."""
    expected = (
        "expected a folder of JATS articles (.xml or .nxml, images beside them), or of zips or tars that hold such"
    )
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; {expected}")
    if path.is_file() and not _is_archive(path.name):
        raise InputError(f"{path}: neither a folder nor one of {', '.join(archives.SUFFIXES)}; {expected}")
    problems: list[Problem] = []
    if path.is_file():
        about = path.stat()
        root, files = path.parent, [File(path.name, about.st_size, about.st_mtime_ns)]
    else:
        root, files = path, Folder(path).list(problems)
    names = [file.name for file in files]
    stamp = _Stamps(root, [file for file in files if _matters(file.name)], workers)
    packed = [file for file in files if _is_archive(file.name)]
    del files  # there may be millions, and of the others the names are all that is needed
    found = sorted(_articles(Folder(root), names, "", problems, stamp.of_article), key=lambda source: source.where)
    if path.is_dir() and (fetched := settled.whole(path)) is not None:
        found = _whole(found, fetched, problems)
    for name in names:
        if not _is_archive(name) and _is_packed(name):
            message = f"{shown(name)}: packed in a way that is not read; unpack it, or pack it as zip or tar.gz"
            problems.append(Problem(shown(name), "archive_unknown", message))
    entries: list[Source | Package] = [*_newest(found, problems)]
    for file in packed:
        entries.append(Package(root / file.name, shown(file.name), stamp.of_file(file.name), file.size))
    entries.sort(key=lambda entry: entry.where)
    if not entries and not problems:
        raise InputError(f"{path}: no article in it; {expected}")
    return Listing(entries, problems)


class _Stamps:
    """By what it is told that an article has changed: its XML and metadata, and every picture that it may name, which
    are all those of its neighbourhood. In a folder that many articles share, one more picture is news to all."""

    def __init__(self, root: Path, files: Sequence[File], workers: int) -> None:
        sums: dict[tuple[str, str], Any] = {}  # by folder and stem; the pictures of a folder under ""
        for file, stamp in zip(files, stamps(root, files, workers), strict=True):
            total = sums.setdefault(self._place(file.name), hashlib.sha256())
            total.update(os.fsencode(file.name) + b"\0" + stamp + b"\0")
        self._digests = {place: total.digest() for place, total in sums.items()}
        self._pictures: dict[str, bytes] = {}  # by folder: of its whole neighbourhood

    @staticmethod
    def _place(name: str) -> tuple[str, str]:
        folder, _, base = name.rpartition("/")
        is_text = base.lower().endswith((*XML, _METADATA)) or _is_archive(base)
        return folder, folded(PurePosixPath(base).stem) if is_text else ""

    def of_article(self, member: str, near: Near) -> str:
        folder = member.rpartition("/")[0]
        if folder not in self._pictures:
            self._pictures[folder] = b"".join(self._digests.get((one, ""), b"") for one in near.folders())
        own = self._digests[self._place(member)]
        return hashlib.sha256(own + self._pictures[folder]).hexdigest()[:16]

    def of_file(self, name: str) -> str:
        return self._digests[self._place(name)].hex()[:16]


def _articles(
    container: _Container,
    names: list[str],
    prefix: str,
    problems: list[Problem],
    stamp: Callable[[str, Near], str] = lambda member, near: "",
) -> Iterator[Source]:
    near = neighbourhoods(names)
    files = [member for member in names if _is_xml(member)]
    complete = {folder_of(member) for member in files if _in_own_folder(member)}
    strays: dict[str, list[str]] = defaultdict(list)  # bucket folder without its article -> its XML files
    for member in files:
        folder, at = folder_of(member), PurePosixPath(member)
        if _BUCKET_FOLDER.fullmatch(at.parent.name) is None or _in_own_folder(member):
            beside = near[folder]
            yield Source(shown(at.stem), shown(prefix + member), container, member, beside, stamp(member, beside))
        elif folder not in complete:  # else a supplementary file of that article
            strays[folder].append(at.name)
    for folder, found in strays.items():
        name = folder.rpartition("/")[2]
        where = shown(f"{prefix}{folder}")
        message = f"{where}: no {name}.xml, only {shown(', '.join(found))}; give the article the folder's name"
        problems.append(Problem(where, "bucket_without_article", message))


def _in_own_folder(member: str) -> bool:
    """An article in a folder of its name, as in the bucket."""
    at = PurePosixPath(member)
    return at.stem == at.parent.name


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


def _matters(name: str) -> bool:
    """Whether what is made of articles may depend on this file; a table or a film beside them changes nothing."""
    return os.path.splitext(name)[1].lower() in _MATTER or _is_archive(name)


def _is_archive(name: str) -> bool:
    return name.lower().endswith(archives.SUFFIXES)


def _is_packed(name: str) -> bool:
    return _PACKED.fullmatch(name) is not None


def _is_xml(name: str) -> bool:
    return name.lower().endswith(XML)
