"""What a strict score counts in every family: words and numbers, never pieces of words.

Official scorers differ from one another and forgive different things. The strict ones beside them share
the rules of this module: an answer is its words, without letter case, punctuation and articles; a
yes/no question is judged by the first whole word "yes" or "no", a pair of both ("yes or no") being what
was asked and no answer; with another option set by the one option that the answer names; a number by its
value; a free answer by true exact match and by multiset token precision, recall and F1 (as in SQuAD,
Rajpurkar et al., EMNLP 2016). An answer that cannot be parsed is wrong.

The hard thing is the letter A, which is a choice in "The answer is A" and an article in "A mass": an
article stands before a noun, and is a capital only where a sentence begins.

Every function takes time linear in the answer's length: a model that repeats itself for ten megabytes
is scored in seconds.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llavamed.evaluate.metrics.vqa_words import ARTICLES, NUMBERS


class Overlap(NamedTuple):
    """Token overlap of one answer, each 0-1."""

    precision: float
    recall: float
    f1: float


NO_OVERLAP = Overlap(0.0, 0.0, 0.0)
WHOLE = Overlap(1.0, 1.0, 1.0)
YES_NO = frozenset({"yes", "no"})

# a Chinese character is a word, being what questions in Chinese are answered and options told apart by
_WORD = re.compile(r"\d+(?:\.\d+)?|[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:'[^\W_\u3400-\u9fff]+)*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_NUMBER = re.compile(r"([+\-−]?)[$€£]?(\d+(?:\.\d+)?|\.\d+)%?\.?")
_MARK = "ǂ"  # a letter that no report is written in, for an A that is no article
_NAMED_A = re.compile(r"\bA\b(?=[.,;:!?)\]}/+])")
# what tells '>5' from '<5', 'HER2+' from 'HER2-' and '-5 cm' from '5 cm', but is no hyphen and no dash
_SIGN = re.compile(r"[<>≤≥]|(?<![\w-])[+\-−](?=[\d.])|(?<=\w)[+\-−](?=\s*(?:\Z|[,;.)]))")
_LONGEST_NUMBER = 400  # characters; a double has at most 309 digits before the point


def words(text: str) -> list[str]:
    """Words and numbers in lower case: 'The X-ray: 10,000 cells' -> ['the', 'x', 'ray', '10000', 'cells']."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return _WORD.findall(_THOUSANDS.sub("", folded))


def strict_tokens(text: str) -> list[str]:
    """Words without articles, counts as digits: 'Ten of the x-rays' -> ['10', 'of', 'x', 'rays'].

    An article stands before a noun: what is last is none ('Hepatitis A'), nor is a capital before a mark ('type A, B').
    """
    mapped = [NUMBERS.get(word, word) for word in words(_NAMED_A.sub(f" {_MARK} ", text))]
    kept = [word for word in mapped[:-1] if word not in ARTICLES] + mapped[-1:]
    return ["a" if word == _MARK else word for word in kept]


def number(text: str) -> float | None:
    """The value of a text that is one number or count word, sign and thousands commas read, currency and % ignored."""
    bare = text.strip()
    bare = NUMBERS.get(bare.casefold(), bare)
    if len(bare) > _LONGEST_NUMBER:
        return None
    found = _NUMBER.fullmatch(_THOUSANDS.sub("", bare))
    return None if found is None else float(found[2]) * (-1 if found[1] in ("-", "−") else 1)


def strict_exact(prediction: str, reference: str) -> float:
    """1.0 if both are the same words with the same signs, or the same number ('3.50' is '3.5', '-5' is not '5')."""
    ours, theirs = number(prediction), number(reference)
    if ours is not None and theirs is not None:
        return float(math.isclose(ours, theirs, rel_tol=1e-9))
    tokens = strict_tokens(prediction)
    if tokens != strict_tokens(reference):
        return 0.0
    if not tokens:  # "+" is not "-"
        return float(prediction.strip() == reference.strip())
    return float(_SIGN.findall(prediction) == _SIGN.findall(reference))


