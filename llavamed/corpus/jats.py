"""One article in JATS XML -> its figures, each with all that the article says about it.

In: the bytes of one XML file. Out: an `Article` with one `Figure` for every `<fig>`, in document
order: label, caption, the graphics it shows and the sentences that cite it. Pure: no disk, no
network; entities are not resolved and no DTD is loaded.

The hard thing is that the tag set is wide and every publisher uses another part of it. What this
reader holds to, each from files in the wild:

- names are matched without their namespace; comments and processing instructions are no text;
- a caption is its title and all its paragraphs, joined by one space;
- a figure may have no id, stand in a `<fig-group>` (whose caption serves a figure that has none), in
  `<floats-group>` at the end, inside a paragraph (then its text is not the paragraph's), or in a
  sub-article that uses the same ids again;
- `<alternatives>` are one image in several sizes: the first that is no thumbnail is taken;
- a citation is an `<xref>` whose `rid` names a figure, one or several, however deeply it sits in
  bold, italic or superscript; "Figs. 1-3" cites figure 2 as well, though no `<xref>` names it;
- what stands inside a figure (its caption above all) cites nothing: a mention is running text.

To find sentences, panels and ranges, a paragraph is flattened once to plain text with the places of
its citations; all else is done on that string.
"""

from __future__ import annotations

import html
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from lxml import etree

from llavamed.corpus import licence, sentences
from llavamed.errors import InputError
from llavamed.records import Mention

_FIGURES = frozenset({"fig", "fig-group"})
_SUB_ARTICLES = frozenset({"sub-article", "response"})
_PARAGRAPHS = frozenset({"p", "title", "subtitle", "td", "th", "term", "attrib", "verse-line", "speech"})
# Elements whose text is not part of the text around them.
_APART = frozenset(
    {"fig", "fig-group", "table-wrap", "table-wrap-group", "boxed-text", "fn", "supplementary-material", "permissions"}
    | {"object-id", "alt-text", "long-desc", "tex-math", "annotation", "annotation-xml"}
)
# Elements that end a word, though no white space may stand in the file.
_BREAKING = frozenset(
    {"p", "title", "subtitle", "list", "list-item", "def-list", "def-item", "def", "term", "sec", "label", "break"}
    | {"disp-formula", "disp-quote", "td", "th", "tr"}
)
_SECTION_NAMES = {"abstract": "Abstract", "trans-abstract": "Abstract", "app": "Appendix", "ack": "Acknowledgements"}

_DASH = r"(?:[-‐‑‒–—−~]|to|through|thru)"
_BETWEEN_RANGE = re.compile(rf"\s*[)\]]?\s*{_DASH}\s*[(\[]?\s*", re.IGNORECASE)
_NUMBER_RANGE = re.compile(r"\b([A-Z]?)(\d+)\s*(?:[-‐‑‒–—−]|to|through)\s*\1(\d+)\b")
_LABEL_NUMBER = re.compile(r"(?:[^\W\d_]{2,}\.?\s*)?([A-Z]?)(\d+)[.:]?")
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
_WORD = re.compile(r"\S+")
_THUMBNAIL = re.compile(r"thumb|\b\d{2,3}x\d{2,3}\b", re.IGNORECASE)


class ArticleError(InputError):
    """A file that is no article. `reason` is "not_xml" or "not_jats"."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Figure:
    """One `<fig>`. `graphics` holds one href per image, as written; `licence` is the figure's own where it
    states one ("unknown" if it only names another copyright holder), and empty where the article's holds."""

    id: str
    label: str
    caption: str
    graphics: tuple[str, ...]
    mentions: tuple[Mention, ...] = ()
    licence: str = ""


@dataclass(frozen=True)
class Article:
    """`pmcid` is "PMC" and digits or empty; `licence` an SPDX-like id or "unknown"; `unresolved` counts the
    citations of figures that are not in the file, `mentions_bare` the mentions dropped because they say nothing."""

    pmcid: str
    pmid: str
    doi: str
    title: str
    licence: str
    figures: tuple[Figure, ...]
    unresolved: int = 0
    mentions_bare: int = 0


