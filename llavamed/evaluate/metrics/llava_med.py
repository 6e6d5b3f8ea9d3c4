"""How LLaVA-Med counts a right answer, bug for bug, and how one should.

Two families of pure functions, each from (prediction, reference) strings to a number in 0-1:

*Official* reproduces `llava/eval/run_eval_batch.py` of LLaVA-Med v1.0, the script behind the paper's
table, and `run_eval.py` beside it, which disagrees with it on closed questions. Their numbers are
comparable with the literature and too kind: a closed answer counts when the reference is a
*substring* of the prediction, so the reference "no" is found in "The study is normal"; open recall
counts the words of the *prediction* and rewards repeating and rambling.

*Strict* is what the words promise: a closed yes/no question is judged by the first whole word "yes"
or "no"; with another option set by the one option that the answer names; open answers by true exact
match and by multiset token precision, recall and F1 (`strict.py` has these rules).

The hard part is fidelity: the official normaliser tests its punctuation rules on the original string,
removes only the first 32 periods (a flag passed as a count) and runs twice, once in the script and
once in every metric. `official_*` functions take raw strings and do both passes.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from llavamed.evaluate.metrics.strict import (
    NO_OVERLAP,
    Overlap,
    is_yes_no,
    parse_option,
    parse_yes_no,
    strict_tokens,
)
from llavamed.evaluate.metrics.strict import strict_exact as strict_exact
from llavamed.evaluate.metrics.strict import strict_overlap as strict_overlap
from llavamed.evaluate.metrics.vqa_words import map_words, strip_punctuation

OFFICIAL = "llava_med_official/1"  # scorer id and version, written beside every number
STRICT = "llava_med_strict/4"
WHY_THEY_DIFFER = (
    "LLaVA-Med's script counts a closed answer as right when the reference is a substring of it, so that "
    "'The study is normal' contains the answer 'no', and its open recall counts the words of the prediction, so "
    "that repeating and rambling raise it; the strict scores read the first whole word yes or no, the one option "
    "named, and every word once."
)

# ---------------------------------------------------------------- official


def normalize_word(text: str) -> str:
    """The VQA normaliser as LLaVA-Med has it; 'T2-weighted' -> 't2 weighted', '10,000' -> '10000', 'none' -> '0'."""
    return map_words(strip_punctuation(text)).replace(",", "")


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
        return NO_OVERLAP
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

    `candidates` are `open_candidates` of the training split, or the list "0" in the script's own file;
    nearness is the share of a candidate's distinct words that the prediction has, and the first of equals wins.
    """
    if not candidates:
        raise ValueError("candidates: empty; give the distinct answers of the training split")
    pred = _tokens(prediction)

    def nearness(candidate: str) -> float:
        words = _candidate(candidate)[1]
        return sum(word in pred for word in words) / len(words) if words else 0.0

    nearest = max((str(candidate) for candidate in candidates), key=nearness)
    return float(_candidate(nearest)[0] == normalize_word(_once(reference)))


@lru_cache(maxsize=65536)  # a split has some hundred candidates, each compared with every answer
def _candidate(candidate: str) -> tuple[str, frozenset[str]]:
    normal = normalize_word(candidate)
    return normal, frozenset(normal.lower().split())


def open_candidates(answers: Iterable[str | int]) -> tuple[str, ...]:
    """The candidates of a training split: its open questions' distinct answers, by first occurrence.

    LLaVA-Med read them from `train_open_answers.json`, which was never published; its order, which decides
    between equally near candidates, is therefore unknown, and this accuracy can be off by such ties.
    """
    return tuple(dict.fromkeys(str(answer) for answer in answers))


def official_bleu(prediction: str, reference: str, weights: Sequence[float] = (0.25, 0.25, 0.25, 0.25)) -> float:
    """Sentence BLEU without smoothing, as nltk computes it: an order without a match counts as the smallest float.

    The script's bleu_score_1, _2, _3 are the weights (1,0,0,0), (0,1,0,0), (0,0,1,0): single orders, not cumulative.
    """
    pred, ref = _once(prediction).lower().split(), _once(reference).lower().split()
    precisions = []
    for order in range(1, len(weights) + 1):
        wanted = Counter(_ngrams(ref, order))
        matched = (Counter(ngram for ngram in _ngrams(pred, order) if ngram in wanted) & wanted).total()
        if order == 1 and not matched:
            return 0.0
        precisions.append(matched / (len(pred) - order + 1) if matched else sys.float_info.min)
    brevity = 1.0 if len(pred) > len(ref) else math.exp(1 - len(ref) / len(pred))
    return brevity * math.exp(math.fsum(w * math.log(p) for w, p in zip(weights, precisions, strict=True)))


def _ngrams(words: Sequence[str], order: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(order)), strict=False)


# ---------------------------------------------------------------- strict


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
    """1.0 if the choice read from the answer is the reference, or the option that it names, else 0.0."""
    parsed = parse_closed(prediction, reference, options)
    right = reference if is_yes_no(reference, options) else parse_option(reference, options) or reference
    return float(parsed is not None and strict_tokens(parsed) == strict_tokens(right))
