"""A synthetic bucket of PubMed Central's layout behind a server that fails as servers do. For tests and `fetch.py`.

    python benchmarks/faulty_bucket.py --articles 20000 --port 8099

Every object is worked out from its key, so that nothing lies on disk and `expected` knows the tree that a fetch must
leave. Of the articles some are retracted, not open, of another licence or have two versions; each has a supplement that
no figure names. Of the answers some are dropped, 503, cut short or have a bit flipped.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

FIRST = 7_000_000  # the PMCID of the first article
DATE = "2026-01-18T01-00Z"
INVENTORY = "inventory-reports/pmc-oa-opendata/metadata/"
_CC_BY = "https://creativecommons.org/licenses/by/4.0/"


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@dataclass
class Bucket:
    """`removed`, `retracted` and `revised` change the state of single articles, as time does."""

    articles: int
    removed: set[int] = field(default_factory=set)
    retracted: set[int] = field(default_factory=set)
    revised: dict[int, int] = field(default_factory=dict)  # PMCID -> how often
    extra: dict[str, bytes] = field(default_factory=dict)  # other objects, or other contents

    def ids(self) -> range:
        return range(FIRST, FIRST + self.articles)

    def versions(self, pmcid: int) -> list[int]:
        if pmcid not in self.ids() or pmcid in self.removed:
            return []
        return [1, 2] if (pmcid - FIRST) % 50 == 3 else [1]

    def licence(self, pmcid: int) -> str:
        return "CC BY-NC" if (pmcid - FIRST) % 30 == 7 else "CC BY"

    def is_retracted(self, pmcid: int) -> bool:
        return (pmcid - FIRST) % 40 == 11 or pmcid in self.retracted

    def is_open(self, pmcid: int) -> bool:
        return (pmcid - FIRST) % 60 != 13

    def figures(self, pmcid: int) -> int:
        return 1 + pmcid % 2

    def files(self, pmcid: int, version: int) -> dict[str, bytes]:
        """All files of an article version but its metadata."""
        name = f"PMC{pmcid}.{version}"
        body = "".join(
            f"<p>Seen in <xref ref-type='fig' rid='f{n}'>Figure {n}</xref>.</p><fig id='f{n}'><label>Figure {n}</label>"
            f"<caption><p>CT of patient {pmcid}, {n}.</p></caption><graphic xlink:href='{name}-g{n}'/></fig>"
            for n in range(1, self.figures(pmcid) + 1)
        )
        xml = (
            f"<article xmlns:xlink='http://www.w3.org/1999/xlink'><front><article-meta><article-id pub-id-type='pmc'>"
            f"{pmcid}</article-id><permissions><license xlink:href='{_CC_BY}'/></permissions></article-meta></front>"
            f"<body>{body}<p>Revision {self.revised.get(pmcid, 0)}.</p></body></article>"
        )
        media = {f"{name}-g{n}.jpg": f"{name}-g{n}" for n in range(1, self.figures(pmcid) + 1)}
        media |= {f"{name}-s1.xlsx": f"{name}-s1", f"{name}-g1.gif": f"{name}-thumbnail"}
        sizes = {file: 400 + pmcid % 5000 for file in media}
        noise = {file: random.Random(seed).randbytes(sizes[file]) for file, seed in media.items()}
        return {f"{name}.xml": xml.encode(), **noise}

    def metadata(self, pmcid: int, version: int) -> bytes:
        name = f"PMC{pmcid}.{version}"
        urls = {f: f"s3://pmc-oa-opendata/{name}/{f}?md5={md5(d)}" for f, d in self.files(pmcid, version).items()}
        row = {
            "pmcid": f"PMC{pmcid}",
            "version": version,
            "license_code": self.licence(pmcid),
            "is_pmc_openaccess": self.is_open(pmcid),
            "is_manuscript": False,
            "is_historical_ocr": False,
            "is_retracted": self.is_retracted(pmcid),
            "xml_url": urls.pop(f"{name}.xml"),
            "media_urls": list(urls.values()),
        }
        return json.dumps(row).encode()

    def get(self, key: str) -> bytes | None:
        """The bytes of an object, or None."""
        if key in self.extra:
            return self.extra[key]
        folder, _, file = key.rpartition("/")
        if key.startswith(INVENTORY):
            return self._inventory(key.removeprefix(INVENTORY))
        name = file.removesuffix(".json") if folder == "metadata" else folder
        pmcid, _, version = name.removeprefix("PMC").partition(".")
        if not (pmcid.isdigit() and version.isdigit() and int(version) in self.versions(int(pmcid))):
            return None
        if file == f"{name}.json":
            return self.metadata(int(pmcid), int(version))
        return self.files(int(pmcid), int(version)).get(file)

    def _inventory(self, key: str) -> bytes | None:
        keys = (f"metadata/PMC{i}.{v}.json" for i in self.ids() for v in self.versions(i))
        if key == "data/1.csv.gz":
            rows = (f'"pmc-oa-opendata","{k}","2026-01-17T00:00:00.000Z","{md5(self.get(k) or b"")}"\n' for k in keys)
            return gzip.compress("".join(rows).encode(), 1, mtime=0)
        if key == f"{DATE}/manifest.json":
            data = f"{INVENTORY}data/1.csv.gz"
            return json.dumps({"files": [{"key": data, "MD5checksum": md5(self.get(data) or b"")}]}).encode()
        return None

    def listing(self, query: dict[str, list[str]]) -> bytes:
        prefix, token = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        if prefix == INVENTORY:
            found = [f"{INVENTORY}{part}/" for part in ("2026-01-11T01-00Z", DATE, "data", "hive")]
        else:
            pmcid = prefix.removeprefix("PMC").rstrip(".")
            found = [f"PMC{pmcid}.{v}/" for v in self.versions(int(pmcid))] if pmcid.isdigit() else []
        page, more = (found[:1], len(found) > 1) if not token else (found[int(token) :], False)  # to test the paging
        body = "".join(f"<CommonPrefixes><Prefix>{p}</Prefix></CommonPrefixes>" for p in page)
        next_page = "<NextContinuationToken>1</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{next_page}{body}</ListBucketResult>"
        ).encode()

    def search(self, query: dict[str, list[str]]) -> bytes:
        """An answer of ESearch: the ids whose last digits are those in the term's first word."""
        ids = [i for i in self.ids() if str(i).endswith(query["term"][0].strip("(").split()[0].rstrip(")"))]
        start, size = int(query.get("retstart", ["0"])[0]), int(query.get("retmax", ["20"])[0])
        result = {"count": str(len(ids)), "idlist": list(map(str, ids[start : start + size]))}
        return json.dumps({"esearchresult": result}).encode()

    def wanted(self, policy: frozenset[str] = frozenset({"CC BY"})) -> list[int]:
        """The articles that a fetch of all must keep."""
        return [
            i
            for i in self.ids()
            if self.versions(i) and self.is_open(i) and not self.is_retracted(i) and self.licence(i) in policy
        ]

    def expected(self, policy: frozenset[str] = frozenset({"CC BY"})) -> dict[str, str]:
        """{path: MD5} of the tree that a fetch of all must leave, latest versions only."""
        tree = {}
        for pmcid in self.wanted(policy):
            version = self.versions(pmcid)[-1]
            name = f"PMC{pmcid}.{version}"
            for file, data in self.files(pmcid, version).items():
                if not file.endswith((".xlsx", ".gif")):
                    tree[f"{name}/{file}"] = md5(data)
            tree[f"{name}/{name}.json"] = md5(self.metadata(pmcid, version))
        return tree