def parse_article(xml: bytes, where: str = "article") -> Article:
    """The article in `xml`. Raises ArticleError, naming `where`, for what is not XML or not JATS."""
    root = _article_root(xml, where)
    meta = root.find("{*}front/{*}article-meta")
    elements = [element for element in root.iter("{*}fig") if isinstance(element.tag, str)]
    mentions, unresolved, bare = _mentions(root, elements)
    figures = tuple(_figure(element, found) for element, found in zip(elements, mentions, strict=True))
    if meta is None:
        return Article("", "", "", "", licence.UNKNOWN, figures, unresolved, bare)
    ids = {e.get("pub-id-type", ""): (e.text or "").strip() for e in reversed(meta.findall("{*}article-id"))}
    pmcid = ids.get("pmc") or ids.get("pmcid") or ""
    title = meta.find("{*}title-group/{*}article-title")
    return Article(
        pmcid=f"PMC{pmcid.upper().removeprefix('PMC')}" if pmcid else "",
        pmid=ids.get("pmid", ""),
        doi=ids.get("doi", ""),
        title=_text(title, apart=_APART | {"xref"}) if title is not None else "",
        licence=_licence(meta),
        figures=figures,
        unresolved=unresolved,
        mentions_bare=bare,
    )


def _article_root(xml: bytes, where: str) -> Any:
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(xml.lstrip(b" \t\r\n"), parser)
    except (etree.XMLSyntaxError, ValueError) as error:  # ValueError: an encoding that does not exist
        message = " ".join(str(error).split()) or "nothing in it"
        raise ArticleError(f"{where}: not XML ({message}); give an article in JATS XML", "not_xml") from None
    if _name(root) == "pmc-articleset" and len(root) == 1:  # what NCBI's efetch wraps one article in
        root = root[0]
    if _name(root) != "article":
        raise ArticleError(
            f"{where}: XML, but its root is <{_name(root)}>, not <article>; give an article in JATS XML", "not_jats"
        )
    return root


def _figure(element: Any, mentions: Iterable[Mention]) -> Figure:
    group = next((e for e in element.iterancestors() if _name(e) == "fig-group"), None)
    own = _licence(element) if _child(element, "permissions") is not None else ""
    label = _child(element, "label")
    caption = _caption(element) or (_caption(group) if group is not None else "")
    return Figure(
        id=element.get("id", ""),
        label=_text(label) if label is not None else "",
        caption=caption,
        graphics=tuple(dict.fromkeys(_graphics(element))),
        mentions=tuple(mentions),
        licence=own,
    )


def _caption(element: Any) -> str:
    captions = [child for child in element if _name(child) == "caption"]
    english = [c for c in captions if c.get("{http://www.w3.org/XML/1998/namespace}lang", "").lower().startswith("en")]
    chosen = (english or captions)[:1]
    return _text(chosen[0]) if chosen else ""


def _graphics(figure: Any) -> Iterator[str]:
    """One href per image, in document order."""
    seen = set()
    for graphic in figure.iter("{*}graphic"):
        names: dict[str, Any] = {}
        for ancestor in graphic.iterancestors():
            if ancestor is figure:
                break
            names.setdefault(_name(ancestor), ancestor)
        if "caption" in names:
            continue
        alternatives = names.get("alternatives")
        if alternatives is None:
            candidates = [graphic]
        elif alternatives in seen:
            continue
        else:
            seen.add(alternatives)
            candidates = [g for g in alternatives.iter("{*}graphic") if _href(g)]
            full = [g for g in candidates if not any(_THUMBNAIL.search(value) for value in g.attrib.values())]
            candidates = full or candidates
        if candidates and _href(candidates[0]):
            yield _href(candidates[0])


def _licence(meta: Any) -> str:
    """Of every `<license>` in the metadata (or a figure's permissions) the narrowest; in files from before
    2008 the prose stands in `<copyright-statement>`."""
    found = []
    for element in meta.iter("{*}license"):
        links = [_href(e) or (e.text or "") for e in element.iter("{*}license_ref", "{*}ext-link", "{*}uri")]
        found.append(licence.identify([_href(element), *links], _text(element)))
    if not found:
        refs = [(e.text or "").strip() for e in meta.iter("{*}license_ref")]
        prose = " ".join(_text(e) for e in meta.iter("{*}copyright-statement"))
        found.append(licence.identify(refs, prose))
    return licence.narrowest(found)


