"""Articles -> work units, so that a new article touches one or two of them.

If every 50 articles were a unit, one more at the front would shift all that come after it, and `corpus build` would
have to make everything again. So the articles say themselves where a unit ends: each has a number drawn from its name,
and of the places where a unit may end (when it has half of its size, up to half more) the one with the smallest number
is taken. After an article more or less the same places are found again, mostly with the next unit: what rsync and
backup programs do with the blocks of files.

A unit's name, which its shards bear, is drawn from the name of its first article, not counted: then the shards that
stay keep theirs.

A zip of a publisher may hold all articles there are. It can be read at random, so it is cut into parts, a unit each. A
packed tar can only be read from its start and stays in one piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby

from llavamed.corpus import unit as units
from llavamed.corpus.sources import Package
from llavamed.corpus.unit import Entry, Unit
from llavamed.recipe import CorpusSection

_DIGITS = 12  # of a name: of a million units, two have the same in one corpus of two, and the later takes the next


def cut(entries: Sequence[Entry], section: CorpusSection, settings: str) -> list[Unit]:
    """The units of these articles, in order; `settings` is the fingerprint of all but the articles."""
    made: dict[str, Unit] = {}
    for part in _parts(entries):
        number = _drawn(part[0].where, part[0].part if isinstance(part[0], Package) else 0) % 10**_DIGITS
        while (name := f"{number:0{_DIGITS}d}") in made:
            number = (number + 1) % 10**_DIGITS
        made[name] = Unit(name, part, section, settings)
    return list(made.values())


def _parts(entries: Sequence[Entry]) -> Iterator[tuple[Entry, ...]]:
    for is_split, run in groupby(map(_split, entries), key=lambda pieces: len(pieces) > 1):
        if is_split:
            yield from ((piece,) for pieces in run for piece in pieces)
        else:
            yield from _runs([piece for pieces in run for piece in pieces])


def _split(entry: Entry) -> Sequence[Entry]:
    return entry.split(units.ARTICLES) if isinstance(entry, Package) else (entry,)


def _runs(entries: Sequence[Entry]) -> Iterator[tuple[Entry, ...]]:
    least, most = units.ARTICLES - units.ARTICLES // 2, units.ARTICLES + units.ARTICLES // 2
    start = 0
    while len(entries) - start > most:
        end = min(range(start + least, start + most + 1), key=lambda at: _drawn(entries[at].where))
        yield tuple(entries[start:end])
        start = end
    if start < len(entries):
        yield tuple(entries[start:])


def _drawn(where: str, part: int = 0) -> int:
    return int.from_bytes(hashlib.blake2b(f"{where}\0{part}".encode(), digest_size=8).digest())
