"""What is known of every article of a mirror: one JSON object a line, and a journal while a run is on.

    articles.jsonl     a row for each article version, sorted; written whole at the end of a run
    journal.jsonl      a line for each article as it is settled; only while a run is unfinished

A killed run leaves its journal. The next run with the same settings skips what it settles; a last line that was cut
short is dropped. Without a journal nothing is lost but the skipping: files are verified by their MD5 anyway.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Self

from llavamed.corpus import bucket
from llavamed.errors import InputError
from llavamed.manifest import write_atomic

ARTICLES = "articles.jsonl"
JOURNAL = "journal.jsonl"
FETCHED = "fetched"


@dataclass(frozen=True)
class Row:
    """One article version. `state` is "fetched" or the reason why not; `article` lacks the version if there is none."""

    article: str
    state: str
    etag: str = ""
    licence: str = ""
    files: int = 0
    bytes: int = 0
    images_missing: int = 0  # images that a figure names and the bucket does not have

    @property
    def name(self) -> bucket.Name:
        pmcid, version = bucket.read_name(self.article) or (0, None)
        return bucket.Name(pmcid, version or 0)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in row.items() if key in known})


class Ledger:
    """A context manager. `before` has the rows of earlier runs by PMCID, `now` those settled by this one."""

    def __init__(self, folder: Path, settings: str) -> None:
        self._articles, self._journal = folder / ARTICLES, folder / JOURNAL
        self._settings = settings  # a fingerprint
        self.before: dict[int, list[Row]] = defaultdict(list)
        self.now: dict[int, list[Row]] = {}
        for row in self._lines(self._articles):
            if not isinstance(row, dict):
                raise InputError(f"{self._articles}: damaged; delete it, and the files are verified anew")
            self.before[(found := Row.from_json(row)).name.pmcid].append(found)
        self._resume()

    def _resume(self) -> None:
        lines = list(self._lines(self._journal, torn=True))
        self.resumed = bool(lines) and lines[0] == {"settings": self._settings}
        for line in lines[1:]:
            rows = [Row.from_json(row) for row in line["rows"]]
            if self.resumed:
                self.now[line["pmcid"]] = rows
            else:  # settled under other settings: known, but to be looked at again
                self.before[line["pmcid"]] = rows

    @staticmethod
    def _lines(path: Path, torn: bool = False) -> Iterator[Any]:
        if not path.is_file():
            return
        with path.open("rb") as lines:
            for line in lines:
                if torn and not line.endswith(b"\n"):  # the run was killed while it wrote this
                    return
                try:
                    yield json.loads(line)
                except ValueError:
                    raise InputError(f"{path}: damaged; delete it, and the files are verified anew") from None

    def __enter__(self) -> Self:
        body = "".join(_line({"pmcid": pmcid, "rows": list(map(asdict, rows))}) for pmcid, rows in self.now.items())
        write_atomic(self._journal, _line({"settings": self._settings}) + body)
        self._out: IO[bytes] = self._journal.open("ab", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()

    def settle(self, pmcid: int, rows: list[Row]) -> None:
        self.now[pmcid] = rows
        self._out.write(_line({"pmcid": pmcid, "rows": list(map(asdict, rows))}).encode())

    def finish(self) -> list[Row]:
        """Write `articles.jsonl`, what this run did not ask for included, and drop the journal."""
        rows = sorted(
            (row for found in {**self.before, **self.now}.values() for row in found), key=lambda row: row.name
        )
        write_atomic(self._articles, "".join(_line(asdict(row)) for row in rows))
        self._journal.unlink(missing_ok=True)
        return rows


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
