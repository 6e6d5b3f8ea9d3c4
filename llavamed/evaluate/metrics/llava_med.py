"""How LLaVA-Med counts a right answer, bug for bug, and how one should.

Two families of pure functions, each from (prediction, reference) strings to a number in 0-1:

*Official* reproduces `llava/eval/run_eval_batch.py` of LLaVA-Med v1.0, the script behind the paper's
table, and `run_eval.py` beside it, which disagrees with it on closed questions. Their numbers are
comparable with the literature and too kind: a closed answer counts when the reference is a
*substring* of the prediction, so the reference "no" is found in "The study is normal"; open recall
counts the words of the *prediction* and rewards repeating and rambling.

*Strict* is what the words promise: a closed yes/no question is judged by the first whole word "yes"
or "no"; with another option set by the one option that the answer names; open answers by true exact
match and by multiset token precision, recall and F1 (as in SQuAD).

The hard part is fidelity: the official normaliser tests its punctuation rules on the original string,
removes only the first 32 periods (a flag passed as a count) and runs twice, once in the script and
once in every metric. `official_*` functions take raw strings and do both passes. They were checked
against values computed by the original code.
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from llavamed.evaluate.metrics.vqa_words import ARTICLES, CONTRACTIONS, NUMBERS, PUNCTUATION

OFFICIAL = "llava_med_official/1"  # scorer id and version, written beside every number
STRICT = "llava_med_strict/1"


class Overlap(NamedTuple):
    """Token overlap of one answer, each 0-1."""

    precision: float
    recall: float
    f1: float


_NO_OVERLAP = Overlap(0.0, 0.0, 0.0)

# ---------------------------------------------------------------- official

_PERIOD = re.compile(r"\.(?!\d)")  # the original's look-behind `(?!<=\d)` is always true
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIODS_REMOVED = 32  # int(re.UNICODE), passed where `count` belongs


def normalize_word(text: str) -> str:
    """The VQA normaliser as LLaVA-Med has it; 'T2-weighted' -> 't2 weighted', '10,000' -> '10000', 'none' -> '0'."""
    delete_all = _COMMA_IN_NUMBER.search(text) is not None
    clean = text
    for mark in PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        clean = clean.replace(mark, "" if at_edge or delete_all else " ")
    clean = _PERIOD.sub("", clean, count=_PERIODS_REMOVED)
    words = (NUMBERS.get(word, word) for word in clean.lower().split())
    kept = [CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(kept).replace(",", "")


def _once(text: str) -> str:
    return normalize_word(text.lower())


def _tokens(text: str) -> Counter[str]:
    """The words a metric sees: normalised by the script, then again by the metric."""
    return Counter(normalize_word(_once(text)).lower().split())


def official_overlap(prediction: str, reference: str) -> Overlap:
    """The paper's "Open" is `.recall`: true positives are counted in the prediction, so repeats raise it."""
    pred, ref = _tokens(prediction), _tokens(reference)
    true_positive = sum(count for word, count in pred.items() if word in ref)
    if not true_positive:
        return _NO_OVERLAP
    missed = sum(count for word, count in ref.items() if word not in pred)
    precision = true_positive / pred.total()
    recall = true_positive / (true_positive + missed)
    return Overlap(precision, recall, 2 * precision * recall / (precision + recall))


def official_exact(prediction: str, reference: str) -> float:
    """Called "exact match" there; it is the distinct reference words found, over the prediction's length."""
    pred, ref = _tokens(prediction), _tokens(reference)
    return sum(word in pred for word in ref) / pred.total() if pred else 0.0


def official_contains(prediction: str, reference: str) -> int:
    """`run_eval_batch.py`: 1 if the reference is a substring. The paper's "Closed", and its "open accuracy"."""
    return int(_once(reference) in _once(prediction))


def official_closed_run_eval(prediction: str, reference: str) -> int:
    """`run_eval.py` after its fix of 2023-12-11: as above, but 0 unless "yes" or "no" is a substring too."""
    text = _once(prediction)
    return int(("yes" in text or "no" in text) and _once(reference) in text)


def official_closed_run_eval_release(prediction: str, reference: str) -> int | None:
    """`run_eval.py` as released: a wrong answer with "yes" or "no" in it is None, out of the denominator."""
    text = _once(prediction)
    if "yes" not in text and "no" not in text:
        return 0
    return 1 if _once(reference) in text else None


def official_candidate_accuracy(prediction: str, reference: str, candidates: Sequence[str | int]) -> float:
    """`run_eval.py`'s "open accuracy": 1 if the candidate nearest to the prediction is the reference.

    `candidates` are the answers of the training split's open questions; nearness is the share of a
    candidate's distinct words that the prediction has, and the first of equals wins.
    """
    if not candidates:
        raise ValueError("candidates: empty; give the distinct answers of the training split")
    pred = _tokens(prediction)
    normalized = [normalize_word(str(candidate)) for candidate in candidates]

    def nearness(candidate: str) -> float:
        words = set(candidate.lower().split())
        return sum(word in words for word in pred) / len(words) if words else 0.0

    return float(max(normalized, key=nearness) == normalize_word(_once(reference)))


