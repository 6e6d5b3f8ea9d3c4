"""An element of an article -> its text as a person reads it, and where in that text its citations stand.

Some things keep an element's text from being just the characters in it: what stands inside a paragraph without
belonging to it (a figure, a table, a footnote) must go, words that only markup keeps apart ("<title>A</title><p>B")
must not be glued, and white space is typesetting. And where a number is set on the page is part of it: 10<sup>6</sup>
is 10^6 and not 106, a fraction of 1 and 2 is 1/2 and not 12. A formula that a publisher gives as TeX alone is its TeX.

So the element is walked once and its texts gathered in a list; which of them are a citation's says where it stands.
Nothing is marked, neither in the text nor in the tree, which stays as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from typing import Any

from llavamed.corpus.safe_xml import ArticleError

# Elements whose place on the page is part of what they say.
_SHAPES = {"sup": "raised", "msup": "power", "mfrac": "fraction"}
_EXPONENT = re.compile(r"\s*[-‐‑‒–−+]?\d+(?:[.,]\d+)?\s*")
MAX_LENGTH = 1_000_000  # characters of one paragraph or caption
# Elements whose text is not part of the text around them.
APART = frozenset(
    {"fig", "fig-group", "table-wrap", "table-wrap-group", "boxed-text", "fn", "supplementary-material", "permissions"}
    | {"object-id", "alt-text", "long-desc", "tex-math", "annotation", "annotation-xml"}
)
# In which the same formula may stand in several forms.
_FORMULAS = frozenset({"alternatives", "inline-formula", "disp-formula"})
# Elements that end a word, though no white space may stand in the file.
_BREAKING = frozenset(
    {"p", "title", "subtitle", "list", "list-item", "def-list", "def-item", "def", "term", "sec", "label", "break"}
    | {"disp-formula", "disp-quote", "td", "th", "tr"}
)

# White space that XML allows beside the space; the first have all of it that is ASCII.
_FREQUENT = "\n\r\t\xa0\u200a"
_RARE = re.compile("[\x85\u1680\u2000-\u2009\u2028\u2029\u202f\u205f\u3000]")
_SEVERAL = re.compile("  +")


def name(node: Any) -> str:
    """The tag without its namespace."""
    return _local(node.tag)


@lru_cache(maxsize=4096)
def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


@lru_cache(maxsize=4096)
def _role(tag: str) -> str:
    """Whether an element's text is "apart", its borders are "breaking", its shape means something ("raised", "power",
    "fraction"), or it is only "inline"."""
    local = _local(tag)
    if local in _SHAPES:
        return _SHAPES[local]
    return "apart" if local in APART else "breaking" if local in _BREAKING else "xref" if local == "xref" else "inline"


def write_out_tex(formulas: Iterable[Any]) -> None:
    """Make TeX text where a formula has no other form in words, as where a picture stands beside it: a sentence with a
    hole says something else. Where there is MathML, that is read, and TeX is nothing; so is all but the first TeX of
    several alternatives."""
    has_words: dict[Any, bool] = {}
    known: dict[Any, bool] = {}  # of elements: formulas may stand in each other, and each is looked through once
    for tex in formulas:
        if (formula := tex.getparent()) not in has_words:
            forms = formula if name(formula) in _FORMULAS else ()
            has_words[formula] = any(_has_words(form, known) for form in forms if name(form) not in ("label", *APART))
        body = (tex.text or "").rpartition(r"\begin{document}")[2].partition(r"\end{document}")[0]
        tex.tag, tex.text = "styled-content", None if has_words[formula] else body
        has_words[formula] |= name(formula) == "alternatives" and bool(body.strip())


def _has_words(element: Any, known: dict[Any, bool]) -> bool:
    """Whether anything is left of it in the text around it."""
    if element not in known:
        known[element] = _role(element.tag) != "apart" and (
            bool((element.text or "").strip())
            or any(_has_words(child, known) or (child.tail or "").strip() for child in element)
        )
    return known[element]


def text(element: Any, without_xrefs: bool = False) -> str:
    """The plain text of an element, with single spaces."""
    if len(element) == 0:
        return " ".join((element.text or "").split())
    pieces = [element.text or ""]
    _gather(element, pieces, None if without_xrefs else {})
    return _in_order(element, "".join(pieces))


def text_and_places(element: Any, xrefs: Iterable[Any]) -> tuple[str, list[tuple[int, int]]]:
    """The plain text of an element, and (start, end) in it of each of `xrefs`, elements in it.

    A place that would begin or end in white space begins with the next word, or ends with the one before.
    """
    pieces = [element.text or ""]
    found: dict[Any, tuple[int, int]] = dict.fromkeys(xrefs, (0, 0))  # the first of its pieces, and the next behind
    _gather(element, pieces, found)
    raw = "".join(pieces)
    plain = _in_order(element, raw)
    offsets = list(accumulate(map(len, pieces), initial=0))
    spans = [(offsets[first], offsets[behind]) for first, behind in found.values()]
    if len(plain) < len(raw):
        moved = _moved(raw, {offset for span in spans for offset in span})
        spans = [(moved[start], moved[end]) for start, end in spans]
    places = []
    for start, end in spans:
        start += plain[start : start + 1] == " "
        end -= plain[end - 1 : end] == " "
        places.append((start, max(start, end)))
    return plain, places


def _gather(children: Iterable[Any], pieces: list[str], places: dict[Any, tuple[int, int]] | None) -> None:
    """Append the texts in elements and behind each to `pieces`, none of them empty. `places` gets which of these are of
    the citations that are its keys; where it is None all citations are left out."""
    append = pieces.append
    for child in children:
        role = _role(child.tag)
        if role == "inline" or (role == "xref" and places is not None and child not in places):  # most of them
            if inner := child.text:
                append(inner)
            if len(child):
                _gather(child, pieces, places)
        elif role == "breaking":
            append(" ")
            if inner := child.text:
                append(inner)
            _gather(child, pieces, places)
            append(" ")
        elif role == "raised":
            if inner := child.text:
                append(_power(child, pieces) + inner)
            _gather(child, pieces, places)
        elif role == "power":
            for number, part in enumerate(child):
                if number and (sign := _power(part, pieces)):
                    append(sign)
                _gather([part], pieces, places)
        elif role == "fraction":
            for number, part in enumerate(child):
                left, right = "()" if len(part) > 1 else ("", "")
                if opening := f"/{left}" if number else left:
                    append(opening)
                _gather([part], pieces, places)
                if right:
                    append(right)
        elif role == "apart" or places is None:
            append(" ")
        else:
            first = len(pieces)
            if inner := child.text:
                append(inner)
            _gather(child, pieces, places)
            places[child] = first, len(pieces)
        if tail := child.tail:
            append(tail)


def _power(raised: Any, pieces: list[str]) -> str:
    """ "^" before an exponent of a number, as "10<sup>6</sup>" is not 106; nothing before an ordinal or a note."""
    if len(raised) or not _EXPONENT.fullmatch(raised.text or ""):
        return ""
    return "^" if pieces[-1][-1:].isdigit() else ""


def _in_order(element: Any, raw: str) -> str:
    """The text with single spaces, in half the time of `split` as nearly all of its white space is such."""
    for space in _FREQUENT:
        raw = raw.replace(space, " ")
    if not (raw.isascii() or raw.isprintable()):  # as of all white space only the space is
        raw = _RARE.sub(" ", raw)
    if "  " in raw:
        raw = _SEVERAL.sub(" ", raw)
    raw = raw.strip(" ")
    if len(raw) > MAX_LENGTH:
        raise ArticleError(f"a <{name(element)}> of {len(raw):,} characters; leave it out", "xml_oversized")
    return raw


def _moved(raw: str, offsets: Iterable[int]) -> dict[int, int]:
    """Where each of these offsets is once the text is in order."""
    moved, at, length, spaced = {}, 0, 0, True
    for offset in sorted(offsets):
        if part := raw[at:offset]:
            if words := " ".join(part.split()):
                length += len(words) + (length > 0 and (spaced or part[0].isspace()))
            spaced = part[-1].isspace()
        moved[offset], at = length, offset
    return moved
