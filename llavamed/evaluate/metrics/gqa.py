"""GQA (Hudson & Manning, CVPR 2019): short answers about everyday scenes, and whether they hang together.

*Official* accuracy is string equality (`eval.py`) after LLaVA's conversion (`convert_gqa_for_eval.py`):
final periods off, lower case. Everything else counts, so "No, it is not" and "a dog" are wrong.
The script's other measures (validity, plausibility, consistency, distribution) are from files that version 1.2 no
longer comes with.

*Strict* reads yes/no questions by the first whole word and compares others by words and numbers.
"""

from __future__ import annotations

from llavamed.evaluate.metrics import strict

OFFICIAL = "gqa_official/1"
STRICT = "gqa_strict/3"
WHY_THEY_DIFFER = (
    "The official score compares whole strings, so that 'No, it is not' or 'a dog' is wrong where 'no' or 'dog' is "
    "asked; the strict score reads the first whole word yes or no, and compares words without articles."
)


def normalize(prediction: str) -> str:
    """LLaVA's conversion."""
    return prediction.rstrip(".").lower()


def official_accuracy(prediction: str, reference: str) -> float:
    return float(normalize(prediction) == reference)


def parse_strict(prediction: str, reference: str) -> str | None:
    """yes or no where the question asks for that, else the whole answer; None is a parse failure."""
    return strict.parse_yes_no(prediction) if strict.is_yes_no(reference) else prediction.strip() or None


def strict_exact(prediction: str, reference: str) -> float:
    parsed = parse_strict(prediction, reference)
    return strict.strict_exact(parsed, reference) if parsed else 0.0
