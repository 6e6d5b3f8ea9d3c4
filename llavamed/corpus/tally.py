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

from llavamed.records import Pair

SAMPLES = 24
_COUNTERS = ("counts", "funnel", "articles_funnel", "domains", "licences")
NAMED = 1000  # articles left out, and unresolved citations, that are named one by one


@dataclass
class Tally:
    counts: Counter[str] = field(default_factory=Counter)
    funnel: Counter[str] = field(default_factory=Counter)  # images that are no pairs, by reason
    articles_funnel: Counter[str] = field(default_factory=Counter)  # articles that are not read, by reason
    domains: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    left_out: list[dict[str, str]] = field(default_factory=list)
    unresolved: list[dict[str, str]] = field(default_factory=list)
    credits: dict[str, str] = field(default_factory=dict)  # article -> its line in the attribution
    samples: list[dict[str, Any]] = field(default_factory=list)  # {"rank", "pair", "place"}, the smallest ranks first
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
        if pair.article not in self.credits:
            link = f" https://doi.org/{pair.doi}" if pair.doi else ""
            title = " ".join((pair.title or pair.article).split())
            self.credits[pair.article] = f"- {title} ({pair.article}). {pair.licence}.{link}"

    def show(self, pair: Pair) -> None:
        """Take the pair into the sample if its key's hash is among the smallest: so a sample is spread over all
        articles and the same in every build. Pairs with an image come first."""
        rank = f"{int(not pair.file)}{hashlib.sha256(pair.key.encode()).hexdigest()}"
        if len(self.samples) < SAMPLES or rank < self.samples[-1]["rank"]:
            self._take({"rank": rank, "pair": pair.to_json(), "place": None})

    def put_places(self, places: Mapping[str, Sequence[Any]]) -> None:
        """Where the images of the sample lie: key -> (shard, offset, size)."""
        for sample in self.samples:
            if found := places.get(sample["pair"]["key"]):
                sample["place"] = list(found)

    def _take(self, *more: dict[str, Any]) -> None:
        self.samples = sorted([*self.samples, *more], key=lambda sample: str(sample["rank"]))[:SAMPLES]

    def add(self, other: Tally) -> None:
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        self.left_out = (self.left_out + other.left_out)[:NAMED]
        self.unresolved = (self.unresolved + other.unresolved)[:NAMED]
        self.credits = {**other.credits, **self.credits}
        self.files |= other.files
        self._take(*other.samples)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        tally = cls(**row)
        for name in _COUNTERS:
            setattr(tally, name, Counter(row[name]))
        return tally
