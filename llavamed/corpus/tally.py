"""What one work unit counted: by what and by reason, with the few examples that the page will show.

Tallies are written as JSON beside each unit's shard and added up in the order of the units at the end, so it does not
matter which process made which, or when.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from llavamed.corpus import attribution
from llavamed.imaging.thumbnail import thumbnail
from llavamed.records import Pair

SAMPLES = 6  # pairs of each domain, and images left out for each reason, that the page shows
_BINS = (5, 10, 25, 50, 100, 200, 400)  # words
_COUNTERS = (
    "counts", "funnel", "articles_funnel", "domains", "licences", "whole", "caption_words", "mention_words",
)  # fmt: skip
NAMED = 1000  # articles left out, and unresolved citations, that are named one by one


def words_bin(text: str) -> str:
    """ "11-25": the range of lengths, in words, that a text falls into."""
    count = len(text.split())
    low = 1
    for high in _BINS:
        if count <= high:
            return f"{low}-{high}" if count else "none"
        low = high + 1
    return f"{low} or more"


WORDS = ("none", *(words_bin("x " * n) for n in (*_BINS, _BINS[-1] + 1)))  # all ranges, short to long


def _rank(pair: Pair) -> str:
    return hashlib.sha256(pair.key.encode()).hexdigest()


def _row(kind: str, rank: str, pair: Pair, **more: Any) -> dict[str, Any]:
    return {"rank": rank, "kind": kind, "pair": pair.to_json(), **more}


def _is_among(rows: list[dict[str, Any]], kind: str, rank: str) -> bool:
    alike = [row["rank"] for row in rows if row["kind"] == kind]
    return len(alike) < SAMPLES or rank < max(alike)


def _least(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The SAMPLES smallest ranks of each kind."""
    rows = sorted(rows, key=lambda row: (row["kind"], row["rank"]))
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row["kind"]] += 1
        if seen[row["kind"]] <= SAMPLES:
            kept.append(row)
    return kept


@dataclass
class Tally:
    counts: Counter[str] = field(default_factory=Counter)
    funnel: Counter[str] = field(default_factory=Counter)  # images that are no pairs, by reason
    articles_funnel: Counter[str] = field(default_factory=Counter)  # articles that are not read, by reason
    domains: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)  # compound figures: "split", or why they stay whole
    caption_words: Counter[str] = field(default_factory=Counter)  # pairs by the length of their caption
    mention_words: Counter[str] = field(default_factory=Counter)  # pairs by the length of all their mentions
    left_out: list[dict[str, str]] = field(default_factory=list)
    unresolved: list[dict[str, str]] = field(default_factory=list)
    credits: dict[str, attribution.Entry] = field(default_factory=dict)  # by article
    samples: list[dict[str, Any]] = field(default_factory=list)  # {"rank", "kind", "pair", "place"}, by kind and rank
    rejected: list[dict[str, Any]] = field(default_factory=list)  # {"rank", "kind", "pair", "image"}, by kind and rank
    files: dict[str, str] = field(default_factory=dict)  # shard -> sha256

    def leave_out(self, where: str, reason: str, message: str) -> None:
        """Count an article that is not read."""
        self.counts["articles_left_out"] += 1
        self.articles_funnel[reason] += 1
        if len(self.left_out) < NAMED:
            self.left_out.append({"where": where, "reason": reason, "message": message})

    def keep(self, pair: Pair) -> None:
        """Count a pair that is written."""
        self.counts["pairs"] += 1
        self.domains[f"{pair.domain} (plot or diagram)" if pair.is_plot else pair.domain] += 1
        self.licences[pair.licence] += 1
        self.caption_words[words_bin(pair.caption)] += 1
        self.mention_words[words_bin(" ".join(mention.sentence for mention in pair.mentions))] += 1
        self.credit(pair)

    def credit(self, pair: Pair) -> None:
        """Name the pair's article in the attribution, as must be for a text without its image too."""
        attribution.add(self.credits, pair)

    def show(self, pair: Pair) -> None:
        """Take the pair into the sample if its key's hash is among the smallest of its domain: so a sample is spread
        over all articles and the same in every build. Pairs with an image come first."""
        rank = f"{int(not pair.file)}{_rank(pair)}"
        if _is_among(self.samples, pair.domain, rank):
            self.samples = _least([*self.samples, _row(pair.domain, rank, pair, place=None)])

    def reject(self, reason: str, pair: Pair, image: bytes | None) -> None:
        """Count an image that is left out, and keep a few of each reason to show."""
        self.funnel[reason] += 1
        if _is_among(self.rejected, reason, _rank(pair)):
            small = thumbnail(image) if image else ""
            self.rejected = _least([*self.rejected, _row(reason, _rank(pair), pair, image=small)])

    def put_places(self, places: Mapping[str, Sequence[Any]]) -> None:
        """Where the images of the sample lie: key -> (shard, offset, size)."""
        for sample in self.samples:
            if found := places.get(sample["pair"]["key"]):
                sample["place"] = list(found)

    def add(self, other: Tally) -> None:
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        self.left_out = (self.left_out + other.left_out)[:NAMED]
        self.unresolved = (self.unresolved + other.unresolved)[:NAMED]
        attribution.merge(self.credits, other.credits)
        self.files |= other.files
        self.samples = _least([*self.samples, *other.samples])
        self.rejected = _least([*self.rejected, *other.rejected])

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        tally = cls(**row)
        for name in _COUNTERS:
            setattr(tally, name, Counter(row[name]))
        return tally
