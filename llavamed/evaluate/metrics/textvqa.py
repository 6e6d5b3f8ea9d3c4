"""TextVQA as M4C's evaluator scores it."""

from __future__ import annotations

from collections.abc import Sequence

OFFICIAL = "textvqa_official/1"
STRICT = "textvqa_strict/1"
WHY_THEY_DIFFER = "to be written"


def normalize(text: str) -> str:
    """EvalAIAnswerProcessor, for both sides."""
    raise NotImplementedError("being written on the branch metrics")


def official_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Soft score over exactly ten answers."""
    raise NotImplementedError("being written on the branch metrics")


def strict_exact(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the answer is the one most people gave."""
    raise NotImplementedError("being written on the branch metrics")


def strict_f1(prediction: str, references: Sequence[str]) -> float:
    """Multiset token F1 with the answer most people gave (best of equals)."""
    raise NotImplementedError("being written on the branch metrics")
