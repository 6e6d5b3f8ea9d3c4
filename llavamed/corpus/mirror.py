"""One article of the mirror: asked for, judged by its metadata, fetched, and deleted where the metadata says so.

    PMC7236913.1/PMC7236913.1.xml, .json, images      as in the bucket; the metadata is written last

What a server does not give proves nothing: it may be down, behind a login page, or another server altogether. So an
article is deleted for what is said of it, by its own metadata (retracted, closed, another licence), by its XML if the
MD5 says that it is the bucket's, or because a newer version has taken its place. Whatever else happens it stays as it
is and its rows stay as they were ("unchecked"). Articles that are said of no more are left to `fetch`, which looks at
all of them together.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from llavamed.corpus import bucket, jats, licence, neighbours, sources, versions, wanted
from llavamed.corpus.bucket import BucketError, Item, Metadata, Name
from llavamed.corpus.client import Client, Failed, Missing, Saved
from llavamed.corpus.ledger import FAILED, FETCHED, Group, Row
from llavamed.corpus.wanted import Wanted
from llavamed.imaging.decode import ImageError, decode

# an image's own faults, which do not keep its article: -> what counts them. All else is the server's, and passes
_OWN_FAULT = {"too_large": "images_too_large", "wrong_md5": "images_failed", "forbidden": "images_failed"}


@dataclass
class Mirror:
    """Where articles are brought, from where, and by which rules. `lists`: whether the server can list."""

    out: Path
    client: Client
    partial: Path
    policy: str  # of licences
    every_version: bool
    lists: bool
    changes: Counter[str] = field(default_factory=Counter)

    def delete(self, name: Name) -> None:
        folder = self.out / str(name)
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)


async def bring(mirror: Mirror, one: Wanted, rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows of an article's versions, its files fetched, and what failed. `rows` are those of earlier runs."""
    before = {row.name: row for row in rows if not row.failed}
    problems: list[str] = []
    try:
        found = one.versions if one.versions is not None else await _versions(mirror, one.pmcid, before)
    except (Failed, BucketError) as error:
        mirror.changes["unchecked"] += sum(row.state == FETCHED for row in before.values())
        return list(before.values()) or [Row(f"PMC{one.pmcid}", FAILED + error.reason)], [str(error)]
    if not found:
        name = Name(one.pmcid, 0)
        return _not_found(mirror, name, list(before.values()), problems), problems
    now = []
    for version, etag in found:
        name = Name(one.pmcid, version)
        now += await _version(mirror, name, etag, before.get(name), problems)
    staying = {row.name for row in (*now, *Group(one.pmcid, rows, now).left)}
    for name, row in before.items():
        if name.version and name not in staying:
            mirror.changes["superseded"] += row.state == FETCHED
            mirror.delete(name)
    return now, problems


async def _versions(mirror: Mirror, pmcid: int, before: dict[Name, Row]) -> tuple[tuple[int, str], ...]:
    if mirror.lists:
        found = await versions.listed(mirror.client, pmcid)
    else:
        held = [name.version for name, row in before.items() if row.state == FETCHED]
        found = await versions.tried(mirror.client, pmcid, held)
    return tuple((v, "") for v in (found if mirror.every_version else found[-1:]))


def _not_found(mirror: Mirror, name: Name, before: list[Row], problems: list[str]) -> list[Row]:
    """A server that lists is believed that there is no such article; of all others a 404 says little."""
    here = [row for row in before if row.state == FETCHED]
    if not mirror.lists:
        problems.append(f"{mirror.client.base_url}: HTTP 404 for PMC{name.pmcid}")
    if here and (name.version or not mirror.lists):
        mirror.changes["unchecked"] += len(here)
        return before
    return [Row(str(name) if name.version else f"PMC{name.pmcid}", "not_found")]


async def _version(mirror: Mirror, name: Name, etag: str, before: Row | None, problems: list[str]) -> list[Row]:
    if before and etag and wanted.digest(before.etag).hex() == etag and _stands(mirror, before):
        mirror.changes["unchanged"] += 1
        return [before]
    try:
        body, etag = await mirror.client.read(name.metadata_key)
        if before and etag and before.etag == etag and _stands(mirror, before):
            mirror.changes["unchanged"] += 1
            return [before]
        metadata = bucket.read_metadata(body, name)
        code = licence.from_code(metadata.licence_code)
        row = Row(str(name), _verdict(metadata, code, mirror.policy), etag, code)
        if row.state == FETCHED:
            row = await _files(mirror, metadata, body, row)
    except Missing:
        return _not_found(mirror, name, [before] if before else [], problems)
    except (Failed, BucketError) as error:
        problems.append(str(error))
        if before and (before.state != FETCHED or _is_whole(mirror, before)):
            mirror.changes["unchecked"] += before.state == FETCHED
            return [before]
        return [Row(str(name), FAILED + error.reason)]
    if row.state != FETCHED:
        mirror.delete(name)
    _count_change(mirror, row, before)
    return [row]


