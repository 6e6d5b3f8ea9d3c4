"""Look into a corpus: its pairs one by one, as `llavamed corpus show` prints them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from llavamed.corpus.build import WITHOUT_IMAGE
from llavamed.corpus.store import Corpus
from llavamed.errors import InputError
from llavamed.records import Pair, read_jsonl


def show(corpus: Path, key: str | None = None, limit: int = 10) -> list[Pair]:
    """The pair with this key, or the first `limit` pairs. After the pairs with an image come those whose
    image was missing (their `file` is empty). Raises InputError for a key that is not there."""
    if key is None:
        return list(islice(_all(corpus), limit))
    keys = []
    for pair in _all(corpus):
        if pair.key == key:
            return [pair]
        keys.append(pair.key)
    close = difflib.get_close_matches(key, keys, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "leave the key out to list the first ones"
    raise InputError(f"{corpus}: no pair with the key {key!r}; {hint}")


def _all(corpus: Path) -> Iterator[Pair]:
    yield from Corpus(corpus).pairs()
    if (corpus / WITHOUT_IMAGE).is_file():
        for row in read_jsonl(corpus / WITHOUT_IMAGE):
            yield Pair.from_json(row)
