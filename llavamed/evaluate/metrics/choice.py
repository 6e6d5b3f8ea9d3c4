"""Multiple choice: PMC-VQA, OmniMedVQA, GMAI-MMBench, MedMCQA."""

from __future__ import annotations

from collections.abc import Sequence

OFFICIAL = "choice_official/1"
STRICT = "choice_strict/1"
WHY_THEY_DIFFER = "to be written"


def parse_choice(prediction: str, options: Sequence[str]) -> str | None:
    """Strict: the letter named, else the option named; None if none or several."""
    raise NotImplementedError("being written on the branch metrics")


def nearest_option(prediction: str, options: Sequence[str]) -> str | None:
    """Letter of the option most similar by difflib."""
    raise NotImplementedError("being written on the branch metrics")


def official_nearest(prediction: str, options: Sequence[str], answer: str) -> float:
    """OmniMedVQA and PMC-VQA: 1.0 if the nearest option is the answer (a letter)."""
    raise NotImplementedError("being written on the branch metrics")


def official_likelihood(log_likelihoods: Sequence[float], answer: str) -> float:
    """MedMCQA in lm-eval: 1.0 if the answer (a letter) is the likeliest."""
    raise NotImplementedError("being written on the branch metrics")


def strict_choice(prediction: str, options: Sequence[str], answer: str) -> float:
    """1.0 if parse_choice gives the answer (a letter)."""
    raise NotImplementedError("being written on the branch metrics")
