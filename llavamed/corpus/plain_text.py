"""An element of an article -> its text as a person reads it, and where in that text its citations stand.

Three things keep an element's text from being just the characters in it: what stands inside a paragraph without
belonging to it (a figure, a table, a footnote) must go, words that only markup keeps apart ("<title>A</title><p>B")
must not be glued, and white space is typesetting.

Walking the tree in Python to see to that takes several times as long as parsing it did. So the tree is marked instead:
the few elements that matter get a private character before and after their content, the whole
element is turned to text in C, and one regular expression reads the marks and takes them out. The marks are
four code points of Unicode's private use area. A file that has them itself is noticed by their number
(`MarksInText`); `clear` takes them out. The tree belongs to the reader and is thrown away after.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lxml import etree

from llavamed.corpus.safe_xml import ArticleError

MAX_LENGTH = 1_000_000  # characters of one paragraph or caption
# Elements whose text is not part of the text around them.
APART = frozenset(
    {"fig", "fig-group", "table-wrap", "table-wrap-group", "boxed-text", "fn", "supplementary-material", "permissions"}
    | {"object-id", "alt-text", "long-desc", "tex-math", "annotation", "annotation-xml"}
)
# Elements that end a word, though no white space may stand in the file.
_BREAKING = frozenset(
    {"p", "title", "subtitle", "list", "list-item", "def-list", "def-item", "def", "term", "sec", "label", "break"}
    | {"disp-formula", "disp-quote", "td", "th", "tr"}
)
_OPEN, _CLOSE, _OUT, _BACK = "\uefa0", "\uefa1", "\uefa2", "\uefa3"  # a citation begins, ends; text apart begins, ends
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}{_OUT}{_BACK}]")
_APART_TEXT = re.compile(f"{_OUT}[^{_OUT}{_BACK}]*+{_BACK}")


class MarksInText(Exception):
    """The file has our private characters in its text: `clear` the tree and read it again."""


def name(node: Any) -> str:
    """The tag without its namespace."""
    return _local(node.tag)


@lru_cache(maxsize=4096)
def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


@lru_cache(maxsize=4096)
def _role(tag: str) -> str:
    """Whether an element's text is "apart", its borders are "breaking", or it is only "inline"."""
    local = _local(tag)
    return "apart" if local in APART else "breaking" if local in _BREAKING else "xref" if local == "xref" else "inline"


def clear(root: Any) -> None:
    """Take the marks out of a tree, whoever put them there."""
    for node in root.iter():
        node.text = _MARKS.sub("", node.text or "")
        node.tail = _MARKS.sub("", node.tail or "")


def text(element: Any, without_xrefs: bool = False) -> str:
    """The plain text of an element, with single spaces."""
    if len(element) == 0:
        return " ".join((element.text or "").split())
    return " ".join(_raw(element, without_xrefs).split())


def text_and_places(element: Any, xrefs: Sequence[Any]) -> tuple[str, list[tuple[int, int]]]:
    """The plain text of an element, and (start, end) in it of each of `xrefs`, elements in it in document order.

    A place that would begin or end in white space begins with the next word, or ends with the one before.
    """
    for xref in xrefs:
        if len(xref) == 0:
            xref.text = f"{_OPEN}{xref.text or ''}{_CLOSE}"
        else:
            xref.text = _OPEN + (xref.text or "")
            xref[-1].tail = (xref[-1].tail or "") + _CLOSE
    raw = _raw(element)
    for xref in xrefs:  # a paragraph around this one may be read later
        xref.text = xref.text.replace(_OPEN, "").replace(_CLOSE, "")
        if len(xref):
            xref[-1].tail = xref[-1].tail.replace(_CLOSE, "")
    if raw.count(_OPEN) != len(xrefs) or raw.count(_CLOSE) != len(xrefs):
        raise MarksInText
    marked = " ".join(raw.split())
    while f"{_OPEN} " in marked or f" {_CLOSE}" in marked:
        marked = " ".join(marked.replace(f"{_OPEN} ", f" {_OPEN}").replace(f" {_CLOSE}", f"{_CLOSE} ").split())
    return _take_out(marked)


def _take_out(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """Text with marks -> without, and where the citations stand then."""
    first, *rest = marked.split(_OPEN)
    plain, places, length = [first], [], len(first)
    for piece in rest:
        inner, _, after = piece.partition(_CLOSE)
        if (
            after[:1] == " " and not inner and plain[-1][-1:] in {" ", ""}
        ):  # the spaces on both sides of an empty citation
            after = after[1:]
        places.append((length, length + len(inner)))
        plain += (inner, after)
        length += len(inner) + len(after)
    whole = "".join(plain).rstrip()
    last = len(whole)
    return whole, places if length == last else [(min(start, last), min(end, last)) for start, end in places]


def _raw(element: Any, without_xrefs: bool = False) -> str:
    apart = []
    for node in element.iterdescendants():  # all of them: to have lxml filter by thirty names takes longer
        role = _role(node.tag)
        if role == "breaking":
            node.text = f" {node.text or ''}"
            node.tail = f" {node.tail or ''}"
        elif role == "apart" or (role == "xref" and without_xrefs):
            apart.append((node, node.text, node.tail))
            node.text = f"{_OUT}{node.text or ''}"
            node.tail = f"{_BACK}{node.tail or ''}"
    raw: str = etree.tostring(element, encoding="unicode", method="text", with_tail=False)
    if len(raw) > MAX_LENGTH:
        raise ArticleError(f"a <{name(element)}> of {len(raw):,} characters; leave it out", "xml_oversized")
    if raw.count(_OUT) != len(apart) or raw.count(_BACK) != len(apart):
        raise MarksInText
    for node, inner, after in apart:  # an element around this one may be read later
        node.text, node.tail = inner, after
    while _OUT in raw:
        raw, found = _APART_TEXT.subn(" ", raw)
        if not found:
            raise MarksInText
    return raw
