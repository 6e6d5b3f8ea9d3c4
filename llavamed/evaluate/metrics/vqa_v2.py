"""VQA v2: ten people answered each question, and an answer is as right as many of them gave it.

*Official* is `vqaEval.py` of GT-Vision-Lab/VQA (commit c4e6a0e): for each annotator, the others who gave
the predicted answer are counted, three make it fully right, and the ten results are averaged. The
prediction is normalised in full; the references lose their punctuation only when the ten are not
identical, and never their articles or counts. So "1,000" given ten times cannot be matched by anyone
("1000" is what remains of every prediction), and a reference with an article is out of reach.

*Strict* asks for the answer most people gave: exact match by words and numbers, yes/no by the first
whole word, and token F1. Where several answers lead, the best counts.

The overall score is the mean over questions; the script rounds it to two decimals of a percent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from llavamed.evaluate.metrics import strict
from llavamed.evaluate.metrics.vqa_words import map_words, strip_punctuation

OFFICIAL = "vqa_v2_official/1"
STRICT = "vqa_v2_strict/3"
WHY_THEY_DIFFER = (
    "The official score gives partial credit for an answer that only one or two of the ten annotators gave and "
    "compares whole normalised strings, so that 'yes, it is' is wrong and the references keep articles that "
    "predictions lose; the strict score asks for the answer most annotators gave, by words and numbers."
)


def normalize(prediction: str) -> str:
    """What the script makes of a prediction: 'The Coca-Cola.' -> 'coca cola'."""
    return map_words(strip_punctuation(prediction.replace("\n", " ").replace("\t", " ").strip()))


def official_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Agreement with the annotators (ten in the benchmark's files), each left out in turn, 0-1."""
    _require(references)
    answer = normalize(prediction)
    given = list(references) if len(set(references)) == 1 else [strip_punctuation(text) for text in references]
    return leave_one_out([text == answer for text in given])


def leave_one_out(agrees: Sequence[bool]) -> float:
    """The mean over annotators of min(1, others who agree / 3): 1 agreeing of 10 gives 0.3, 3 give 0.9, 4 give 1."""
    total = sum(agrees)
    return sum(min(1.0, (total - one) / 3) for one in agrees) / len(agrees)


def leading(references: Sequence[str]) -> list[str]:
    """The answers that most people gave, by words and numbers; several if they are equally many."""
    _require(references)
    return list(_leading(tuple(references)))


@lru_cache(maxsize=65536)  # a question's ten answers are looked at by every metric under every control
def _leading(references: tuple[str, ...]) -> tuple[str, ...]:
    keys = [tuple(strict.strict_tokens(text)) for text in references]
    votes = Counter(keys)
    first = dict(zip(reversed(keys), reversed(references), strict=True))
    return tuple(first[key] for key, count in votes.items() if count == max(votes.values()))


def parse_strict(prediction: str, references: Sequence[str]) -> str | None:
    """yes or no where that is what most people said, else the whole answer; None is a parse failure."""
    if all(strict.is_yes_no(text) for text in leading(references)):
        return strict.parse_yes_no(prediction)
    return prediction.strip() or None


def strict_exact(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the parsed answer is one that most people gave."""
    parsed = parse_strict(prediction, references)
    return max((strict.strict_exact(parsed, text) for text in leading(references)), default=0.0) if parsed else 0.0


def strict_f1(prediction: str, references: Sequence[str]) -> float:
    """Multiset token F1 of the answer with the nearest of those that most people gave."""
    return max(strict.strict_overlap(prediction, text).f1 for text in leading(references))


def _require(references: Sequence[str]) -> None:
    if not references:
        raise ValueError("references: empty; give the annotators' answers")