# --- citations -------------------------------------------------------------------------------


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
    sentences: list[tuple[int, int]]
    spans: dict[Any, tuple[int, int]]  # <xref> -> its place in `text`
    in_table: bool
    citations: list[_Citation] = field(default_factory=list)

    @property
    def bare(self) -> bool:
        """A table cell that holds "See Fig. 5 [23]" and no more says nothing about figure 5, wherever the link
        begins."""
        if not self.in_table:
            return False
        rest = list(self.text)
        for start, end in self.spans.values():
            rest[start:end] = " " * (end - start)
        return re.search(r"[^\W\d_]{2}", _CITING_WORD.sub(" ", "".join(rest))) is None


@dataclass
class _Index:
    """Who is who among the figures: by id within a sub-article, by id anywhere, by the number in the label."""

    scoped: dict[tuple[Any, str], list[int]]
    anywhere: dict[str, list[int]]
    numbers: list[tuple[str, int] | None]
    scopes: list[Any]
    nameless: list[bool]

    def find(self, scope: Any, rid: str) -> list[int]:
        return self.scoped.get((scope, rid)) or self.anywhere.get(rid, [])

    def numbered(self, like: int, low: int, high: int, nameless: bool = False) -> list[int]:
        """Figures of the same sub-article and series ("S1", "1") as `like`, numbers low to high."""
        key = self.numbers[like]
        return [
            i
            for i, number in enumerate(self.numbers)
            if key
            and number
            and number[0] == key[0]
            and low <= number[1] <= high
            and self.scopes[i] is self.scopes[like]
            if self.nameless[i] or not nameless
        ]


def _mentions(root: Any, figures: list[Any]) -> tuple[list[list[Mention]], int, int]:
    """The mentions of each figure, one per sentence; how many citations named no figure of the file; how many
    mentions were dropped as bare."""
    index = _index(root, figures)
    paragraphs: dict[Any, _Paragraph] = {}
    unresolved = bare = 0
    for xref in root.iter("{*}xref"):
        ancestors = list(xref.iterancestors())
        if any(_name(a) in _FIGURES for a in ancestors):
            continue
        scope = next((a for a in ancestors if _name(a) in _SUB_ARTICLES), None)
        named = [i for rid in xref.get("rid", "").split() for i in index.find(scope, rid)]
        says_figure = xref.get("ref-type", "").lower() in {"fig", "figure"}
        if not named and says_figure:
            named = _by_number(index, scope, _text(xref))
            unresolved += not named
        if not named:
            continue
        block = next((a for a in ancestors if _name(a) in _PARAGRAPHS), ancestors[0])
        if block not in paragraphs:
            text, spans = _flatten(block)
            in_table = any(_name(a) in {"td", "th"} for a in ancestors)
            paragraphs[block] = _Paragraph(text, _section(block), sentences.spans(text), spans, in_table)
        paragraph = paragraphs[block]
        if xref in paragraph.spans:
            paragraph.citations.append(_Citation(*paragraph.spans[xref], list(dict.fromkeys(named))))
    found: list[list[Mention]] = [[] for _ in figures]
    for paragraph in paragraphs.values():
        cited = _cited(paragraph, index) if paragraph.sentences else []
        if paragraph.bare:
            bare += len(cited)
            continue
        for i, mention in cited:
            found[i].append(mention)
    return found, unresolved, bare


