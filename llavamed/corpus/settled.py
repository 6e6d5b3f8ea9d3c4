"""Which articles of a mirror are whole: what `corpus fetch` says of a folder, for who reads it.

A fetch that was stopped, or that failed on an article, leaves folders in which files are missing: an XML without its
images, or without the metadata that would say "retracted". The mirror's own account tells which: `articles.jsonl` of
the runs that ended, `journal.jsonl` of the one that was stopped. An article's metadata is written last, so a folder
without it is being written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llavamed import manifest
from llavamed.corpus.ledger import ARTICLES, FETCHED, JOURNAL, STAGE, Row, read_articles, read_journal


def whole(folder: Path) -> set[str] | None:
    """The names ("PMC7.1") of the articles that were fetched whole, or None for a folder that is no mirror. Raises
    InputError for a damaged account."""
    body = manifest.read_marker(folder / manifest.UNFINISHED) or _manifest(folder)
    if body is None or body["stage"] != STAGE:
        return None
    found = {row.article for row in read_articles(folder / ARTICLES) if row.state == FETCHED}
    for _, _, line in read_journal(folder / JOURNAL):  # of the unfinished run: the last word
        for row in map(Row.from_json, line.get("rows", ())):
            (found.add if row.state == FETCHED else found.discard)(row.article)
    return found


def _manifest(folder: Path) -> dict[str, Any] | None:
    """What is no manifest of ours says nothing."""
    found = manifest.read_marker(folder / manifest.NAME)
    return found if found is not None and isinstance(found["stage"], str) else None
