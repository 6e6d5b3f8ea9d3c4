"""PubMed Central -> a mirror on this disk: of each article its XML, the images that its figures name, its metadata.

    PMC7236913.1/PMC7236913.1.xml, .json, images      as in the bucket; `corpus build` reads it
    articles.jsonl                                    a row for each article asked for, fetched or not (see `ledger`)
    coverage.jsonl                                    with --urls: a row for each image of LLaVA-Med's list

An article is settled in this order: its versions are asked for (the latest is taken), its metadata read, and the
retracted, the closed and those whose licence the policy does not permit are counted and left; then the XML is fetched
and parsed, and of the media beside it only the images that its figures name. The metadata is written last: a folder
with it is whole.

The hard thing is to be stopped anywhere and lose nothing. A file stands under its name only when its MD5 is right
(`client`), the journal says which articles are settled (`ledger`), and everything else is worked out again. A later
run compares ETags: new, changed, superseded, removed and newly retracted articles are acted on, others cost nothing
(with an inventory) or two small requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

from llavamed import manifest
from llavamed.corpus import bucket, fetched, jats, licence, sources, wanted
from llavamed.corpus.bucket import BucketError, Item, Metadata, Name
from llavamed.corpus.client import Client, Failed, Missing
from llavamed.corpus.ledger import FETCHED, Ledger, Row
from llavamed.corpus.wanted import Inventory, LegacyRow, Wanted
from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.progress import Progress

STAGE = "fetch"
_PARTIAL = ".partial"  # files that are being written
_FAILED = "failed_"  # begins the states that another run may mend
_CHANGES = ("new", "changed", "unchanged", "superseded", "removed", "newly_retracted")
_MOST_PROBED = 50  # versions of an article, on a mirror that cannot list


@dataclass(frozen=True)
class Request:
    """What to fetch: exactly one of the first four, and how."""

    ids: Path | None = None
    query: str = ""
    inventory: str = ""  # "latest", a date, or a .csv.gz
    urls: Path | None = None  # LLaVA-Med's list of images
    sample: int | None = None
    seed: int = 0
    every_version: bool = False
    licence: str = "commercial"
    base_url: str = bucket.BASE_URL
    eutils_url: str = wanted.EUTILS
    concurrency: int = 16
    pause: float = 0.5  # seconds before the first retry at most

    def __post_init__(self) -> None:
        given = [bool(x) for x in (self.ids, self.query, self.inventory, self.urls)]
        if sum(given) != 1:
            raise InputError("say what to fetch: one of --ids FILE, --query TEXT, --inventory latest, --urls FILE")
        licence.check_policy(self.licence)


@dataclass
class _Run:
    """One run: where it writes, what it knows, and what it counted."""

    out: Path
    request: Request
    client: Client
    ledger: Ledger
    changes: Counter[str] = field(default_factory=Counter)
    can_list: bool = True


def fetch(out: Path, request: Request) -> Manifest:
    """Fetch what `request` says into `out`, or go on where a run of the same request was stopped.

    Raises InputError for a request that makes no sense, an `out` that holds something else, and a server that is gone.
    """
    legacy = wanted.read_legacy_list(request.urls) if request.urls else None
    listed = wanted.from_file(request.ids) if request.ids else None
    manifest.begin(out, STAGE)
    return asyncio.run(_fetch(out, request, listed, legacy))


async def _fetch(out: Path, request: Request, listed: list[Wanted] | None, legacy: list[LegacyRow] | None) -> Manifest:
    began = time.monotonic()
    settings = {**asdict(request), "ids": str(request.ids or ""), "urls": str(request.urls or "")}
    for how in ("concurrency", "pause"):
        del settings[how]
    async with Client(request.base_url, out / _PARTIAL, request.concurrency, request.pause) as client:
        inventory: Inventory | None = None
        if listed is not None:
            asked: Iterable[Wanted] = listed
        elif legacy is not None:
            asked = [Wanted(pmcid) for pmcid in sorted({row.pmcid for row in legacy} - {0})]
        elif request.query:
            async with Client(request.eutils_url, out / _PARTIAL, 1, request.pause) as eutils:
                asked = await wanted.from_search(eutils, request.query)
        else:
            inventory, settings["inventory"] = await wanted.from_inventory(client, request.inventory)
            asked = list(inventory.wanted(request.every_version, request.sample, request.seed))
        asked = list(asked)
        if inventory is None and request.sample is not None:
            asked = _sample(asked, request.sample, request.seed)
        inputs = manifest.fingerprint([list(one) for one in asked])
        with Ledger(out, manifest.fingerprint([settings, inputs])) as ledger:
            run = _Run(out, request, client, ledger)
            if ledger.resumed and ledger.now:
                print(f"{out}: going on after {len(ledger.now):,} of {len(asked):,} articles", file=sys.stderr)
            if inventory is not None:
                _drop_removed(run, inventory)
            await _all(run, asked)
            rows = ledger.finish()
    shutil.rmtree(out / _PARTIAL)
    result = Manifest(STAGE, settings, {"articles asked for": inputs}, seconds=time.monotonic() - began)
    result.counts["articles_asked_for"] = len(asked)
    traffic = {"requests": client.requests, "retries": client.retries, "bytes": client.received}
    result.extra = {"changes": {name: run.changes[name] for name in _CHANGES}, "traffic": traffic}
    fetched.finish(out, result, rows, legacy)
    return result


def _sample(asked: list[Wanted], size: int, seed: int) -> list[Wanted]:
    """The articles whose hashes are the smallest: of two samples of one list, the larger holds the smaller."""
    return sorted(sorted(asked, key=lambda w: hashlib.sha256(f"{seed}:{w.pmcid}".encode()).digest())[:size])


async def _all(run: _Run, asked: list[Wanted]) -> None:
    todo = [one for one in asked if one.pmcid not in run.ledger.now]
    queue = iter(todo)
    with Progress("fetching articles", len(asked), "articles", start=len(asked) - len(todo)) as progress:

        async def worker() -> None:
            for one in queue:
                run.ledger.settle(one.pmcid, await _article(run, one))
                progress.advance(note=f"{run.client.received / 2**20:,.0f} MiB, {run.client.retries:,} retries")

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(2 * run.request.concurrency):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others were cancelled for it


async def _article(run: _Run, one: Wanted) -> list[Row]:
    """The rows of an article's versions, its files fetched; versions that are no longer asked for are deleted."""
    before = {row.name: row for row in run.ledger.before.get(one.pmcid, ())}
    try:
        versions = one.versions if one.versions is not None else await _versions(run, one.pmcid)
    except Failed as error:
        return [Row(f"PMC{one.pmcid}", _FAILED + error.reason)]
    rows = [await _version(run, Name(one.pmcid, v), etag, before.get(Name(one.pmcid, v))) for v, etag in versions]
    for name, row in before.items():
        if name.version and name.version not in [version for version, _ in versions]:
            run.changes["superseded"] += row.state == FETCHED
            _delete(run, name)
    return rows or [Row(f"PMC{one.pmcid}", "not_found")]


