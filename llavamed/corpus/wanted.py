"""Which articles to fetch: a list of ids, a search, the bucket's inventory, or LLaVA-Med's own list of images.

Each gives `Wanted` in the order of the PMCIDs. From the inventory the versions and ETags are known, so an article that
has not changed costs no request; for the others the bucket is asked which versions there are.

The inventory of all of PubMed Central has eight million rows. It is kept as three numpy columns, 28 bytes a row (twice
that while it is sorted), and what is asked of it is worked out a row at a time.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import numpy as np

from llavamed.corpus import bucket, versions
from llavamed.corpus.bucket import BucketError
from llavamed.corpus.client import Client, Failed, Missing
from llavamed.errors import InputError
from llavamed.records import read_jsonl

EUTILS = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
_OPEN_ACCESS = "(open_access[Filter] OR author_manuscript[Filter])"
_PAGE = 10_000  # ids a request
_SECONDS_APART = {False: 1 / 3, True: 1 / 10}  # NCBI's limits, without and with an API key
_MAX_INVENTORY_BYTES = 4 * 2**30
_BATCH = 100_000  # rows of an inventory that are in memory as they were read


class Wanted(NamedTuple):
    """One article. `versions` holds (version, ETag of its metadata or ""); None: ask the bucket."""

    pmcid: int
    versions: tuple[tuple[int, str], ...] | None = None


@dataclass(frozen=True)
class LegacyRow:
    """One image of LLaVA-Med's list; pmcid 0 where the row cannot be read."""

    pair_id: str
    pmcid: int
    file: str


def from_file(path: Path) -> list[Wanted]:
    """One PMCID a line ("PMC123", "123", or "PMC123.2" for that version); blank lines and # are passed over."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a text file with one PMCID a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; give a text file with one PMCID a line") from None
    found: dict[int, set[int]] = {}
    for number, line in enumerate(lines, 1):
        if not (text := line.partition("#")[0].strip()):
            continue
        name = bucket.read_name(text)
        if name is None:
            raise InputError(f"{path}:{number}: {text[:60]!r} is no PMCID; write it as PMC7236913 or PMC7236913.2")
        found.setdefault(name[0], set()).update({name[1]} if name[1] else ())
    if not found:
        raise InputError(f"{path}: no PMCID in it; give one a line")
    return [Wanted(n, tuple((v, "") for v in sorted(versions)) or None) for n, versions in sorted(found.items())]


def read_legacy_list(path: Path) -> list[LegacyRow]:
    """The rows of `llava_med_image_urls.jsonl`."""
    rows = []
    for number, row in enumerate(read_jsonl(path), 1):
        pair = str(row.get("pair_id") or f"row {number}")
        try:
            rows.append(LegacyRow(pair, *bucket.read_legacy_row(row)))
        except BucketError:
            rows.append(LegacyRow(pair, 0, ""))
    if not any(row.pmcid for row in rows):
        raise InputError(
            f'{path}: no row of LLaVA-Med\'s list in it; a row is {{"pair_id", "pmc_tar_url", "image_file_path"}}'
        )
    return rows


async def from_search(client: Client, term: str) -> list[Wanted]:
    """The open-access articles that NCBI's ESearch finds. `client` is one for E-utilities.

    `NCBI_API_KEY` and `NCBI_EMAIL` are read from the environment; the limits of three requests a second without a
    key, ten with one, are kept.
    """
    key = os.environ.get("NCBI_API_KEY", "")
    fixed = {"db": "pmc", "term": f"({term}) AND {_OPEN_ACCESS}", "retmode": "json", "tool": "llavamed"}
    fixed |= {"api_key": key} if key else {}
    fixed |= {"email": os.environ["NCBI_EMAIL"]} if os.environ.get("NCBI_EMAIL") else {}
    ids: set[int] = set()
    count, start, last = 1, 0, 0.0
    while start < count:
        await asyncio.sleep(max(0.0, last + _SECONDS_APART[bool(key)] - time.monotonic()))
        last = time.monotonic()
        query = urlencode({**fixed, "retmax": _PAGE, "retstart": start})
        try:
            body, _ = await client.read("esearch.fcgi", f"?{query}")
            result = json.loads(body)["esearchresult"]
            page = [int(i) for i in result["idlist"]]
            count = int(result["count"])
        except (Missing, Failed) as error:
            raise InputError(f"{client.base_url}: ESearch does not answer ({error}); try again later") from None
        except (ValueError, KeyError, TypeError) as error:
            said = body[:200].decode("utf-8", "replace")
            raise InputError(f"ESearch: no result for {term!r} ({error!r}: {said}); check the query") from None
        ids.update(page)
        start += _PAGE
        if not page:
            break
    if not ids:
        raise InputError(f"ESearch: nothing found for {term!r}; try the query at www.ncbi.nlm.nih.gov/pmc first")
    if len(ids) < count:
        raise InputError(f"ESearch: gave {len(ids):,} of {count:,} articles; narrow the query, e.g. by year")
    return [Wanted(i) for i in sorted(ids)]


def sampled(pmcids: Iterable[int], size: int, seed: int) -> np.ndarray:
    """The positions, sorted, of the `size` PMCIDs whose hashes are the smallest.

    So the larger of two samples holds the smaller, and tomorrow's sample is today's but for the few that a new article
    comes before.
    """
    digests = (hashlib.sha256(f"{seed}:{pmcid}".encode()).digest()[:8] for pmcid in pmcids)
    keys = np.fromiter((int.from_bytes(digest) for digest in digests), np.uint64)
    return np.sort(np.argsort(keys, kind="stable")[:size])


def fingerprint(asked: Iterable[Wanted]) -> str:
    """sha256 over all that is asked for, 16 hex digits."""
    found = hashlib.sha256()
    for one in asked:
        found.update(f"{one.pmcid} {one.versions}\n".encode())
    return found.hexdigest()[:16]


class Inventory:
    """All article versions of the bucket on one day: iterate over `wanted`."""

    def __init__(self, rows: Iterable[tuple[bucket.Name, str]]) -> None:
        chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for batch in _batched(rows, _BATCH):
            ids = np.fromiter((name.pmcid for name, _ in batch), np.int64, len(batch))
            versions = np.fromiter((name.version for name, _ in batch), np.int32, len(batch))
            etags = np.frombuffer(b"".join(digest(etag) for _, etag in batch), dtype="V16")
            chunks.append((ids, versions, etags))
        if not chunks:
            raise InputError("the inventory is empty; give another with --inventory")
        columns = [np.concatenate(column) for column in zip(*chunks, strict=True)]
        order = np.lexsort((columns[1], columns[0]))
        self._ids, self._versions, self._etags = (column[order] for column in columns)
        self._starts = np.flatnonzero(np.r_[True, self._ids[1:] != self._ids[:-1]])
        self._ends = np.r_[self._starts[1:], len(self._ids)]

    def __len__(self) -> int:
        return len(self._starts)

    def wanted(self, every_version: bool, sample: int | None, seed: int) -> Selection:
        """Each article with its latest version or all; or of a sample."""
        if sample is None or sample >= len(self):
            return Selection(self, every_version, range(len(self)))
        return Selection(self, every_version, sampled((int(i) for i in self._ids[self._starts]), sample, seed))

    def article(self, at: int, every_version: bool) -> Wanted:
        end = int(self._ends[at])
        first = int(self._starts[at]) if every_version else end - 1
        versions = tuple((int(self._versions[i]), self._etags[i].tobytes().hex()) for i in range(first, end))
        return Wanted(int(self._ids[first]), versions)

    def __contains__(self, pmcid: int) -> bool:
        at = int(np.searchsorted(self._ids, pmcid))
        return at < len(self._ids) and int(self._ids[at]) == pmcid


@dataclass(frozen=True)
class Selection:
    """Some of an inventory's articles, sorted: iterated over as often as one likes, never all in memory."""

    inventory: Inventory
    every_version: bool
    positions: Sequence[int] | np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Wanted]:
        for at in self.positions:
            yield self.inventory.article(int(at), self.every_version)


