"""Where the sentences of a scientific paragraph begin and end.

The one hard thing is the full stop that ends nothing: "Fig. 2", "et al.", "e.g.", "J. R. Smith",
"3.5 cm", "E. coli". A stop ends a sentence only if a space and a possible opening follow it. If the
word before it is in the table of abbreviations or is an initial, the opening must also be a word
that opens sentences and is nobody's name: "... chronic hepatitis C. The patient ...".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Lower case, without the last stop.
_ABBREVIATIONS = {
    "fig", "figs", "eq", "eqs", "eqn", "ref", "refs", "tab", "suppl", "supp", "vol", "no", "nos", "sect", "ch",
    "chap", "eds", "pl", "pls", "pp", "al", "e.g", "i.e", "cf", "viz", "vs", "ca", "approx", "resp", "dr", "prof",
    "mr", "mrs", "ms", "st", "jr", "sr", "inc", "ltd", "co", "corp", "dept", "univ", "assoc", "int", "natl", "sp",
    "spp", "subsp", "var", "incl", "excl",
}  # fmt: skip
_OPENERS = {
    "all", "although", "an", "and", "as", "at", "after", "both", "but", "by", "during", "each", "for", "from",
    "furthermore", "he", "here", "his", "however", "if", "in", "it", "its", "moreover", "most", "note", "of", "on",
    "once", "one", "our", "she", "since", "some", "such", "that", "the", "their", "then", "there", "therefore",
    "these", "they", "this", "those", "thus", "to", "two", "until", "we", "when", "where", "whereas", "while",
    "with",
}  # fmt: skip

# A run of stops, what may close after it (quotes, brackets, a superscript citation that lost its raising), then space
# and something that can open a sentence. That it begins with characters, and not with a repeat or a look behind, lets
# `re` skip to them: four times as fast, and again so with one character alone, which is all that most paragraphs have.
# Its groups are the stop and the word that opens.
_STOP, _FULL_STOP = (
    re.compile(
        rf"""({first}(?<![.!?][.!?])[.!?]*+)"""
        r"""(?:["'”’)\]]+|\[\d[\d, –-]*\]|(?<=[a-z)\]]\.)\d{1,3}(?:[,–-]\d{1,3})*)?\s+"""
        r"""(?=["'“‘(\[]*([A-ZÀ-ÖØ-ÞΑ-Ω0-9]\w*))"""
    )
    for first in ("[.!?]", r"\.")
)
_REACH = 300  # characters; longer than most sentences
_INITIAL = re.compile(r"(?:^|[^\w.])(?:\w\.)*[^\W\d_]$")
_NO_WORD = re.compile(r"[^\w.]")


def spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence in `text`, whose white space is single spaces between words; those are left out."""
    return list(since(text, 0)) if text else []


def since(text: str, at: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the sentence that the character at `at` stands in, and of those behind it; of what is before it
    no more is read than need be."""
    reach, start = _REACH, 0
    while not start and at > reach:
        for begin in _begins(text, at - reach):
            if begin > at:
                break
            start = begin
        reach *= 4
    for begin in _begins(text, start):
        if begin > at:
            yield start, begin - 1
        start = begin
    yield start, len(text)


def _begins(text: str, first: int) -> Iterator[int]:
    """Where sentences begin, but for those whose stop before stands before `first`."""
    pattern = _STOP if "!" in text or "?" in text else _FULL_STOP
    for match in pattern.finditer(text, first):
        at, (stop, following) = match.start(), match.groups()
        if stop != "." or following.lower() in _OPENERS or not _is_short(text[text.rfind(" ", 0, at) + 1 : at]):
            yield match.end()


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in spans(text)]


def _is_short(word: str) -> bool:
    """An abbreviation or an initial, also when glued to what stands before it: "(e.g", "Fig.1,Tab", "J.R"."""
    word = word[-40:].lower().lstrip("([{\"'“‘")
    if word in _ABBREVIATIONS:
        return True
    if word.isalnum():
        return len(word) == 1 and word.isalpha()
    return _INITIAL.search(word) is not None or _NO_WORD.split(word)[-1] in _ABBREVIATIONS
