"""The layout of PubMed Central's public bucket, as it is since August 2026: names, keys, and what its files say.

    PMC10009416.1/PMC10009416.1.xml, .json, media      an article version: PMCID, a dot, the version
    metadata/PMC10009416.1.json                        the same JSON; its ETag changes with any file of the article
    inventory-reports/pmc-oa-opendata/metadata/<date>/manifest.json -> .files[].key -> data/<uuid>.csv.gz

All here is pure: bytes of the bucket in, names and records out. Nothing in them is trusted. A key is only
used if it lies directly in its article's folder and is a plain file name: what it says becomes a path on this machine.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from llavamed.corpus.safe_xml import ArticleError, parse
from llavamed.errors import InputError

BASE_URL = "https://pmc-oa-opendata.s3.amazonaws.com"
INVENTORY = "inventory-reports/pmc-oa-opendata/metadata/"

_NAME = re.compile(r"(?:PMC)?(\d{1,12})(?:\.(\d{1,6}))?", re.IGNORECASE)
_METADATA_KEY = re.compile(r"metadata/PMC(\d{1,12})\.(\d{1,6})\.json")
_FILE_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}")
_MD5 = re.compile(r"[0-9a-f]{32}")


class BucketError(InputError):
    """A file of the bucket that does not say what it should. `reason` is a short code to count by."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Name(NamedTuple):
    """An article version; sorted by number, not by letters."""

    pmcid: int
    version: int

    def __str__(self) -> str:
        return f"PMC{self.pmcid}.{self.version}"

    @property
    def metadata_key(self) -> str:
        return f"metadata/{self}.json"


@dataclass(frozen=True)
class Item:
    """One object: its file name in the article's folder and the MD5 of its bytes ("" if the bucket states none)."""

    file: str
    md5: str


@dataclass(frozen=True)
class Metadata:
    name: Name
    licence_code: str
    is_open: bool
    is_manuscript: bool
    is_ocr: bool
    is_retracted: bool
    xml: Item | None
    media: tuple[Item, ...]
    unsafe: int  # media whose names are not used


def read_name(text: str) -> tuple[int, int | None] | None:
    """ "PMC123", "123" or "PMC123.2" -> (123, version or None); None for anything else."""
    match = _NAME.fullmatch(text.strip())
    return (int(match[1]), int(match[2]) if match[2] else None) if match else None


def read_metadata(body: bytes, name: Name) -> Metadata:
    """Raises BucketError for what is not the metadata of `name`."""
    try:
        row = json.loads(body)
    except ValueError as error:
        raise BucketError(f"{name.metadata_key}: not JSON ({error})", "metadata_damaged") from None
    if not isinstance(row, dict) or read_name(f"{row.get('pmcid', '')}.{row.get('version', '')}") != tuple(name):
        raise BucketError(f"{name.metadata_key}: not the metadata of {name}", "metadata_damaged")
    media_urls = row.get("media_urls")
    urls = [url for url in media_urls if isinstance(url, str)] if isinstance(media_urls, list) else []
    media = [_item(url, name) for url in urls]
    xml = _item(row["xml_url"], name) if isinstance(row.get("xml_url"), str) else None
    return Metadata(
        name=name,
        licence_code=str(row.get("license_code") or ""),
        is_open=row.get("is_pmc_openaccess") is True,
        is_manuscript=row.get("is_manuscript") is True,
        is_ocr=row.get("is_historical_ocr") is True,
        is_retracted=row.get("is_retracted") is True,
        xml=xml if xml and xml.file == f"{name}.xml" else None,
        media=tuple(item for item in media if item is not None),
        unsafe=sum(item is None for item in media),
    )


def _item(url: str, name: Name) -> Item | None:
    """`s3://bucket/PMC1.1/file.jpg?md5=...` -> Item; None for a key that is no plain file in the article's folder."""
    # a file name may hold # or ?, so only the last ?md5= is taken off
    plain, found, md5 = url.rpartition("?md5=")
    plain = plain if found else url
    folder, _, file = plain.rpartition("/")
    if not folder.endswith(f"/{name}") or not _FILE_NAME.fullmatch(file) or file[0] == "." or file != file.strip():
        return None
    return Item(file, md5 if found and _MD5.fullmatch(md5) else "")


def read_listing(body: bytes, where: str) -> tuple[list[str], str]:
    """(common prefixes, token of the next page or "") of an S3 listing. Raises BucketError for anything else."""
    try:
        root = parse(body, where)
    except ArticleError as error:
        raise BucketError(str(error), "no_listing") from None
    if not root.tag.endswith("ListBucketResult"):
        raise BucketError(f"{where}: a page, but no listing of a bucket", "no_listing")
    prefixes = [e.text or "" for e in root.findall("{*}CommonPrefixes/{*}Prefix")]
    truncated = (root.findtext("{*}IsTruncated") or "").strip() == "true"
    return prefixes, (root.findtext("{*}NextContinuationToken") or "") if truncated else ""


def versions(prefixes: Iterable[str], pmcid: int) -> list[int]:
    """Of the prefixes listed for `PMC<id>.` the versions, sorted."""
    found = (read_name(prefix.rstrip("/")) for prefix in prefixes)
    return sorted(version for number, version in filter(None, found) if number == pmcid and version is not None)


def read_inventory(lines: Iterable[str], where: str) -> Iterator[tuple[Name, str]]:
    """(name, ETag of its metadata) of each row of an inventory: bucket, key, last modified, etag; no header."""
    for number, row in enumerate(csv.reader(lines), 1):
        match = _METADATA_KEY.fullmatch(row[1]) if len(row) >= 4 else None
        if match is None:
            if len(row) >= 4 and row[1].startswith("metadata/"):
                continue  # what else may lie there some day
            raise BucketError(f"{where}:{number}: no row of an inventory ({row})", "inventory_damaged")
        yield Name(int(match[1]), int(match[2])), row[3].strip('"')


def read_inventory_manifest(body: bytes, key: str) -> list[tuple[str, str]]:
    """(key, MD5) of the data files that an inventory's manifest.json names."""
    try:
        files = json.loads(body)["files"]
        found = [(str(f["key"]), str(f.get("MD5checksum") or "")) for f in files]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BucketError(f"{key}: no manifest of an inventory ({error!r})", "inventory_damaged") from None
    return [(k if k.startswith(INVENTORY) else f"{INVENTORY}{k}", md5) for k, md5 in found]


def read_legacy_row(row: dict[str, Any]) -> tuple[int, str]:
    """A row of LLaVA-Med's own list -> (PMCID, file name): its archive is gone, its article is in the bucket.

    `{"pair_id", "pmc_tar_url": ".../PMC7236913.tar.gz", "image_file_path": "PMC7236913/nihms-1587931-f0001.jpg"}`
    """
    folder, _, file = str(row.get("image_file_path", "")).rpartition("/")
    found = read_name(folder.rpartition("/")[2])
    if found is None:
        archive = urlsplit(str(row.get("pmc_tar_url", ""))).path.rpartition("/")[2]
        found = read_name(archive.removesuffix(".gz").removesuffix(".tar"))
    if found is None or not _FILE_NAME.fullmatch(file):
        raise BucketError(f"no article and image in {json.dumps(row)[:200]}", "row_damaged")
    return found[0], file