def digest(etag: str) -> bytes:
    """16 bytes of an ETag: itself where it is an MD5."""
    try:
        found = bytes.fromhex(etag)
    except ValueError:
        found = b""
    return found if len(found) == 16 else hashlib.md5(etag.encode(), usedforsecurity=False).digest()


def _batched(rows: Iterable[tuple[bucket.Name, str]], size: int) -> Iterator[list[tuple[bucket.Name, str]]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


async def from_inventory(client: Client, which: str) -> tuple[Inventory, str]:
    """(the inventory, its date or name). `which` is "latest", a date as the bucket names it, or on disk a .csv.gz or a
    folder with all of an inventory's files."""
    if which != "latest" and (here := Path(which)).exists():
        paths = _inventory_files(here) if here.is_dir() else [here]
        return Inventory(itertools.chain.from_iterable(map(_rows, paths))), here.name
    try:
        if which == "latest":
            below = await versions.prefixes(client, bucket.INVENTORY)
            dates = sorted(prefix.removeprefix(bucket.INVENTORY).strip("/") for prefix in below)
            dates = [date for date in dates if date[:4].isdigit()]  # beside them lie data/ and hive/
            if not dates:
                raise InputError(
                    f"{client.base_url}: no inventory below {bucket.INVENTORY}; give its date, or a .csv.gz"
                )
            which = dates[-1]
        key = f"{bucket.INVENTORY}{which}/manifest.json"
        body, _ = await client.read(key)
        paths = []
        for number, (data, md5) in enumerate(bucket.read_inventory_manifest(body, key)):
            paths.append(client.partial / f"inventory-{number}.csv.gz")
            await client.save(data, paths[-1], md5, _MAX_INVENTORY_BYTES)
    except (Missing, Failed, BucketError) as error:
        raise InputError(f"no inventory {which!r} ({error}); give its date, or the path of a .csv.gz") from None
    inventory = Inventory(itertools.chain.from_iterable(map(_rows, paths)))
    for path in paths:
        path.unlink()
    return inventory, which


def _inventory_files(folder: Path) -> list[Path]:
    """The data files in a folder: those that its manifest.json names, or where it has none every .csv.gz."""
    paths = sorted(folder.glob("*.csv.gz"))
    if (listed := folder / "manifest.json").is_file():
        try:
            named = bucket.read_inventory_manifest(listed.read_bytes(), str(listed))
        except BucketError as error:
            raise InputError(f"{error}; fetch it again") from None
        paths = [folder / key.rpartition("/")[2] for key, _ in named]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: not there, but {folder / 'manifest.json'} names it; fetch it too")
    if not paths:
        raise InputError(f"{folder}: no .csv.gz in it; give the data files of one inventory")
    return paths


def _rows(path: Path) -> Iterator[tuple[bucket.Name, str]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
            yield from bucket.read_inventory(lines, path.name)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name}: not a whole inventory ({error}); fetch it again") from None