def strict_overlap(prediction: str, reference: str) -> Overlap:
    """Multiset token overlap as in SQuAD: a word counts as often as both sides have it; whole on an exact match, as of
    '5.0' and '5'."""
    if strict_exact(prediction, reference):
        return WHOLE
    pred, ref = Counter(strict_tokens(prediction)), Counter(strict_tokens(reference))
    shared = (pred & ref).total()
    if not shared:
        return NO_OVERLAP
    precision, recall = shared / pred.total(), shared / ref.total()
    return Overlap(precision, recall, 2 * precision * recall / (precision + recall))


# "yes/no", "yes or no", "neither yes nor no", and "[yes, no]" where nothing follows; "Yes, no mass is seen" is a yes,
# as are two sentences of which it is the first
_YES_AND_NO = re.compile(
    r"\b(?:yes\b\W{0,6}(?:[/|]|\b(?:n?or|and)\b)\W{0,6}no|no\b\W{0,6}(?:[/|]|\b(?:n?or|and)\b)\W{0,6}yes)\b"
    r"|\b(?:yes\b[^\w.!?\n]{1,6}no|no\b[^\w.!?\n]{1,6}yes)\b(?=[^\w\n]{0,6}(?:\Z|\n)|['\"’”]?[\])}])",
    re.IGNORECASE,
)


def parse_yes_no(prediction: str) -> str | None:
    """The first whole word "yes" or "no" that is not one of a pair; None if there is none ("normal", "yes or no")."""
    return next((word for word in words(_YES_AND_NO.sub(" ", prediction)) if word in YES_NO), None)


def is_yes_no(reference: str, options: Sequence[str] = ()) -> bool:
    """A yes/no question: those are its options, or its options are unknown and its reference is one of the two."""
    if options:
        return {option.casefold() for option in options} == YES_NO
    return strict_tokens(reference) in (["yes"], ["no"])


# where the word "a" is a letter: an article stands before a noun, and is a capital only where a sentence begins
_LETTER_A = re.compile(r"\b[aA]\b(?!['’-]\w|\s+\w)|(?<=[^.!?\s]\s)A\b(?!['’-]\w)|\bA\b(?=\s+(?:is|and|or)\b)")


def parse_option(prediction: str, options: Sequence[str]) -> str | None:
    """The one option that the answer is, or else names as whole words; None if it names none or several.

    A longer option hides a shorter one inside it: "left lung" names "left lung", not also "lung". Options
    of the same words ("-5" and "5") cannot be told apart by words, so naming them names none.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for option in options:
        alike.setdefault(tuple(strict_tokens(option)), []).append(option)
    answer = _words_with_letter_a(prediction) if ("a",) in alike else strict_tokens(prediction)
    named = [tuple(answer)] if tuple(answer) in alike else _named(answer, alike)
    return alike[named[0]][0] if len(named) == 1 and len(alike[named[0]]) == 1 else None


def _named(answer: list[str], wanted: dict[tuple[str, ...], list[str]]) -> list[tuple[str, ...]]:
    """The word sequences of `wanted` that occur in `answer`, longest first; each hides what it covers."""
    named = []
    for phrase in sorted(filter(None, wanted), key=len, reverse=True):
        for start in list(_starts(answer, phrase)):
            answer[start : start + len(phrase)] = [""] * len(phrase)
            if phrase not in named:
                named.append(phrase)
    return named


def _starts(answer: list[str], phrase: tuple[str, ...]) -> Iterator[int]:
    at = -1
    while True:
        try:
            at = answer.index(phrase[0], at + 1)
        except ValueError:
            return
        if tuple(answer[at : at + len(phrase)]) == phrase:
            yield at


def _words_with_letter_a(prediction: str) -> list[str]:
    return strict_tokens(_LETTER_A.sub(f" {_MARK} ", prediction))
