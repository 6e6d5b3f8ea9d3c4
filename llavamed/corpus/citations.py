"""The citations of an article's figures: which sentences of the running text speak of which figure.

A citation is an `<xref>` whose `rid` names a figure, however deeply it sits in bold, italic or superscript. The hard
things are those that no `rid` says:

- "Figs. 1-3" cites figure 2 as well, whether both ends are linked, one, or the whole in one link; so does "Figs. 1, 2";
- a letter behind the number names panels, inside the link or outside of it ("Fig. 4A, C-E");
- a `rid` may name the group around a figure or a part of it, several figures at once, or nothing that exists: then
  the number in the text may still say which figure is meant, and if not, the citation is reported with its text;
- ids of a sub-article (a reply, a decision letter) are its own;
- what stands inside a figure, its caption above all, is no mention of anything: a mention is running text.

Every `<xref>` to a figure is counted in `Citations.total` and is either resolved or in `unresolved`.

To find sentences, panels and ranges, a paragraph is turned once to plain text with the places of its citations; all
else is done on that string.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from lxml import etree

from llavamed.corpus import plain_text, sentences
from llavamed.corpus.plain_text import name
from llavamed.corpus.safe_xml import ArticleError
from llavamed.records import Mention

_FIGURES = frozenset({"fig", "fig-group"})
SUB_ARTICLES = frozenset({"sub-article", "response"})
_PARAGRAPHS = frozenset({"p", "title", "subtitle", "td", "th", "term", "attrib", "verse-line", "speech"})
_BLOCKS = _PARAGRAPHS | plain_text.APART  # whose text is read as one
_CELLS = frozenset({"td", "th"})
_FIGURE_TYPES = frozenset({"fig", "figure"})
OTHER_TYPES = frozenset({"bibr", "aff", "table", "table-fn", "disp-formula", "fn", "corresp"})  # never a figure's
# What a section without a title of its own is called.
_SECTIONS = {
    "sec": "",
    "abstract": "Abstract",
    "trans-abstract": "Abstract",
    "app": "Appendix",
    "ack": "Acknowledgements",
}

_DASH = r"(?:[-‐‑‒–—−~]|to|through|thru)"
_BETWEEN_RANGE = re.compile(rf"\s*[)\]]?\s*{_DASH}\s*[(\[]?\s*", re.IGNORECASE)
_NUMBER_RANGE = re.compile(r"\b([A-Z]?)(\d{1,9})\s*(?:[-‐‑‒–—−]|to|through)\s*\1(\d{1,9})\b")
_NUMBER_LIST = re.compile(r"\b([A-Z]?)(\d+)[A-Za-z]?(?:\s*(?:,|;|&|and|,\s*and)\s*\1\d+[A-Za-z]?(?![\d.]))+(?!\w)")
_OPEN_RANGE = re.compile(r"\s?[-‐‑‒–—−]\s?(\d{1,9})(?!\w|%|\.\d)")
_LABEL_NUMBER = re.compile(r"(?:[^\W\d_]{2,}\.?\s*)?([A-Z]?)(\d{1,9})(?!\d)[.:]?")
_LETTER = r"[A-Za-z](?![A-Za-z])[′″']*"
_AND = r"\s*(?:,\s*and\b|,|;|/|and\b|&|[-‐‑‒–—−]|to\b)\s*"
_AGAIN = r"(?:\(|(?:(?:Figs?|Figures?)\.?\s*)?\d+\s?\(?)?"  # "Figure 4C, 4F": the number repeated before a letter
_LETTERS = rf"{_LETTER}(?:{_AND}{_AGAIN}{_LETTER}\)?)*"
_PANELS_AFTER_NUMBER = re.compile(rf"\d\s?\(?({_LETTERS})")
_PANELS_ALONE = re.compile(rf"\(?({_LETTERS})\)?")
_PANELS_GLUED = re.compile(rf"({_LETTERS})(?![\w])")
_CITING_WORD = re.compile(
    r"\b(?:figs?|figures?|tabs?|tables?|panels?|refs?|references?|see|also|and|or|to|in)\b", re.IGNORECASE
)
# Each mention carries its paragraph, so a long one that cites often would be written as its square.
MOST_WRITTEN = 50_000_000  # characters; an article of 242 citations has a third of a million
_GLUED_LENGTH = 80  # characters behind a link that may name its panels

_IDS = etree.XPath("descendant-or-self::*/@id", smart_strings=False)


@dataclass(frozen=True)
class Unresolved:
    """A citation of a figure that is not in the file: the id it names and the words of the link."""

    rid: str
    text: str


@dataclass(frozen=True)
class Citations:
    """`mentions` has one list per figure; `total` counts every `<xref>` to a figure, captions' own included; `bare`
    the mentions dropped because they say nothing (a table cell that holds "Fig. 5" and no more)."""

    mentions: list[list[Mention]]
    total: int
    unresolved: tuple[Unresolved, ...]
    bare: int


class _Place(NamedTuple):
    """Where a paragraph stands: the title of its section, and what it is inside of."""

    section: str
    in_table: bool
    in_figure: bool


@dataclass
class _Citation:
    """One `<xref>` in a paragraph's plain text, and the figures (by position) that it names."""

    start: int
    end: int
    figures: list[int]