async def _versions(run: _Run, pmcid: int) -> tuple[tuple[int, str], ...]:
    """The versions to take of an article, by the bucket's listing or, on a mirror without one, by trying."""
    found: list[int] = []
    if run.can_list:
        try:
            token = ""
            while True:
                more = f"&continuation-token={quote(token, safe='')}" if token else ""
                body, _ = await run.client.read("", f"?list-type=2&prefix=PMC{pmcid}.&delimiter=/{more}")
                prefixes, token = bucket.read_listing(body, run.client.base_url)
                found += bucket.versions(prefixes, pmcid)
                if not token:
                    break
        except (BucketError, Missing):
            run.can_list = False  # a plain web server
    if not run.can_list:
        for version in range(1, _MOST_PROBED):
            try:
                await run.client.read(Name(pmcid, version).metadata_key)
            except Missing:
                break
            found.append(version)
    return tuple((v, "") for v in (found if run.request.every_version else found[-1:]))


async def _version(run: _Run, name: Name, etag: str, before: Row | None) -> Row:
    if before and etag and wanted.digest(before.etag).hex() == etag and _stands(run, before):
        run.changes["unchanged"] += 1
        return before
    try:
        body, etag = await run.client.read(name.metadata_key)
        if before and etag and before.etag == etag and _stands(run, before):
            run.changes["unchanged"] += 1
            return before
        metadata = bucket.read_metadata(body, name)
        code = licence.from_code(metadata.licence_code)
        row = Row(str(name), _verdict(metadata, code, run.request.licence), etag, code)
        if row.state == FETCHED:
            row = await _files(run, metadata, body, row)
    except Missing:
        row = Row(str(name), "not_found", etag)
    except BucketError as error:
        row = Row(str(name), error.reason, etag)
    except Failed as error:
        row = Row(str(name), _FAILED + error.reason)
    if row.state != FETCHED and not row.state.startswith(_FAILED):
        _delete(run, name)
    _count_change(run, row, before)
    return row