def _is_whole(mirror: Mirror, row: Row) -> bool:
    return (mirror.out / row.article / f"{row.article}.json").is_file()


def _stands(mirror: Mirror, row: Row) -> bool:
    """Whether an earlier run's word on an unchanged article still holds."""
    if row.state == FETCHED:
        return licence.allowed(row.licence, mirror.policy) and _is_whole(mirror, row) and not row.images_failed
    if row.state in {"licence_excluded", "licence_unknown"}:
        return not licence.allowed(row.licence, mirror.policy)
    return True


def _count_change(mirror: Mirror, row: Row, before: Row | None) -> None:
    if before is None:
        mirror.changes["new"] += row.state == FETCHED
    elif row.state == "retracted":
        mirror.changes["newly_retracted"] += before.state != "retracted"
    else:
        mirror.changes["changed"] += 1


def _verdict(metadata: Metadata, code: str, policy: str) -> str:
    if metadata.is_retracted:
        return "retracted"
    if metadata.is_ocr:
        return "historical_ocr"
    if not metadata.is_open and not metadata.is_manuscript:
        return "not_open_access"
    if not licence.allowed(code, policy):
        return "licence_unknown" if code == licence.UNKNOWN else "licence_excluded"
    return FETCHED if metadata.xml else "xml_missing"


async def _files(mirror: Mirror, metadata: Metadata, body: bytes, row: Row) -> Row:
    """Bring the article's folder to what its metadata says; the metadata itself is written last."""
    assert metadata.xml is not None
    folder = mirror.out / str(metadata.name)
    described = folder / f"{metadata.name}.json"
    if described.is_file() and described.read_bytes() != body:
        described.unlink()  # from here on the folder is unfinished
    folder.mkdir(exist_ok=True)
    try:
        saved = await _item(mirror, metadata.name, metadata.xml, sources.MAX_XML_BYTES)
        article = jats.parse_article((folder / metadata.xml.file).read_bytes(), str(metadata.name))
    except Missing as error:
        raise Failed(str(error), "xml_missing") from None
    except jats.ArticleError as error:
        if not saved.has_md5:
            raise Failed(str(error), error.reason) from None  # perhaps not what the bucket has
        return replace(row, state=error.reason)
    sizes = {metadata.xml.file: saved.bytes}
    images, missing = _images(article, metadata.media)
    found = await asyncio.gather(*(_image(mirror, metadata.name, one) for one in images), return_exceptions=True)
    faults = {"images_missing": missing, "images_failed": 0, "images_too_large": 0}
    for item, size in zip(images, found, strict=True):
        if isinstance(size, int):
            sizes[item.file] = size
        elif isinstance(size, Missing):
            faults["images_missing"] += 1
        elif isinstance(size, Failed) and size.reason in _OWN_FAULT:
            faults[_OWN_FAULT[size.reason]] += 1
        else:
            raise size
    for path in folder.iterdir():  # of an earlier state of the article
        if path.name not in sizes and path != described:
            path.unlink()
    aside = mirror.partial / described.name
    aside.write_bytes(body)
    aside.replace(described)
    whole = sum(sizes.values()) + len(body)
    return Row(row.article, FETCHED, row.etag, row.licence, len(sizes) + 1, whole, **faults)


def _images(article: jats.Article, media: tuple[Item, ...]) -> tuple[list[Item], int]:
    """Of an article's media the images that its figures name, and how many they name that are not there."""
    by_file = {item.file: item for item in media}
    names = neighbours.by_stem(by_file)
    hrefs = dict.fromkeys(href for figure in article.figures for href in figure.graphics)
    found = [neighbours.best_image(names, href) for href in hrefs]
    return [by_file[file] for file in dict.fromkeys(filter(None, found))], found.count(None)


async def _image(mirror: Mirror, name: Name, item: Item) -> int:
    """The size of an image in bytes. One that may have been cut, with nothing to tell by, is looked at."""
    saved = await _item(mirror, name, item, sources.MAX_IMAGE_BYTES)
    if not saved.has_md5 and not saved.has_length:
        path = mirror.out / str(name) / item.file
        try:
            decode(path.read_bytes(), item.file)
        except ImageError as error:
            path.unlink()
            raise Failed(f"{name}/{item.file}: {error}", "cut_short") from None
    return saved.bytes


async def _item(mirror: Mirror, name: Name, item: Item, limit: int) -> Saved:
    """A file that is on disk, whole and verified: it was there already or is fetched now."""
    path = mirror.out / str(name) / item.file
    if item.md5 and path.is_file() and not path.is_symlink():
        with path.open("rb") as data:
            if hashlib.file_digest(data, "md5").hexdigest() == item.md5:
                return Saved(path.stat().st_size, True, True)
    return await mirror.client.save(f"{name}/{item.file}", path, item.md5, limit)
