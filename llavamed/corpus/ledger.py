"""What is known of every article of a mirror: one JSON object a line, and a journal while a run is on.

    articles.jsonl     a row for each article version, sorted; written whole at the end of a run
    journal.jsonl      a line for each article as it is settled, in any order; only while a run is unfinished

A killed run leaves its journal. The next run with the same settings skips what it settles; a last line that was cut
short is dropped. What failed is in it too, but is not skipped. Without a journal nothing is lost but the skipping:
files are verified by their MD5 anyway.

There may be eight million articles, so neither file is held in memory. Articles are asked for in the order of their
PMCIDs, and `articles.jsonl` is in that order: both are read side by side (`join`), and so they are at the end
(`groups`), when the journal's lines are looked up by where they begin: 16 bytes an article.
"""

from __future__ import annotations

import itertools
import json
import os
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from llavamed.corpus import bucket
from llavamed.errors import InputError

if TYPE_CHECKING:
    from llavamed.corpus.wanted import Wanted  # brings the client with it

STAGE = "fetch"  # of the manifest beside it
ARTICLES = "articles.jsonl"
JOURNAL = "journal.jsonl"
FETCHED = "fetched"
FAILED = "failed_"  # begins the states that another run may mend


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
    images_failed: int = 0  # that never came whole; another run tries again
    images_too_large: int = 0

    @property
    def name(self) -> bucket.Name:
        pmcid, version = bucket.read_name(self.article) or (0, None)
        return bucket.Name(pmcid, version or 0)

    @property
    def failed(self) -> bool:
        return self.state.startswith(FAILED)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in row.items() if key in known})


class Group(NamedTuple):
    """An article: its rows before this run, and after it; None if this run has not come to it."""

    pmcid: int
    before: list[Row]
    now: list[Row] | None

    @property
    def left(self) -> list[Row]:
        """The versions in the mirror that this run neither confirmed nor replaced by a newer one."""
        if self.now is None:
            return self.before
        names = {row.name for row in self.now}
        others = [row for row in self.before if row.name not in names and row.name.version]
        if any(row.failed for row in self.now):  # what failed replaces nothing
            return others
        newest = max((row.name.version for row in self.now), default=0)
        return [row for row in others if row.state == FETCHED and row.name.version > newest]