@dataclass
class _Paragraph:
    text: str
    section: str
    in_table: bool
    citations: list[_Citation] = field(default_factory=list)

    @property
    def bare(self) -> bool:
        """A table cell that holds "See Fig. 5 [23]" and no more says nothing about figure 5, wherever the link
        begins."""
        if not self.in_table:
            return False
        rest = list(self.text)
        for citation in self.citations:
            rest[citation.start : citation.end] = " " * (citation.end - citation.start)
        return re.search(r"[^\W\d_]{2}", _CITING_WORD.sub(" ", "".join(rest))) is None


@dataclass
class _Index:
    """Who is who among the figures: by id within a sub-article, by id anywhere, by the number in the label."""

    scoped: dict[tuple[Any, str], list[int]]
    anywhere: dict[str, list[int]]
    numbers: list[tuple[str, int] | None]
    series: dict[tuple[Any, str], dict[int, list[int]]]  # by sub-article and series, number -> figures
    scopes: list[Any]
    nameless: list[bool]

    def named(self, scope: Any, rid: str) -> tuple[list[int], list[str]]:
        """The figures that a rid names, and those of its ids that nothing has."""
        found: dict[int, None] = {}
        unknown = []
        for one in rid.split() or [""]:
            if known := self.scoped.get((scope, one)) or self.anywhere.get(one):
                found |= dict.fromkeys(known)
            else:
                unknown.append(one)
        return list(found), unknown

    def numbered(self, like: int, numbers: range | tuple[int, ...]) -> list[int]:
        """Figures of the same sub-article and series ("S1", "1") as `like` with these numbers."""
        if (key := self.numbers[like]) is None:
            return []
        found = self.series[self.scopes[like], key[0]]
        few = numbers if len(numbers) < len(found) else [number for number in found if number in numbers]
        return sorted({i for number in few for i in found.get(number, ())})


def find(figures: list[Any], labels: list[str], xrefs: list[Any], has_sub_articles: bool) -> Citations:
    """The citations of `figures` (`<fig>` elements with their labels as text) among the `xrefs` of an article that are
    not of `OTHER_TYPES`."""
    index = _index(figures, labels, has_sub_articles)
    total = bare = written = 0
    unresolved: list[Unresolved] = []
    blocks: dict[Any, list[tuple[Any, list[int]]]] = defaultdict(list)
    meant: dict[tuple[Any, str], tuple[list[int], list[str]]] = {}  # by sub-article and rid
    for xref in xrefs:
        rid, says_figure = xref.get("rid", ""), xref.get("ref-type", "").lower() in _FIGURE_TYPES
        if not says_figure and rid not in index.anywhere and " " not in rid:
            continue
        scope = sub_article(xref) if has_sub_articles else None
        if (scope, rid) not in meant:
            meant[scope, rid] = index.named(scope, rid)
        named, unknown = meant[scope, rid]
        if not named and not says_figure:
            continue
        total += 1
        if not named and (named := _by_number(index, scope, plain_text.text(xref))):
            unknown = []
        if unknown and says_figure:
            unresolved += [Unresolved(one, plain_text.text(xref)) for one in unknown]
        if named:
            blocks[_block(xref)].append((xref, named))
    found: list[list[Mention]] = [[] for _ in figures]
    places: dict[Any, _Place] = {}
    for block, cited in blocks.items():
        place, tag = _place(block.getparent(), places), name(block)
        if place.in_figure or tag in _FIGURES:
            continue
        text, spans = plain_text.text_and_places(block, [xref for xref, _ in cited])
        citations = [_Citation(*span, named) for span, (_, named) in zip(spans, cited, strict=True)]
        paragraph = _Paragraph(text, place.section, place.in_table or tag in _CELLS, citations)
        mentions = _mentions(paragraph, index) if text else []
        if paragraph.bare:
            bare += len(mentions)
            continue
        for i, mention in mentions:
            found[i].append(mention)
            written += len(mention.sentence) + len(mention.paragraph)
        if written > MOST_WRITTEN:
            message = f"mentions of more than {MOST_WRITTEN:,} characters, each with its paragraph; leave it out"
            raise ArticleError(message, "mentions_bomb")
    return Citations(found, total, tuple(unresolved), bare)