def _stands(run: _Run, row: Row) -> bool:
    """Whether an earlier run's word on an unchanged article still holds."""
    if row.state == FETCHED:
        return (
            licence.allowed(row.licence, run.request.licence)
            and (run.out / row.article / f"{row.article}.json").is_file()
        )
    if row.state in {"licence_excluded", "licence_unknown"}:
        return not licence.allowed(row.licence, run.request.licence)
    return not row.state.startswith(_FAILED)


def _count_change(run: _Run, row: Row, before: Row | None) -> None:
    if before is None or before.state.startswith(_FAILED):
        run.changes["new"] += row.state == FETCHED
    elif row.state == "retracted":
        run.changes["newly_retracted"] += before.state != "retracted"
    else:
        run.changes["changed"] += 1


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


async def _files(run: _Run, metadata: Metadata, body: bytes, row: Row) -> Row:
    """Bring the article's folder to what its metadata says; the metadata itself is written last."""
    assert metadata.xml is not None
    folder = run.out / str(metadata.name)
    described = folder / f"{metadata.name}.json"
    if described.is_file() and described.read_bytes() != body:
        described.unlink()  # from here on the folder is unfinished
    folder.mkdir(exist_ok=True)
    sizes = {}
    try:
        sizes[metadata.xml.file] = await _item(run, metadata.name, metadata.xml, sources.MAX_XML_BYTES)
        article = jats.parse_article((folder / metadata.xml.file).read_bytes(), str(metadata.name))
    except Missing:
        return _without(row, "xml_missing")
    except jats.ArticleError as error:
        return _without(row, error.reason)
    images, missing = _images(article, metadata.media)
    found = await asyncio.gather(
        *(_item(run, metadata.name, i, sources.MAX_IMAGE_BYTES) for i in images), return_exceptions=True
    )
    for item, size in zip(images, found, strict=True):
        if isinstance(size, Missing):
            missing += 1
        elif isinstance(size, BaseException):
            raise size
        else:
            sizes[item.file] = size
    for path in folder.iterdir():  # of an earlier state of the article
        if path.name not in sizes and path != described:
            path.unlink()
    aside = run.out / _PARTIAL / described.name
    aside.write_bytes(body)
    aside.replace(described)
    return Row(row.article, FETCHED, row.etag, row.licence, len(sizes) + 1, sum(sizes.values()) + len(body), missing)


def _without(row: Row, reason: str) -> Row:
    return Row(row.article, reason, row.etag, row.licence)


def _images(article: jats.Article, media: tuple[Item, ...]) -> tuple[list[Item], int]:
    """Of an article's media the images that its figures name, and how many they name that are not there."""
    by_file = {item.file: item for item in media}
    names = sources.by_stem(by_file)
    hrefs = dict.fromkeys(href for figure in article.figures for href in figure.graphics)
    found = [sources.best_image(names, href) for href in hrefs]
    return [by_file[file] for file in dict.fromkeys(filter(None, found))], found.count(None)


async def _item(run: _Run, name: Name, item: Item, limit: int) -> int:
    """The size of a file that is on disk, whole and verified: it was there already or is fetched now."""
    path = run.out / str(name) / item.file
    if item.md5 and path.is_file() and not path.is_symlink():
        with path.open("rb") as data:
            if hashlib.file_digest(data, "md5").hexdigest() == item.md5:
                return path.stat().st_size
    return await run.client.save(f"{name}/{item.file}", path, item.md5, limit)


def _delete(run: _Run, name: Name) -> None:
    folder = run.out / str(name)
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)


def _drop_removed(run: _Run, inventory: Inventory) -> None:
    for pmcid in inventory.lacks(run.ledger.before):
        for row in run.ledger.before.pop(pmcid):
            run.changes["removed"] += row.state == FETCHED
            _delete(run, row.name)
