"""Generated reports (MIMIC-CXR) against written ones: BLEU-1..4, ROUGE-L, CIDEr and token F1.

The numbers of the literature come from `pycocoevalcap`, whose definitions are these functions': corpus
BLEU with the closest reference length, ROUGE-L with beta 1.2 and the best precision and best recall over
the references, CIDEr with the document frequencies of the test references. Texts are tokens between
single blanks; which tokens is half of the score:

- `clean` (*official*) is R2Gen's cleaning of MIMIC-CXR reports, which most papers on report generation
  use: it keeps a full stop as a token, and so every sentence end is a match. (R2Gen also cuts references
  to 100 tokens and replaces words that are rare in its training split. That needs its vocabulary and is
  not done here: its published numbers are on easier references than these.)
- `plain` (*strict*) keeps words and numbers only, and of the whole report.

What `pycocoevalcap` and with it the literature calls CIDEr has the clipping and the length penalty of
CIDEr-D (Vedantam et al., CVPR 2015): `cider` and `cider_d` are the same numbers, 0-10. The paper's plain
CIDEr, which a long answer can please by repeating rare words, is `cider_plain`. nltk's and sacrebleu's
BLEU differ in tokens and smoothing, not in the counts; METEOR is in `meteor.py`.

One long answer must not hold up the rest: n-grams are counted one order at a time, BLEU looks only for
those of the references, and the longest common subsequence is found with one integer whose bits are the
reference's words (Hyyrö 2004), in time linear in the answer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from llavamed.evaluate.metrics import strict

OFFICIAL = "report_official/2"
STRICT = "report_strict/3"
WHY_THEY_DIFFER = (
    "The official scores are computed on R2Gen's tokens, in which every full stop is a word that matches; the strict "
    "ones on words and numbers alone. Neither sees whether a finding is affirmed or denied: read CheXbert and "
    "RadGraph beside them."
)

_ORDERS = (1, 2, 3, 4)
Ngram = tuple[str, ...]
Bleu = tuple[float, float, float, float]

# ---------------------------------------------------------------- tokens

# in the order and as often as R2Gen applies them; a report with more underscores than that keeps some
_REPLACEMENTS = (
    ("\n", " "),
    *[("__", "_")] * 7,
    *[("  ", " ")] * 6,
    *[("..", ".")] * 8,
    ("1. ", ""),
    *((f". {number}. ", ". ") for number in range(2, 6)),
    *((f" {number}. ", ". ") for number in range(2, 6)),
)
_REMOVED = re.compile(r"[\"/\\'.,?;*!%^&_+():-\[\]{}]")  # `:-\[` is a range there, so that hyphens stay


def clean(text: str) -> str:
    """R2Gen's tokens of a MIMIC-CXR report: 'No focal  consolidation. 2. Heart: normal' ->
    'no focal consolidation . heart normal .'."""
    for old, new in _REPLACEMENTS:
        text = text.replace(old, new)
    sentences = text.strip().lower().split(". ")
    return " ".join(" . ".join([*(_sentence(sentence) for sentence in sentences), ""]).split())


def _sentence(text: str) -> str:
    return _REMOVED.sub("", text.strip().lower())


def plain(text: str) -> str:
    """Words and numbers between blanks, in lower case: 'Heart: normal.' -> 'heart normal'."""
    return " ".join(strict.words(text))


def _ngrams(words: Sequence[str], order: int) -> Iterator[Ngram]:
    return zip(*(words[start:] for start in range(order)), strict=False)


def _pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Iterable[tuple[str, Sequence[str]]]:
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} lists of references; give one each")
    for number, given in enumerate(references):
        if isinstance(given, str) or not given:
            raise ValueError(f"references of item {number}: must be a list of at least one text")
    return zip(predictions, references, strict=True)


# ---------------------------------------------------------------- BLEU

_SMALL, _TINY = 1e-9, 1e-15  # pycocoevalcap's guards against division by zero


class BleuCounts(NamedTuple):
    """What BLEU needs of one item; counts of items add up, so that an interval can be drawn by resampling them."""

    length: int
    reference_length: int
    matched: tuple[int, ...]  # by order
    possible: tuple[int, ...]


def bleu_counts(prediction: str, references: Sequence[str]) -> BleuCounts:
    words, given = prediction.split(), [text.split() for text in references]
    matched = []
    for order in _ORDERS:
        wanted: Counter[Ngram] = Counter()
        for reference in given:
            wanted |= Counter(_ngrams(reference, order))
        found = Counter(ngram for ngram in _ngrams(words, order) if ngram in wanted)
        matched.append((found & wanted).total())
    closest = min((abs(len(reference) - len(words)), len(reference)) for reference in given)[1]
    possible = tuple(max(0, len(words) - order + 1) for order in _ORDERS)
    return BleuCounts(len(words), closest, tuple(matched), possible)


def bleu(counts: Iterable[BleuCounts]) -> Bleu:
    """BLEU-1..4, 0-1, of the items together."""
    rows = list(counts)
    length, wanted = sum(row.length for row in rows), sum(row.reference_length for row in rows)
    ratio = (length + _TINY) / (wanted + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for index, order in enumerate(_ORDERS):
        matched, possible = sum(row.matched[index] for row in rows), sum(row.possible[index] for row in rows)
        product *= (matched + _TINY) / (possible + _SMALL)
        scores.append(product ** (1 / order) * brevity)
    return scores[0], scores[1], scores[2], scores[3]


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Bleu:
    """BLEU-1..4 of the corpus, 0-1. Raises ValueError unless every prediction has references."""
    return bleu(bleu_counts(prediction, given) for prediction, given in _pairs(predictions, references))


# ---------------------------------------------------------------- ROUGE-L

_BETA = 1.2


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each item, 0-1; the corpus' score is the mean."""
    return [_rouge_l(prediction, given) for prediction, given in _pairs(predictions, references)]


