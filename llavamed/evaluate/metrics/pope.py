"""POPE."""

from __future__ import annotations

from collections.abc import Iterable

OFFICIAL = "pope_official/1"
STRICT = "pope_strict/1"
WHY_THEY_DIFFER = "to be written"


def parse_official(prediction: str) -> str:
    """'yes' or 'no', never None: yes is the default."""
    raise NotImplementedError("being written on the branch metrics")


def parse_strict(prediction: str) -> str | None:
    """The first whole word yes or no."""
    raise NotImplementedError("being written on the branch metrics")


def official_accuracy(prediction: str, reference: str) -> float:
    """1.0 if parse_official gives the reference."""
    raise NotImplementedError("being written on the branch metrics")


def strict_accuracy(prediction: str, reference: str) -> float:
    """1.0 if parse_strict gives the reference."""
    raise NotImplementedError("being written on the branch metrics")


def summary(pairs: Iterable[tuple[str | None, str]]) -> dict[str, float]:
    """(parsed choice, reference) -> accuracy, precision, recall, f1, yes_ratio, each 0-1; yes is positive."""
    raise NotImplementedError("being written on the branch metrics")