def official_bleu(prediction: str, reference: str, weights: Sequence[float] = (0.25, 0.25, 0.25, 0.25)) -> float:
    """Sentence BLEU without smoothing, as nltk computes it: an order without a match counts as the smallest float.

    The script's bleu_score_1, _2, _3 are the weights (1,0,0,0), (0,1,0,0), (0,0,1,0): single orders, not cumulative.
    """
    pred, ref = _once(prediction).lower().split(), _once(reference).lower().split()
    precisions = []
    for order in range(1, len(weights) + 1):
        found, wanted = _ngrams(pred, order), _ngrams(ref, order)
        matched = (found & wanted).total()
        if order == 1 and not matched:
            return 0.0
        precisions.append(matched / found.total() if matched else sys.float_info.min)
    brevity = 1.0 if len(pred) > len(ref) else math.exp(1 - len(ref) / len(pred))
    return brevity * math.exp(math.fsum(w * math.log(p) for w, p in zip(weights, precisions, strict=True)))


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


# ---------------------------------------------------------------- strict

YES_NO = frozenset({"yes", "no"})
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W_]+(?:'[^\W_]+)*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")


def strict_tokens(text: str) -> list[str]:
    """Words and numbers: no case, punctuation or articles; 'Ten x-rays' -> ['10', 'x', 'rays'].

    A text of articles alone keeps them, so that the answer "A" is not the empty answer.
    """
    folded = _THOUSANDS.sub("", unicodedata.normalize("NFKC", text).casefold().replace("’", "'"))
    words = [NUMBERS.get(word, word) for word in _WORD.findall(folded)]
    return [word for word in words if word not in ARTICLES] or words


def strict_exact(prediction: str, reference: str) -> float:
    return float(strict_tokens(prediction) == strict_tokens(reference))


def strict_overlap(prediction: str, reference: str) -> Overlap:
    """Multiset token overlap as in SQuAD: a word counts as often as both sides have it."""
    pred, ref = Counter(strict_tokens(prediction)), Counter(strict_tokens(reference))
    shared = (pred & ref).total()
    if not shared:
        return _NO_OVERLAP
    precision, recall = shared / pred.total(), shared / ref.total()
    return Overlap(precision, recall, 2 * precision * recall / (precision + recall))


def parse_yes_no(prediction: str) -> str | None:
    """The first whole word "yes" or "no"; None if there is neither ("normal" has neither)."""
    return next((word for word in strict_tokens(prediction) if word in YES_NO), None)


# where the word "a" is a letter: an article stands before a noun, and is a capital only where a sentence begins
_LETTER_A = re.compile(r"\b[aA]\b(?!['’-]\w|\s+\w)|(?<=[^.!?\s]\s)A\b(?!['’-]\w)|\bA\b(?=\s+(?:is|and|or)\b)")


def parse_option(prediction: str, options: Sequence[str]) -> str | None:
    """The one option that the answer is, or else names as whole words; None if it names none or several.

    A longer option hides a shorter one inside it: "left lung" names "left lung", not also "lung".
    """
    if any(strict_tokens(option) == ["a"] for option in options):
        first, *rest = _LETTER_A.split(prediction)
        words = strict_tokens(first) + [word for piece in rest for word in ("a", *strict_tokens(piece))]
    else:
        words = strict_tokens(prediction)
    named: set[str] = set()
    for option in sorted(options, key=lambda option: -len(strict_tokens(option))):
        wanted = strict_tokens(option)
        if words == wanted:
            return option
        starts = [i for i in range(len(words) - len(wanted) + 1) if wanted and words[i : i + len(wanted)] == wanted]
        for start in starts:
            words = [*words[:start], *([""] * len(wanted)), *words[start + len(wanted) :]]
            named.add(option)
    return named.pop() if len(named) == 1 else None


def is_yes_no(reference: str, options: Sequence[str] = ()) -> bool:
    """A yes/no question: those are its options, or its options are unknown and its reference is one of the two."""
    if options:
        return {option.casefold() for option in options} == YES_NO
    return strict_tokens(reference) in (["yes"], ["no"])


def parse_closed(prediction: str, reference: str, options: Sequence[str] = ()) -> str | None:
    """The choice read from the answer to a closed question; None is a parse failure, which is wrong.

    Without a known option set and beyond yes/no nothing but the reference itself can be recognised:
    the whole answer is the choice, and it is right on exact match only.
    """
    if is_yes_no(reference, options):
        return parse_yes_no(prediction)
    if options:
        return parse_option(prediction, options)
    return " ".join(strict_tokens(prediction)) or None


def strict_closed(prediction: str, reference: str, options: Sequence[str] = ()) -> float:
    """1.0 if the choice read from the answer is the reference, else 0.0."""
    parsed = parse_closed(prediction, reference, options)
    return float(parsed is not None and strict_tokens(parsed) == strict_tokens(reference))
