"""POPE (Li et al., EMNLP 2023): "Is there a dog in the image?", asked of things that are there and not.

*Official* is `evaluate.py` of the benchmark (LLaVA's `eval_pope.py` is the same): of the text up to the
first period, without commas and split at blanks, the answer is "no" if a word is `No`, `no` or `not`,
and "yes" otherwise. So the empty answer, "NO" and "I cannot tell" are a yes, and nothing fails to parse.

*Strict* takes the first whole word yes or no; without one the answer is wrong, a miss where the object
is there, and in no case a false alarm.

"yes" is the positive class of the precision, recall and F1 that `families/yes_no.py` makes of these. The original
divides by zero for a model that never says yes; there that precision is 0.
"""

from __future__ import annotations

from llavamed.evaluate.metrics.strict import parse_yes_no

OFFICIAL = "pope_official/1"
STRICT = "pope_strict/2"
WHY_THEY_DIFFER = (
    "The official script takes every answer without the words no or not in its first sentence as a yes, the empty "
    "one and 'NO' included; the strict score takes the first whole word yes or no, and an answer without either "
    "is wrong."
)

_NEGATIONS = frozenset({"No", "no", "not"})

parse_strict = parse_yes_no


def parse_official(prediction: str) -> str:
    """'yes' or 'no', never None."""
    words = prediction.split(".", 1)[0].replace(",", "").split(" ")
    return "yes" if _NEGATIONS.isdisjoint(words) else "no"


def official_accuracy(prediction: str, reference: str) -> float:
    return float(parse_official(prediction) == _label(reference))


def strict_accuracy(prediction: str, reference: str) -> float:
    return float(parse_strict(prediction) == _label(reference))


def _label(reference: str) -> str:
    """The script counts every label but "no" as a yes; a label that is neither is an error here."""
    label = reference.strip().casefold()
    if label not in ("yes", "no"):
        raise ValueError(f"reference {reference!r}: POPE's labels are yes and no")
    return label
