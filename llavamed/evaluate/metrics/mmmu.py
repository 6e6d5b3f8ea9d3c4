"""MMMU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

OFFICIAL = "mmmu_official/1"
STRICT = "mmmu_strict/1"
WHY_THEY_DIFFER = "to be written"


class Item(NamedTuple):
    """`options` maps letters to texts; empty for an open question. `answer` is a letter, or the accepted answers."""

    response: str
    answer: str | Sequence[str]
    options: Mapping[str, str]


def parse_choice(response: str, options: Mapping[str, str]) -> str | None:
    """Official letter parser before its random fallback."""
    raise NotImplementedError("being written on the branch metrics")


def parse_open(response: str) -> list[str | float]:
    """Official parser of open answers."""
    raise NotImplementedError("being written on the branch metrics")


def official_scores(items: Sequence[Item]) -> list[float]:
    """All items in the official order: the unparsed draw from one seeded generator."""
    raise NotImplementedError("being written on the branch metrics")


def strict_score(item: Item) -> float:
    """Unparsed is wrong; open answers by exact match."""
    raise NotImplementedError("being written on the branch metrics")


def parse_strict(item: Item) -> str | None:
    """The letter or the answer read in strict mode."""
    raise NotImplementedError("being written on the branch metrics")