@dataclass
class Server:
    """Serves a bucket over HTTP/1.1 with faults; a context manager. `asked` counts the paths that were asked for.

    `instead` may answer in the bucket's place, given key and query: all the bytes that go over the line, or None.
    """

    bucket: Bucket
    faults: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # dropped, 503, cut short, corrupted
    seed: int = 0
    can_list: bool = True
    instead: Callable[[str, str], bytes | None] = lambda key, query: None
    port: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)  # fault -> how often

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self._random, started = random.Random(self.seed), threading.Event()
        self._loop = asyncio.new_event_loop()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._server = self._loop.run_until_complete(asyncio.start_server(self.serve, "127.0.0.1", self.port))
            self.port = self._server.sockets[0].getsockname()[1]
            started.set()
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                while (await reader.readline()).strip():
                    pass
                if not await self._answer(line.split()[1].decode(), writer):
                    break
        except (ConnectionError, IndexError):
            pass
        finally:
            writer.close()

    async def _answer(self, target: str, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open."""
        parts = urlsplit(target)
        key, query = unquote(parts.path).lstrip("/"), parse_qs(parts.query)
        self.asked[key or parts.query] += 1
        if (whole := self.instead(key, parts.query)) is not None:
            writer.write(whole)
            await writer.drain()
            return False
        if key == "esearch.fcgi":
            body: bytes | None = self.bucket.search(query)
        elif "list-type" in query:
            body = self.bucket.listing(query) if self.can_list else b"<html>a directory</html>"
        else:
            body = self.bucket.get(key)
        drawn, (drop, busy, cut, corrupt) = self._random.random(), self.faults
        etag = "" if body is None or not key else f'ETag: "{md5(body)}"\r\n'
        if drawn < drop:
            self.done["dropped"] += 1
            return False
        if drawn < drop + busy:
            self.done["503"] += 1
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 4\r\n\r\nbusy")
            await writer.drain()
            return True
        if body is None:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNoSuchKey")
            await writer.drain()
            return True
        length = len(body)
        if drawn < drop + busy + cut:
            self.done["cut short"] += 1
            half = self._random.random() < 0.5  # half of them also lie about the length, as a proxy may
            body = body[: int(length * self._random.random())]
            length = len(body) if half and etag else length
        elif drawn < drop + busy + cut + corrupt and etag:
            self.done["corrupted"] += 1
            changed = bytearray(body)
            changed[self._random.randrange(length)] ^= 1 << self._random.randrange(8)
            body = bytes(changed)
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{etag}\r\n".encode() + body)
        await writer.drain()
        return length == len(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--articles", type=int, default=20_000)
    parser.add_argument("--port", type=int, default=8099)
    parser.add_argument("--faults", type=float, nargs=4, default=(0.02, 0.05, 0.01, 0.01))
    args = parser.parse_args()

    async def run() -> None:
        server = Server(Bucket(args.articles), tuple(args.faults), port=args.port)
        server._random = random.Random(0)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", args.port)
        print(server.url, flush=True)
        async with listening:
            await listening.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
