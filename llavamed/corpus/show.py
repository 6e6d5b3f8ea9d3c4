"""Look into a corpus: its pairs, or all that was counted, as rows to print for `corpus show` and `corpus stats`."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from llavamed.corpus.output import Output
from llavamed.corpus.store import WITHOUT_IMAGE, Corpus, read_manifest
from llavamed.errors import InputError
from llavamed.records import Pair, parse_jsonl

_NEAR = 200  # keys on either side of a wrong one that may have been meant


def show(corpus: Path | str, key: str | None = None, limit: int = 10) -> list[dict[str, Any]]:
    """The pair with this key, or the first `limit` pairs, as one row of printable fields each.

    After the pairs with an image come those whose image was missing. Raises InputError for a key that is not there.
    """
    if key is None:
        return [_row(pair) for pair in islice(_all(corpus), limit)]
    images = Corpus(corpus)
    if key in images:
        return [_row(images.pair(key))]
    keys = images.keys()
    for pair in _without_image(corpus):
        if pair.key == key:
            return [_row(pair)]
        keys.append(pair.key)
    close = difflib.get_close_matches(key, _beside(key, sorted(keys)), n=1)
    hint = f"did you mean {close[0]!r}?" if close else "leave the key out to list the first ones"
    raise InputError(f"{corpus}: no pair with the key {key!r}; {hint}")


def _beside(key: str, keys: list[str]) -> list[str]:
    """The keys around the place where it would stand: to compare it with each of a million takes minutes."""
    at = bisect_left(keys, key)
    return keys[max(0, at - _NEAR) : at + _NEAR]


def stats(corpus: Path | str, readable: bool = False) -> list[tuple[str, str, int | str]]:
    """(table, row, count) of everything that is counted in a corpus's manifest; counts with commas if `readable`."""
    body = read_manifest(Output(str(corpus)))
    extra = body["extra"]
    tables = {
        "read and kept": body["counts"],
        "left out": body["funnel"],
        "compound figures": extra["compound"],
        "domains": extra["domains"],
        "licences": extra["licences"],
        "words of the caption": extra["caption_words"],
        "words of the mentions": extra["mention_words"],
    }
    rows = ((table, what, count) for table, counted in tables.items() for what, count in counted.items())
    return [(table, what, f"{count:,}" if readable else count) for table, what, count in rows]


def _all(corpus: Path | str) -> Iterator[Pair]:
    yield from Corpus(corpus).pairs()
    yield from _without_image(corpus)


def _without_image(corpus: Path | str) -> Iterator[Pair]:
    out = Output(str(corpus))
    if out.length(WITHOUT_IMAGE):
        with out.open(WITHOUT_IMAGE) as lines:
            yield from map(Pair.from_json, parse_jsonl(lines, f"{corpus}/{WITHOUT_IMAGE}"))


def _row(pair: Pair) -> dict[str, Any]:
    flags = ["plot or diagram"] * pair.is_plot + ["compound"] * pair.is_compound
    return {
        "key": pair.key,
        **({"panel": f"{pair.panel} of {pair.parent}, at {pair.panel_box}"} if pair.parent else {}),
        **({"whole": f"not split into panels: {pair.whole_because}"} if pair.whole_because else {}),
        "image": f"{pair.file}, {pair.width} x {pair.height} pixels" if pair.file else "missing",
        "label": pair.label,
        "caption": pair.caption,
        "mentions": [mention.sentence for mention in pair.mentions],
        "domain": ", ".join([f"{pair.domain} ({pair.domain_score:.2f})", *flags]),
        "licence": pair.licence,
        "title": pair.title,
        "doi": pair.doi,
        "source": pair.source,
    }
