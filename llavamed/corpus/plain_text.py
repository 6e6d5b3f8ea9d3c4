"""An element of an article -> its text as a person reads it, and where in that text its citations stand.

Some things keep an element's text from being just the characters in it: what stands inside a paragraph without
belonging to it (a figure, a table, a footnote) must go, words that only markup keeps apart ("<title>A</title><p>B")
must not be glued, and white space is typesetting. And where a number is set on the page is part of it: 10<sup>6</sup>
is 10^6 and not 106, a fraction of 1 and 2 is 1/2 and not 12. A formula that a publisher gives as TeX alone is its TeX.

So the element is walked once and its texts gathered. Where a citation begins or ends, what was gathered so far gets its
white space in order and is measured: nothing is marked, neither in the text nor in the tree, which stays as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
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
# All white space that XML allows, but for the space; ASCII first.
_SPACES = "\t\n\r\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


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
    hole says something else. Where there is MathML, that is read, and TeX is nothing."""
    has_words: dict[Any, bool] = {}  # each formula is looked through once
    for tex in formulas:
        if (formula := tex.getparent()) not in has_words:
            forms = formula if name(formula) in _FORMULAS else ()
            others = (form for form in forms if name(form) not in ("label", "tex-math"))
            has_words[formula] = any("".join(form.itertext()).strip() for form in others)
        body = (tex.text or "").rpartition(r"\begin{document}")[2].partition(r"\end{document}")[0]
        tex.tag, tex.text = "styled-content", None if has_words[formula] else body


def text(element: Any, without_xrefs: bool = False) -> str:
    """The plain text of an element, with single spaces."""
    if len(element) == 0:
        return " ".join((element.text or "").split())
    return _Text(element, None if without_xrefs else {}).plain()


def text_and_places(element: Any, xrefs: Iterable[Any]) -> tuple[str, list[tuple[int, int]]]:
    """The plain text of an element, and (start, end) in it of each of `xrefs`, elements in it.

    A place that would begin or end in white space begins with the next word, or ends with the one before.
    """
    found: dict[Any, tuple[int, int]] = dict.fromkeys(xrefs, (0, 0))
    plain = _Text(element, found).plain()
    last, places = len(plain), []
    for start, end in found.values():
        start, end = min(start, last), min(end, last)
        start += plain[start : start + 1] == " "
        end -= plain[end - 1 : end] == " "
        places.append((start, max(start, end)))
    return plain, places


class _Text:
    """The texts in an element in the order of the file. `places` gets the (start, end) of the citations that are its
    keys; where it is None all citations are left out."""

    def __init__(self, element: Any, places: dict[Any, tuple[int, int]] | None) -> None:
        self.settled: list[str] = []  # with single spaces
        self.length = 0  # of these
        self.pieces: list[str] = []  # what follows, as it stands in the file
        self.places = places
        if inner := element.text:
            self.pieces.append(inner)
        self.gather(element)
        self.settle()
        if self.length > MAX_LENGTH:
            message = f"a <{name(element)}> of {self.length:,} characters; leave it out"
            raise ArticleError(message, "xml_oversized")

    def gather(self, children: Iterable[Any]) -> None:
        pieces, places = self.pieces, self.places
        for child in children:
            role = _role(child.tag)
            if role == "inline" or (role == "xref" and places is not None and child not in places):  # most of them
                if inner := child.text:
                    pieces.append(inner)
                if len(child):
                    self.gather(child)
            elif role == "breaking":
                pieces += (" ", child.text or "")
                self.gather(child)
                pieces.append(" ")
            elif role == "raised":
                pieces += (self.power(child), child.text or "")
                self.gather(child)
            elif role == "power":
                for number, part in enumerate(child):
                    pieces.append(self.power(part) if number else "")
                    self.gather([part])
            elif role == "fraction":
                for number, part in enumerate(child):
                    pieces.append("/(" if number and len(part) > 1 else "/" if number else "(" if len(part) > 1 else "")
                    self.gather([part])
                    pieces.append(")" if len(part) > 1 else "")
            elif role == "apart" or places is None:
                pieces.append(" ")
            else:
                start = self.settle()
                if inner := child.text:
                    pieces.append(inner)
                self.gather(child)
                places[child] = start, self.settle()
            if tail := child.tail:
                pieces.append(tail)

    def power(self, raised: Any) -> str:
        """ "^" before an exponent of a number, as "10<sup>6</sup>" is not 106; nothing before an ordinal or a note."""
        if len(raised) or not _EXPONENT.fullmatch(raised.text or ""):
            return ""
        before = next((piece[-1] for piece in reversed((*self.settled[-1:], *self.pieces[-8:])) if piece), "")
        return "^" if before.isdigit() else ""

    def settle(self) -> int:
        """Put white space in order up to here; the length of the text so far."""
        part = _squeezed("".join(self.pieces))
        self.pieces.clear()
        if part[:1] == " " and (not self.settled or self.settled[-1][-1] == " "):
            part = part[1:]
        if part:
            self.settled.append(part)
            self.length += len(part)
        return self.length

    def plain(self) -> str:
        return "".join(self.settled).rstrip(" ")


def _squeezed(raw: str) -> str:
    """Every run of white space as one space, several times as fast as `split` where nearly all are single spaces."""
    for space in _SPACES[: 3 if raw.isascii() else None]:
        if space in raw:
            raw = raw.replace(space, " ")
    while "  " in raw:
        raw = raw.replace("  ", " ")
    return raw
