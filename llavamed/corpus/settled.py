"""Which articles of a mirror are whole: what `corpus fetch` says of a folder, for who reads it.

A fetch that was stopped, or that failed on an article, leaves folders in which files are missing: an XML without its
images, or without the metadata that would say "retracted". The mirror's own account tells which: `articles.jsonl` of
the runs that ended, `journal.jsonl` of the one that was stopped. An article's metadata is written last, so a folder
without it is being written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llavamed import manifest
from llavamed.errors import InputError

_STAGE = "fetch"


def whole(folder: Path) -> set[str] | None:
    """The names ("PMC7.1") of the articles that were fetched whole, or None for a folder that is no mirror. Raises
    InputError for a damaged account."""
    body = manifest.read_marker(folder / manifest.UNFINISHED) or _manifest(folder)
    if body is None or body["stage"] != _STAGE:
        return None
    from llavamed.corpus.ledger import ARTICLES, FETCHED, JOURNAL  # brings the client with it

    found: set[str] = set()
    for row in _rows(folder / ARTICLES, folder / JOURNAL):
        (found.add if row.get("state") == FETCHED else found.discard)(str(row.get("article", "")))
    return found


def _manifest(folder: Path) -> dict[str, Any] | None:
    """What is no manifest of ours says nothing."""
    found = manifest.read_marker(folder / manifest.NAME)
    return found if found is not None and isinstance(found["stage"], str) else None


def _rows(articles: Path, journal: Path) -> Iterator[dict[str, Any]]:
    """A row for each article version, then what the unfinished run says of some, which is the last word."""
    yield from _lines(articles)
    for line in _lines(journal):
        yield from line.get("rows", ())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """A line that a killed run cut short is no line."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            try:
                yield dict(json.loads(line))
            except (ValueError, TypeError):
                raise InputError(
                    f"{path}: damaged; delete it, and run the same `llavamed corpus fetch` again"
                ) from None
