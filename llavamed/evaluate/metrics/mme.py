"""MME."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

OFFICIAL = "mme_official/1"
STRICT = "mme_strict/1"
WHY_THEY_DIFFER = "to be written"


def parse_official(prediction: str) -> str | None:
    """yes, no, or None ('other' there)."""
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


def summary(rows: Iterable[tuple[str, str, float]]) -> dict[str, Any]:
    """rows of (image, subtask, credit) -> {'subtasks': {name: {accuracy, accuracy_plus (0-1), score (0-200)}}, 'perception': 0-2000 | None, 'cognition': 0-800 | None}."""
    raise NotImplementedError("being written on the branch metrics")