def _index(root: Any, figures: list[Any]) -> _Index:
    scopes = [next((a for a in f.iterancestors() if _name(a) in _SUB_ARTICLES), None) for f in figures]
    scoped: dict[tuple[Any, str], list[int]] = defaultdict(list)
    anywhere: dict[str, list[int]] = defaultdict(list)
    for i, figure in enumerate(figures):
        # a citation may name the figure, something in it (one graphic, the caption), or the group around it
        named = [e.get("id") for e in figure.iter() if e.get("id")]
        named += [a.get("id") for a in figure.iterancestors() if _name(a) == "fig-group" and a.get("id")]
        for rid in dict.fromkeys(named):
            scoped[scopes[i], rid].append(i)
            anywhere[rid].append(i)
    labels = [_child(f, "label") for f in figures]
    numbers = [_LABEL_NUMBER.fullmatch(_text(e)) if e is not None else None for e in labels]
    return _Index(
        dict(scoped),
        dict(anywhere),
        [(m[1], int(m[2])) if m else None for m in numbers],
        scopes,
        [not f.get("id") for f in figures],
    )


def _by_number(index: _Index, scope: Any, text: str) -> list[int]:
    """A citation that names an id nobody has, as "Figure 1": the figure without an id whose label says so."""
    match = _LABEL_NUMBER.match(text.strip())
    if match is None:
        return []
    wanted = (match[1], int(match[2]))
    return [
        i
        for i, number in enumerate(index.numbers)
        if index.nameless[i] and number == wanted and index.scopes[i] is scope
    ][:1]


def _cited(paragraph: _Paragraph, index: _Index) -> list[tuple[int, Mention]]:
    """(figure, mention) for every sentence of the paragraph that cites a figure."""
    starts = [start for start, _ in paragraph.sentences]
    panels: dict[tuple[int, int], set[str]] = {}  # (sentence, figure) -> letters

    def cite(at: int, figure: int, letters: Iterable[str] = ()) -> None:
        sentence = max(bisect_right(starts, at) - 1, 0)
        panels.setdefault((sentence, figure), set()).update(letters)

    previous: tuple[_Citation, str] | None = None
    for citation in sorted(paragraph.citations, key=lambda c: c.start):
        own = paragraph.text[citation.start : citation.end]
        letters = _panels(own, paragraph.text[citation.end : citation.end + 80])
        for figure in citation.figures:
            cite(citation.start, figure, letters)
        for first, last in _ranges(own, citation, index):
            for figure in index.numbered(citation.figures[0], first, last):
                cite(citation.start, figure)
        if previous is not None:
            before, letters_before = previous
            if _BETWEEN_RANGE.fullmatch(paragraph.text[before.end : citation.start].removeprefix(letters_before)):
                start, stop = before.figures[-1], citation.figures[0]
                for figure in _between(start, stop, index):
                    cite(before.start, figure)
                if start == stop and letters_before and letters:
                    cite(before.start, start, _letters_between(letters_before[-1], letters[0]))
        previous = citation, letters
    rows = []
    for (sentence, figure), letters_found in sorted(panels.items()):
        start, end = paragraph.sentences[sentence]
        mention = Mention(paragraph.text[start:end], paragraph.text, paragraph.section, "".join(sorted(letters_found)))
        rows.append((figure, mention))
    return rows


def _ranges(text: str, citation: _Citation, index: _Index) -> Iterator[tuple[int, int]]:
    """Numbers (first, last) of a range inside one citation: "Figs. 1-3" whose first figure is figure 1."""
    for match in _NUMBER_RANGE.finditer(text):
        first, last = int(match[2]), int(match[3])
        if index.numbers[citation.figures[0]] == (match[1], first) and first < last:
            yield first, last


def _between(start: int, stop: int, index: _Index) -> list[int]:
    """The figures that a range leaves unnamed: by their numbers, or by their order where labels have none."""
    low, high = index.numbers[start], index.numbers[stop]
    if low and high:
        return index.numbered(start, low[1] + 1, high[1] - 1) if low[0] == high[0] else []
    return [i for i in range(start + 1, stop) if index.scopes[i] is index.scopes[start]]