def _rouge_l(prediction: str, references: Sequence[str]) -> float:
    words = prediction.split(" ")
    common = [(_common_length(words, reference.split(" ")), reference.count(" ") + 1) for reference in references]
    precision = max(length for length, _ in common) / len(words)
    recall = max(length / count for length, count in common)
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_length(words: Sequence[str], reference: Sequence[str]) -> int:
    """The length of the longest common subsequence: bit i of `row` is 0 where a longer one ends at reference word i."""
    places: dict[str, int] = {}
    for index, word in enumerate(reference):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(reference)) - 1
    row = full
    for word in words:
        if here := places.get(word):
            row = (row + (row & here) | row & ~here) & full
    return len(reference) - row.bit_count()


# ---------------------------------------------------------------- CIDEr

_SIGMA = 6.0
_SCALE = 10.0


class _Vector(NamedTuple):
    """tf-idf weights of the n-grams of one order."""

    weights: Mapping[Ngram, float]
    norm: float


def cider_d(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each item, 0-10; the corpus' score is the mean.

    An n-gram that every item's references have weighs nothing, so a corpus of one item scores 0 whatever it says.
    """
    return _cider(predictions, references, clipped=True)


cider = cider_d  # what pycocoevalcap prints as CIDEr


def cider_plain(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The paper's CIDEr without stemming, 0-10: no clipping, no length penalty (`cider` of vrama91/cider)."""
    return _cider(predictions, references, clipped=False)


def _cider(predictions: Sequence[str], references: Sequence[Sequence[str]], clipped: bool) -> list[float]:
    pairs = [
        (prediction.split(), [text.split() for text in given]) for prediction, given in _pairs(predictions, references)
    ]
    totals = [0.0] * len(pairs)
    for order in _ORDERS:
        unseen = math.log(len(pairs))
        rarity = {ngram: unseen - math.log(count) for ngram, count in _documents(pairs, order).items()}
        for item, (words, given) in enumerate(pairs):
            ours = _vector(words, order, rarity, unseen)
            for reference in given:
                similarity = _cosine(ours, _vector(reference, order, rarity, unseen), clipped)
                if clipped:
                    similarity *= _length_penalty(words, reference)
                totals[item] += similarity / len(given)
    return [_SCALE * total / len(_ORDERS) for total in totals]


def _documents(pairs: Iterable[tuple[Sequence[str], Sequence[Sequence[str]]]], order: int) -> Counter[Ngram]:
    """In the references of how many items an n-gram occurs."""
    return Counter(ngram for _, given in pairs for ngram in {n for words in given for n in _ngrams(words, order)})


def _vector(words: Sequence[str], order: int, rarity: Mapping[Ngram, float], unseen: float) -> _Vector:
    """`unseen` is the weight of an n-gram in no reference: it enters the norm and can match nothing."""
    counts = Counter(_ngrams(words, order))
    weights = {ngram: count * rarity[ngram] for ngram, count in counts.items() if ngram in rarity}
    rest = sum(count * count for ngram, count in counts.items() if ngram not in rarity)
    return _Vector(weights, math.sqrt(math.fsum(weight * weight for weight in weights.values()) + rest * unseen**2))


def _cosine(ours: _Vector, theirs: _Vector, clipped: bool) -> float:
    if not ours.norm or not theirs.norm:
        return 0.0
    shared = ours.weights.keys() & theirs.weights.keys()
    products = (
        (min(ours.weights[n], theirs.weights[n]) if clipped else ours.weights[n]) * theirs.weights[n] for n in shared
    )
    return math.fsum(products) / (ours.norm * theirs.norm)


def _length_penalty(words: Sequence[str], reference: Sequence[str]) -> float:
    """Gaussian of the difference in length, which the original counts in pairs of words."""
    difference = max(0, len(words) - 1) - max(0, len(reference) - 1)
    return math.exp(-(difference**2) / (2 * _SIGMA**2))


# ---------------------------------------------------------------- strict


def strict_f1(prediction: str, reference: str) -> float:
    """Multiset token F1 of words and numbers."""
    return strict.strict_overlap(prediction, reference).f1
