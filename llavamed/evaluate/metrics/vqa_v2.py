"""VQA v2: ten people's answers; an answer is as right as many of them gave it."""

from __future__ import annotations

from collections.abc import Sequence

OFFICIAL = "vqa_v2_official/1"
STRICT = "vqa_v2_strict/1"
WHY_THEY_DIFFER = "to be written"


def normalize(prediction: str) -> str:
    """The official normaliser."""
    raise NotImplementedError("being written on the branch metrics")


def official_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Leave-one-out consensus over the annotators' answers."""
    raise NotImplementedError("being written on the branch metrics")


def strict_exact(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the answer is the one most people gave."""
    raise NotImplementedError("being written on the branch metrics")


def strict_f1(prediction: str, references: Sequence[str]) -> float:
    """Multiset token F1 with the answer most people gave (best of equals)."""
    raise NotImplementedError("being written on the branch metrics")