def _panels(text: str, after: str) -> str:
    """The panel letters of a citation, in capitals: "Fig. 4A, C-E" -> "ACDE"; `after` is the text behind it,
    for publishers that leave the letter outside the link."""
    found = [m[1] for m in _PANELS_AFTER_NUMBER.finditer(text)]
    if not found and (alone := _PANELS_ALONE.fullmatch(text.strip())):
        found = [alone[1]]
    if not found and text[-1:].isdigit() and (glued := _PANELS_GLUED.match(after)):
        found = [glued[1]]
    letters: list[str] = []
    for group in found:
        plain = re.sub(r"(?:Figs?|Figures?)\.?|\band\b|[′″'()\d\s]", "", re.sub(r"\bto\b", "-", group))
        for part in re.split(r"[,;/&]", plain):
            ends = [c.upper() for c in re.split(r"[-‐‑‒–—−]", part) if c]
            singles = [c for end in ends for c in end]
            letters += _letters_between(singles[0], singles[1]) if len(ends) == 2 and len(singles) == 2 else singles
    return "".join(dict.fromkeys(letters))


def _letters_between(first: str, last: str) -> list[str]:
    return [chr(code) for code in range(ord(first), ord(last) + 1)] or [first, last]


def _section(block: Any) -> str:
    for ancestor in block.iterancestors():
        name = _name(ancestor)
        if name in {"sec", "app", "ack", "abstract", "trans-abstract"}:
            title = _child(ancestor, "title")
            text = _text(title) if title is not None else ""
            if text or name in _SECTION_NAMES:
                return text or _SECTION_NAMES[name]
    return ""


# --- text ------------------------------------------------------------------------------------


def _text(element: Any, apart: frozenset[str] = _APART) -> str:
    return _flatten(element, apart)[0]


def _flatten(root: Any, apart: frozenset[str] = _APART) -> tuple[str, dict[Any, tuple[int, int]]]:
    """Plain text of an element with single spaces, and the place of each `<xref>` in it.

    A loop with its own stack, since a hostile file may be nested deeper than Python's.
    """
    pieces: list[str] = []
    length = 0
    raw_spans: list[tuple[Any, int, int]] = []
    opened: dict[Any, int] = {}
    stack = [(root, False)]

    def put(text: str | None) -> None:
        nonlocal length
        if text:
            pieces.append(text)
            length += len(text)

    while stack:
        node, leaving = stack.pop()
        name = _name(node)
        if leaving:
            if node in opened:
                raw_spans.append((node, opened[node], length))
            if name in _BREAKING:
                put(" ")
            if node is not root:
                put(node.tail)
            continue
        stack.append((node, True))
        if name == "&":  # an entity of a DTD that is not loaded: HTML's names are JATS's too; others say nothing
            character = html.unescape(node.text)
            put(character if character != node.text else " ")
        elif name and (name not in apart or node is root):
            if name in _BREAKING:
                put(" ")
            if name == "xref":
                opened[node] = length
            put(node.text)
            stack.extend((child, False) for child in node.iterchildren(reversed=True))
        elif name:
            put(" ")
    return _squeeze("".join(pieces), raw_spans)


def _squeeze(raw: str, spans: Iterable[tuple[Any, int, int]]) -> tuple[str, dict[Any, tuple[int, int]]]:
    """`raw` with runs of white space as one space, and where the spans (node, start, end) lie then.

    A span that begins in white space begins at the next word, one that ends there ends with the word before.
    """
    words = list(_WORD.finditer(raw))
    starts = [word.start() for word in words]
    places = list(accumulate((len(word[0]) + 1 for word in words), initial=0))  # where each word stands now

    def place(at: int, opening: bool) -> int:
        last = bisect_left(starts, at) - 1  # the last word that begins before `at`
        if last < 0:
            return 0
        end = words[last].end()
        skips = opening and (at > end or raw[at : at + 1].isspace())
        return places[last] + min(at, end) - starts[last] + skips

    moved = {node: (place(start, True), place(end, False)) for node, start, end in spans}
    return " ".join(word[0] for word in words), moved


def _name(node: Any) -> str:
    """The tag without its namespace; "&" for an entity, "" for comments and processing instructions."""
    if isinstance(node.tag, str):
        return node.tag.rpartition("}")[2]
    return "&" if node.tag is etree.Entity else ""


def _child(element: Any, name: str) -> Any | None:
    return next((child for child in element if _name(child) == name), None)


def _href(element: Any) -> str:
    """`xlink:href`, whatever its prefix is bound to."""
    return next((v.strip() for k, v in element.attrib.items() if k.rpartition("}")[2] == "href"), "")
