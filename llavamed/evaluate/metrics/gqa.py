"""GQA."""

from __future__ import annotations

from collections.abc import Iterable

OFFICIAL = "gqa_official/1"
STRICT = "gqa_strict/1"
WHY_THEY_DIFFER = "to be written"


def official_accuracy(prediction: str, reference: str) -> float:
    """LLaVA's conversion, then string equality."""
    raise NotImplementedError("being written on the branch metrics")


def strict_exact(prediction: str, reference: str) -> float:
    """Exact match; yes/no by the first whole word."""
    raise NotImplementedError("being written on the branch metrics")


def summary(rows: Iterable[tuple[float, str]]) -> dict[str, float]:
    """rows of (credit, structural type) -> accuracy, binary, open."""
    raise NotImplementedError("being written on the branch metrics")