def _index(figures: list[Any], labels: list[str], has_sub_articles: bool) -> _Index:
    scopes = [sub_article(figure) if has_sub_articles else None for figure in figures]
    scoped: dict[tuple[Any, str], list[int]] = defaultdict(list)
    anywhere: dict[str, list[int]] = defaultdict(list)
    for i, figure in enumerate(figures):
        # a citation may name the figure, something in it (one graphic, the caption), or the group around it
        named = _IDS(figure)
        if name(group := figure.getparent()) == "fig-group" and group.get("id"):
            named.append(group.get("id"))
        for rid in dict.fromkeys(named):
            scoped[scopes[i], rid].append(i)
            anywhere[rid].append(i)
    matches = [_LABEL_NUMBER.fullmatch(label) for label in labels]
    numbers = [(m[1], int(m[2])) if m else None for m in matches]
    series: dict[tuple[Any, str], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, number in enumerate(numbers):
        if number:
            series[scopes[i], number[0]][number[1]].append(i)
    return _Index(
        dict(scoped),
        dict(anywhere),
        numbers,
        series,
        scopes,
        [not figure.get("id") for figure in figures],
    )


def sub_article(element: Any) -> Any | None:
    """The reply or decision letter that an element stands in, or None in the article itself."""
    return next((a for a in element.iterancestors() if name(a) in SUB_ARTICLES), None)


def _block(xref: Any) -> Any:
    """The nearest element around a citation whose text is read as one."""
    ancestor = xref.getparent()
    while name(ancestor) not in _BLOCKS:
        if (above := ancestor.getparent()) is None:
            return xref.getparent()
        ancestor = above
    return ancestor


def _place(around: Any, places: dict[Any, _Place]) -> _Place:
    """Where what stands in `around` stands."""
    if around is None:
        return _Place("", False, False)
    if around not in places:
        above, tag = _place(around.getparent(), places), name(around)
        section = ""
        if tag in _SECTIONS:
            title = next(around.iterchildren("{*}title"), None)
            section = (plain_text.text(title) if title is not None else "") or _SECTIONS[tag]
        places[around] = _Place(
            section or above.section, above.in_table or tag in _CELLS, above.in_figure or tag in _FIGURES
        )
    return places[around]


def _by_number(index: _Index, scope: Any, text: str) -> list[int]:
    """A citation that names an id nobody has, as "Figure 1": the figure without an id whose label says so."""
    match = _LABEL_NUMBER.match(text)
    if match is None:
        return []
    wanted = (match[1], int(match[2]))
    return [
        i
        for i, number in enumerate(index.numbers)
        if index.nameless[i] and number == wanted and index.scopes[i] is scope
    ][:1]


def _mentions(paragraph: _Paragraph, index: _Index) -> list[tuple[int, Mention]]:
    """(figure, mention) for every sentence of the paragraph that cites a figure."""
    text, following = paragraph.text, sentences.since(paragraph.text, paragraph.citations[0].start)
    sentence = next(following)
    panels: dict[tuple[tuple[int, int], int], set[str]] = {}  # (sentence, figure) -> letters

    def cite(sentence: tuple[int, int], figure: int, letters: Iterable[str] = ()) -> None:
        panels.setdefault((sentence, figure), set()).update(letters)

    previous: tuple[_Citation, tuple[int, int], str] | None = None
    for citation in paragraph.citations:
        at, like = citation.start, citation.figures[0]
        while at > sentence[1]:
            sentence = next(following)
        letters, ranges = _link(text[at : citation.end])
        number = index.numbers[like]
        if text[citation.end - 1 : citation.end].isdigit():
            letters = letters or _glued(text, citation.end)
            if number and (last := _open_end(text, citation.end, number[1])) and index.numbered(like, (last,)):
                ranges = (*ranges, (*number, range(number[1], last + 1)))
        for figure in citation.figures:
            cite(sentence, figure, letters)
        for series, first, all_named in ranges:
            if number == (series, first):
                for figure in index.numbered(like, all_named):
                    cite(sentence, figure)
        if previous is not None:
            before, sentence_before, letters_before = previous
            between = text[before.end : at]
            if len(between) < _GLUED_LENGTH and _BETWEEN_RANGE.fullmatch(between.removeprefix(letters_before)):
                start, stop = before.figures[-1], like
                for figure in _between(start, stop, index):
                    cite(sentence_before, figure)
                if start == stop and letters_before and letters:
                    cite(sentence_before, start, _letters_between(letters_before[-1], letters[0]))
        previous = citation, sentence, letters
    rows = []
    for ((first, last), figure), letters_found in sorted(panels.items()):
        mention = Mention(text[first:last], text, paragraph.section, "".join(sorted(letters_found)))
        rows.append((figure, mention))
    return rows


def _between(start: int, stop: int, index: _Index) -> list[int]:
    """The figures that a range leaves unnamed: by their numbers, or by their order where labels have none."""
    low, high = index.numbers[start], index.numbers[stop]
    if low and high:
        return index.numbered(start, range(low[1] + 1, high[1])) if low[0] == high[0] else []
    return [i for i in range(start + 1, stop) if index.scopes[i] is index.scopes[start]]


@lru_cache(maxsize=4096)
def _link(text: str) -> tuple[str, tuple[tuple[str, int, range | tuple[int, ...]], ...]]:
    """What the words of a link say: the panels, "Fig. 4A, C-E" -> "ACDE", and the numbers that it may cite beyond its
    `rid`, as (series, first, all): "Figs. 1-3" -> 1 to 3, "Figs. S1, S4" -> S1 and S4."""
    found = [m[1] for m in _PANELS_AFTER_NUMBER.finditer(text)]
    if not found and (alone := _PANELS_ALONE.fullmatch(text.strip())):
        found = [alone[1]]
    ranges: list[tuple[str, int, range | tuple[int, ...]]] = []
    for match in _NUMBER_RANGE.finditer(text):
        ranges.append((match[1], int(match[2]), range(int(match[2]), int(match[3]) + 1)))
    for match in _NUMBER_LIST.finditer(text):
        ranges.append((match[1], int(match[2]), tuple(int(n) for n in re.findall(r"\d{1,9}", match[0]))))
    return _letters(found), tuple(ranges)


def _glued(text: str, end: int) -> str:
    """The panels behind a link that ends in a number, for publishers that leave the letter outside of it."""
    glued = _PANELS_GLUED.match(text, end, end + _GLUED_LENGTH)
    return _letters([glued[1]]) if glued else ""


def _open_end(text: str, end: int, first: int) -> int:
    """The last number of a range of which only the first is in the link that ends at `end`; 0 if there is none."""
    match = _OPEN_RANGE.match(text, end, end + _GLUED_LENGTH)
    return int(match[1]) if match and int(match[1]) > first else 0


def _letters(groups: Iterable[str]) -> str:
    letters: list[str] = []
    for group in groups:
        plain = re.sub(r"(?:Figs?|Figures?)\.?|\band\b|[′″'()\d\s]", "", re.sub(r"\bto\b", "-", group))
        for part in re.split(r"[,;/&]", plain):
            ends = [c.upper() for c in re.split(r"[-‐‑‒–—−]", part) if c]
            singles = [c for end in ends for c in end]
            letters += _letters_between(singles[0], singles[1]) if len(ends) == 2 and len(singles) == 2 else singles
    return "".join(dict.fromkeys(letters))


def _letters_between(first: str, last: str) -> list[str]:
    return [chr(code) for code in range(ord(first), ord(last) + 1)] or [first, last]