class Ledger:
    """A context manager over a mirror's folder. `settings` is a fingerprint: another's journal is not gone on with."""

    def __init__(self, folder: Path, settings: str) -> None:
        self._articles, self._journal = folder / ARTICLES, folder / JOURNAL
        self._settings = settings
        self._pmcids, self._starts = array("q"), array("q")  # of the journal's lines
        self._settled = array("q")  # PMCIDs that an interrupted run settled, sorted
        first = self._read_journal()
        if first != {"settings": settings} and self._journal.is_file():
            self.finish()  # settled under other settings: known, but to be looked at again
            self._pmcids, self._starts, self._settled = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        """How many articles an interrupted run settled."""
        return len(self._settled)

    def __contains__(self, pmcid: int) -> bool:
        at = bisect_left(self._settled, pmcid)
        return at < len(self._settled) and self._settled[at] == pmcid

    def __enter__(self) -> Self:
        self._out: IO[bytes] = self._journal.open("ab", buffering=0)
        self._end = os.fstat(self._out.fileno()).st_size
        if not self._end:
            self._append({"settings": self._settings})
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()

    def join(self, asked: Iterable[Wanted]) -> Iterator[tuple[Wanted, list[Row]]]:
        """Each of `asked` (sorted) that is not settled yet, with its rows of earlier runs."""
        known = self._before()
        pmcid, rows = next(known, (-1, []))
        for one in asked:
            while -1 < pmcid < one.pmcid:
                pmcid, rows = next(known, (-1, []))
            if one.pmcid not in self:
                yield one, rows if pmcid == one.pmcid else []

    def settle(self, pmcid: int, rows: list[Row], again: bool = False) -> None:
        """Note an article's rows. `again`: a run that goes on after this one asks for it anew."""
        self._note(pmcid, self._end)
        line = {"pmcid": pmcid, "rows": list(map(asdict, rows)), **({"again": True} if again else {})}
        self._append(line)

    def _append(self, value: dict[str, Any]) -> None:
        line = _line(value)
        self._end += len(line)
        while line:  # a disk that is nearly full takes a part, and says why at the rest
            line = line[self._out.write(line) :]

    def groups(self) -> Iterator[Group]:
        """All articles known, sorted."""
        now, before = self._now(), self._before()
        new, old = next(now, None), next(before, None)
        while new or old:
            pmcid = min(one[0] for one in (new, old) if one)
            old_rows = old[1] if old and old[0] == pmcid else []
            new_rows = new[1] if new and new[0] == pmcid else None
            yield Group(pmcid, old_rows, new_rows)
            old = next(before, None) if old and old[0] == pmcid else old
            new = next(now, None) if new and new[0] == pmcid else new

    def finish(self, gone: Collection[bucket.Name] = ()) -> None:
        """Write `articles.jsonl`, what this run did not ask for included, without what is `gone`; drop the journal."""
        aside = self._articles.with_name(f"{ARTICLES}.tmp")
        with aside.open("wb") as out:
            for group in self.groups():
                left = [row for row in group.left if row.name not in gone]
                now = [row for row in group.now or () if row.name.version or not left]
                for row in sorted([*now, *left], key=lambda row: row.name):
                    out.write(_line(asdict(row)))
            out.flush()
            os.fsync(out.fileno())
        aside.replace(self._articles)
        self._journal.unlink(missing_ok=True)

    def rows(self) -> Iterator[Row]:
        """The rows of `articles.jsonl`, sorted."""
        return read_articles(self._articles)

    def _before(self) -> Iterator[tuple[int, list[Row]]]:
        for pmcid, rows in itertools.groupby(self.rows(), key=lambda row: row.name.pmcid):
            yield pmcid, list(rows)

    def _now(self) -> Iterator[tuple[int, list[Row]]]:
        if not self._pmcids:
            return
        pmcids = np.array(self._pmcids)
        order = np.argsort(pmcids, kind="stable")
        last = np.r_[pmcids[order][1:] != pmcids[order][:-1], True]  # the last word on an article holds
        with self._journal.open("rb") as lines:
            for at in order[last]:
                lines.seek(self._starts[at])
                line = _parsed(lines.readline(), self._journal)
                yield line["pmcid"], [Row.from_json(row) for row in line["rows"]]

    def _note(self, pmcid: int, start: int) -> None:
        self._pmcids.append(pmcid)
        self._starts.append(start)

    def _read_journal(self) -> Any:
        """Index the journal, cut off what was written in part, and return its first line."""
        if not self._journal.is_file():
            return None
        first, end = None, 0
        for start, stop, body in read_journal(self._journal):
            if start:
                self._note(body["pmcid"], start)
                if "again" not in body:
                    self._settled.append(body["pmcid"])
            first, end = first or body, stop
        os.truncate(self._journal, end)
        self._settled = array("q", np.unique(np.array(self._settled, np.int64)).tobytes())
        return first


def read_articles(path: Path) -> Iterator[Row]:
    """The rows of an `articles.jsonl`; none if it is absent. Raises InputError for one that is damaged or unsorted."""
    if not path.is_file():
        return
    last = bucket.Name(-1, 0)
    with path.open("rb") as lines:
        for line in lines:
            row = Row.from_json(_parsed(line, path))
            if row.name < last:
                raise _damaged(path)
            last = row.name
            yield row


def read_journal(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, content) of each line of a journal; none if it is absent. A last line that a killed run wrote in
    part is no line. Raises InputError for one that is damaged."""
    if not path.is_file():
        return
    start = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            yield start, start + len(line), _parsed(line, path)
            start += len(line)


def _parsed(line: bytes, path: Path) -> dict[str, Any]:
    try:
        body = json.loads(line)
    except ValueError:
        raise _damaged(path) from None
    if not isinstance(body, dict):
        raise _damaged(path)
    return body


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged; delete it, and the files are verified anew")


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
