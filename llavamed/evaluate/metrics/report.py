"""Generated reports."""

from __future__ import annotations

from collections.abc import Sequence

OFFICIAL = "report_official/1"
STRICT = "report_strict/1"
WHY_THEY_DIFFER = "to be written"


def clean(text: str) -> str:
    """R2Gen's cleaning of MIMIC-CXR reports: lower-cased words split by blanks."""
    raise NotImplementedError("being written on the branch metrics")


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, float, float, float]:
    """BLEU-1..4 of the corpus, as pycocoevalcap, closest reference length. Texts are tokens split by blanks."""
    raise NotImplementedError("being written on the branch metrics")


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L per item, beta 1.2."""
    raise NotImplementedError("being written on the branch metrics")


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """What pycocoevalcap and the papers call CIDEr, per item, 0-10."""
    raise NotImplementedError("being written on the branch metrics")


def cider_d(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D per item, 0-10."""
    raise NotImplementedError("being written on the branch metrics")


def strict_f1(prediction: str, reference: str) -> float:
    """Multiset token F1."""
    raise NotImplementedError("being written on the branch metrics")
