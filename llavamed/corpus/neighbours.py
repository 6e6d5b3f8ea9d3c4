"""Which file beside an article an href of it names.

An href is whatever a publisher's system wrote: a path of another machine, a name without its extension or with that of
the print version, in another case, with the accents written otherwise. It is never used as a path: it is compared with
the names that a listing holds, in the article's folder and those below that are no other article's.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import PurePosixPath

XML = (".xml", ".nxml")
# Best first: publishers put a full JPEG beside a GIF or PNG thumbnail, and sometimes the TIFF it came from.
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")
# Pictures as well, but none of points, or of formats that journals do not use for figures; "" is what has no extension.
NOT_READ = frozenset(
    {".svg", ".svgz", ".eps", ".ps", ".pdf", ".jp2", ".jpx", ".emf", ".wmf", ".heic", ".avif", ".ai", ".psd", ".pct"}
)


class Near:
    """The files that an article may name, found without ever making a path from an href: those in its folder, then
    those in each folder below that is no other article's. Shared by the articles of a folder, light to send away, and
    to keep: of a folder it holds one text, with NULs between the names, as there may be millions of folders."""

    __slots__ = ("_folders",)

    def __init__(self, folders: Iterable[str]) -> None:
        self._folders = tuple(folders)

    def folders(self) -> list[str]:
        return [names.partition("\0")[0].rpartition("/")[0] for names in self._folders]

    def beside(self, member: str, suffix: str) -> str | None:
        candidates = next(self._indexes()).get(folded(PurePosixPath(member).stem), [])
        return next((name for name in candidates if name.lower().endswith(suffix)), None)

    def image(self, href: str) -> str | None:
        return next(filter(None, (best_image(names, href) for names in self._indexes())), None)

    def other(self, href: str) -> str | None:
        """A file of that name which is no image by its extension: a drawing, or what has none."""
        return next(filter(None, (_no_image(names, href) for names in self._indexes())), None)

    def _indexes(self) -> Iterator[dict[str, list[str]]]:
        return map(_in_use(self._folders), self._folders)


@lru_cache(maxsize=1)
def _in_use(_: tuple[str, ...]) -> Callable[[str], dict[str, list[str]]]:
    """What makes the index of a folder when it is asked for, and keeps it: of the neighbourhood in use and no other, as
    the articles of a folder come one after the other, and an index may be of millions of files."""
    return cache(lambda names: by_stem(names.split("\0")))


def neighbourhoods(names: Iterable[str]) -> dict[str, Near]:
    """For each folder that holds an article: what the articles in it may name."""
    in_folder: dict[str, list[str]] = defaultdict(list)
    with_xml = set()
    for name in names:
        folder = folder_of(name)
        in_folder[folder].append(name)
        if name.lower().endswith(XML):
            with_xml.add(folder)
    folders = sorted(in_folder)
    texts = {folder: "\0".join(in_folder.pop(folder)) for folder in folders}
    near = {}
    for folder in with_xml:
        found = [texts[folder]]
        prefix = "" if folder == "." else f"{folder}/"
        for at in range(bisect_left(folders, prefix), len(folders)):
            if not folders[at].startswith(prefix):
                break
            if folders[at] not in with_xml:
                found.append(texts[folders[at]])
        near[folder] = Near(found)
    return near


def folder_of(name: str) -> str:
    """The folder of a file in a listing, "." for the listing's own."""
    return _plain(name.rpartition("/")[0])


@lru_cache(maxsize=256)  # the names of a folder stand together
def _plain(folder: str) -> str:
    return str(PurePosixPath(folder))


def by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """The files of one folder by their names without extension, in lower case."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[folded(PurePosixPath(name).stem)].append(name)
    return found


def folded(stem: str) -> str:
    """macOS takes an accent for a sign of its own, articles and Windows do not; and case says nothing."""
    return unicodedata.normalize("NFC", stem).lower()


def _named(names: Mapping[str, list[str]], href: str) -> Iterator[str]:
    """Of the files `by_stem` those an href names, whatever path stands before it, and whatever format it says."""
    base = folded(PurePosixPath(href.replace("\\", "/").partition("?")[0].rstrip("/")).name)
    stem = next((base.removesuffix(extension) for extension in IMAGES if base.endswith(extension)), base)
    # "x.y" may be a stem of its own (info:doi/10.1371/journal.pone.0070598.g001)
    yield from names.get(stem, ())
    if PurePosixPath(stem).suffix in NOT_READ:
        yield from names.get(PurePosixPath(stem).stem, ())


def best_image(names: Mapping[str, list[str]], href: str) -> str | None:
    """Of the files `by_stem` the best image for an href: of the same stem, whatever path stands before it. An
    href's own extension ("x.tif") does not bind: its JPEG is the better file."""
    found = [n for n in _named(names, href) if PurePosixPath(n).suffix.lower() in IMAGES]
    return min(found, key=lambda n: (IMAGES.index(PurePosixPath(n).suffix.lower()), n), default=None)


def _no_image(names: Mapping[str, list[str]], href: str) -> str | None:
    """Of the files `by_stem` what an href names that is no image; what has no extension comes first."""
    found = [n for n in _named(names, href) if PurePosixPath(n).suffix.lower() in {"", *NOT_READ}]
    return min(found, key=lambda n: (PurePosixPath(n).suffix != "", n), default=None)
