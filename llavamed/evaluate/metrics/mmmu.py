"""MMMU (Yue et al., CVPR 2024): college exam questions, most of them multiple choice, some with open answers.

*Official* is `eval_utils.py` of the benchmark. A choice is the last letter that stands in brackets, else
between blanks, else the last option whose text occurs in an answer of more than five words, else *drawn
at random* from a generator seeded with 42 when the script starts. The draws depend on how many came
before, so items are scored together and in the script's order: subjects by name, and within one the
rows of its `output.json` as they stand. "C. left kidney" is not readable to it. An open answer is
right if the reference is a substring of it, or of its tail behind "is", "so", "answer" and the like,
or if a number in it equals the reference to two decimals. (The script means to split sentences at a
period before a capital, after lowering all letters; only lines are split.)

*Strict* takes the choice that the answer states (`choice.parse_choice`), an open answer by words and
numbers (a sentence around it, "It is 24.32", or a unit is not exact; "\\boxed{24.32}" is), and counts
what it cannot read as wrong.

The overall score is over all questions. MMMU-Med are the five subjects of "Health and Medicine".
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llavamed.evaluate.metrics import choice, strict

OFFICIAL = "mmmu_official/2"
STRICT = "mmmu_strict/3"
WHY_THEY_DIFFER = (
    "The official script draws a random option for an answer it cannot read, among them 'C. left kidney', and takes "
    "an open answer as right if the reference is part of it; the strict score reads more ways of stating a choice, "
    "counts an unread answer as wrong, and wants open answers exact."
)

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine"),
        *("Pharmacy", "Public_Health"),
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics"),
        *("Energy_and_Power", "Materials", "Mechanical_Engineering"),
    ),
}
MEDICAL = DOMAINS["Health and Medicine"]


class Item(NamedTuple):
    """`options` maps letters to texts; empty for an open question. `answer` is a letter, or the accepted answers."""

    response: str
    answer: str | Sequence[str]
    options: Mapping[str, str]


def subject(question_id: str) -> str:
    """'validation_Art_Theory_7' -> 'Art_Theory'."""
    return "_".join(question_id.split("_")[1:-1])


def _accepted(item: Item) -> list[str]:
    return [item.answer] if isinstance(item.answer, str) else list(item.answer)


# ---------------------------------------------------------------- official

_SEED = 42
_STRIPPED = (",", ".", "!", "?", ";", ":", "'")  # one after the other, each from both ends
_WORDS_FOR_TEXT = 5  # an answer of more words is searched for the options' texts


def parse_choice(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that the script reads, before it falls back on chance; None is a parse failure."""
    text = response
    for mark in _STRIPPED:
        text = text.strip(mark)
    text = f" {text} "
    places = {letter: text.rfind(f"({letter})") for letter in options if f"({letter})" in text}
    if not places:
        places = {letter: text.rfind(f" {letter} ") for letter in options if f" {letter} " in text}
    if not places and len(text.split(maxsplit=_WORDS_FOR_TEXT)) > _WORDS_FOR_TEXT:
        lowered = text.lower()
        named = {letter: option.lower() for letter, option in options.items() if option.lower() in lowered}
        places = {letter: lowered.rfind(option) for letter, option in named.items()}
    return max(places, key=lambda letter: places[letter], default=None)  # the first of equals, as numpy's argmax


_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset({":", ",", ".", "!", "?", ";", "'"})
# `(?<!\d)` is not in the original: a match never begins inside a run of digits, and saying so keeps a run of a
# million digits from being tried from each of them
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def parse_open(response: str) -> list[str | float]:
    """What the script compares of an open answer: its key phrases and every number in them, normalised."""
    phrases = _key_phrases(response)
    numbers = [found for phrase in phrases for pattern in _NUMBERS for found in pattern.findall(phrase)]
    return list(dict.fromkeys(value for text in phrases + numbers for value in _normalize(text)))


def _key_phrases(response: str) -> list[str]:
    text = response.strip().strip(".").lower()
    *lines, last = text.split("\n")
    tails = [_shortest_tail(line, _KEYS) for line in lines] + [_shortest_tail(last, (*_KEYS, "="))]
    return [tail for tail in tails if tail and tail not in _TRIVIAL] or [text]


def _shortest_tail(line: str, keys: Sequence[str]) -> str:
    """The shortest of the texts behind the last of each key; the first of equals, and an empty one gives way."""
    shortest = ""
    for key in keys:
        if key in line:
            tail = line.rpartition(key)[2].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def _normalize(text: str) -> list[str | float]:
    bare = text.strip()
    try:
        return [round(float(bare.replace(",", "")), 2)]
    except ValueError:
        lowered = bare.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def official_open(response: str, answers: Sequence[str]) -> float:
    """1.0 if an accepted answer is a substring of a phrase, or equal to a number, of the parsed answer."""
    wanted = [value for answer in answers for value in _normalize(answer)]
    texts = [value for value in wanted if isinstance(value, str)]
    for value in parse_open(response):
        if any(text in value for text in texts) if isinstance(value, str) else value in wanted:
            return 1.0
    return 0.0


def official_scores(items: Sequence[Item]) -> list[float]:
    """One 0-1 score an item. All items of the run, in the script's order: the unread ones are drawn one by one."""
    chance = random.Random(_SEED)
    scores = []
    for item in items:
        if not item.options:
            scores.append(official_open(item.response, _accepted(item)))
            continue
        letter = parse_choice(item.response, item.options) or chance.choice(list(item.options))
        scores.append(float(letter in _accepted(item)))
    return scores


# ---------------------------------------------------------------- strict

_ANSWER_IS = re.compile(r"\b(?i:answer)(?:\sis\b|\s?:)[\s:*]*")
_AROUND = " \t\n*_`"  # blanks and markdown
_BOXED = re.compile(r"\\boxed\s?\{((?:[^{}]|\{[^{}]{0,100}\}){1,200})\}")  # LaTeX, with braces once inside it


def parse_strict(item: Item) -> str | None:
    """The letter stated, or the open answer; None if there is none.

    An open answer is what the last `\\boxed{}` holds, else what follows the last "answer is" or "answer:".
    """
    if item.options:
        letters = list(item.options)
        stated = choice.parse_choice(item.response, list(item.options.values()))
        return None if stated is None else letters[choice.LETTERS.index(stated)]
    if boxed := _BOXED.findall(item.response):
        return boxed[-1].strip(_AROUND) or None
    *_, final = _ANSWER_IS.split(item.response)
    return final.strip(_AROUND) or None


def strict_score(item: Item) -> float:
    """Unread is wrong; the letter must be the answer's, an open answer the same words or number."""
    parsed = parse_strict(item)
    if parsed is None:
        return 0.0
    if item.options:
        return float(parsed in _accepted(item))
    return max((strict.strict_exact(parsed, answer) for answer in _accepted(item)), default=0.0)
