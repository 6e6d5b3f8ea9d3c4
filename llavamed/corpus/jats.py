"""One article in JATS XML -> its figures, each with all that the article says about it.

In: the bytes of one XML file. Out: an `Article` with one `Figure` for every `<fig>`, in document
order: label, caption, the graphics it shows and the sentences that cite it. Pure: no disk, no
network; entities are not resolved and no DTD is loaded.

The hard thing is that the tag set is wide and every publisher uses another part of it. What this
reader holds to, each from files in the wild:

- names are matched without their namespace; comments and processing instructions are no text;
- a caption is its title and all its paragraphs, joined by one space, and the paragraphs that stand in
  the figure beside it;
- a figure may have no id, stand in a `<fig-group>` (whose caption serves a figure that has none), in
  `<floats-group>` at the end, inside a paragraph (then its text is not the paragraph's), or in a
  sub-article that uses the same ids again;
- `<alternatives>` are one image in several sizes: the first that is no thumbnail is taken.

`safe_xml` refuses what is hostile, `plain_text` reads the text of an element, `citations` finds the sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from lxml import etree

from llavamed.corpus import citations, licence, plain_text, rights, safe_xml
from llavamed.corpus.citations import Unresolved
from llavamed.corpus.plain_text import name
from llavamed.corpus.safe_xml import ArticleError
from llavamed.records import Mention

__all__ = ["Article", "ArticleError", "Figure", "Unresolved", "parse_article"]

_GATHERED = ("fig", "xref", "sub-article", "response", "permissions", "attrib", "tex-math")
_THUMBNAIL = re.compile(r"thumb|\b\d{2,3}x\d{2,3}\b", re.IGNORECASE)
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


@dataclass(frozen=True)
class Figure:
    """One `<fig>`. `graphics` holds one href per image, as written; `licence` is the figure's own where something
    states one (see `rights`; "unknown" if it only names another copyright holder, who makes it a `third_party`'s), and
    empty where the article's holds; `credit` is what is to be said with it. `group_caption` is what the group around it
    says, where the figure has a caption of its own."""

    id: str
    label: str
    caption: str
    graphics: tuple[str, ...]
    mentions: tuple[Mention, ...] = ()
    licence: str = ""
    group_caption: str = ""
    third_party: bool = False
    credit: str = ""


@dataclass(frozen=True)
class Article:
    """`pmcid` is "PMC" and digits or empty; `licence` an SPDX-like id or "unknown"; `authors` as printed, commas
    between; `citations` counts every `<xref>` to a figure, `unresolved` lists those of figures that are not in the
    file; `mentions_bare` are dropped because they say nothing; `mended` tells that the file is read in spite of slips
    in its XML."""

    pmcid: str
    pmid: str
    doi: str
    title: str
    licence: str
    figures: tuple[Figure, ...]
    citations: int = 0
    unresolved: tuple[Unresolved, ...] = ()
    mentions_bare: int = 0
    authors: str = ""
    mended: bool = False


def parse_article(xml: bytes, where: str = "article") -> Article:
    """The article in `xml`. Raises ArticleError, naming `where`, for what is not XML or not JATS."""
    root, mended = _article_root(xml, where)
    try:
        return replace(_article(root), mended=True) if mended else _article(root)
    except ArticleError as error:
        raise ArticleError(f"{where}: {error}", error.reason) from None


def _article(root: Any) -> Article:
    meta = root.find("{*}front/{*}article-meta")
    nodes: dict[str, list[Any]] = {**{tag: [] for tag in _GATHERED}, "&": []}
    for node in root.iter(*(f"{{*}}{tag}" for tag in _GATHERED), etree.Entity):  # the one walk over all
        if node.get("ref-type") not in citations.OTHER_TYPES:
            nodes["&" if node.tag is etree.Entity else name(node)].append(node)
    safe_xml.write_out(nodes["&"])
    plain_text.write_out_tex(nodes["tex-math"])
    elements, has_sub_articles = nodes["fig"], bool(nodes["sub-article"] or nodes["response"])
    labels = [_label(element) for element in elements]
    found = citations.find(elements, labels, nodes["xref"], has_sub_articles)
    reader = rights.Reader(meta, nodes["permissions"], nodes["attrib"])
    groups: dict[Any, str] = {}  # of which each caption is read once
    figures = tuple(
        _figure(element, label, mentions, groups, reader)
        for element, label, mentions in zip(elements, labels, found.mentions, strict=True)
    )
    rest = (figures, found.total, found.unresolved, found.bare)
    if meta is None:
        _check_written(figures, 0)
        return Article("", "", "", "", licence.UNKNOWN, *rest)
    ids = {e.get("pub-id-type", ""): (e.text or "").strip() for e in reversed(meta.findall("{*}article-id"))}
    pmcid = ids.get("pmc") or ids.get("pmcid") or ""
    title = meta.find("{*}title-group/{*}article-title")
    printed = plain_text.text(title, without_xrefs=True) if title is not None else ""
    authors = rights.authors(meta)
    _check_written(figures, len(printed) + len(authors))
    return Article(
        f"PMC{pmcid.upper().removeprefix('PMC')}" if pmcid else "",
        ids.get("pmid", ""),
        ids.get("doi", ""),
        printed,
        rights.stated(meta),
        *rest,
        authors=authors,
    )


def _check_written(figures: Iterable[Figure], about: int) -> None:
    """Each image of a figure is written with all its text, and `about` characters on the article: a group's caption
    may serve thousands of figures, and a figure may name thousands of images."""
    written = 0
    for figure in figures:
        text = about + len(figure.caption) + len(figure.group_caption) + len(figure.credit)
        text += sum(len(mention.sentence) + len(mention.paragraph) for mention in figure.mentions)
        written += text * max(1, len(figure.graphics))
    if written > citations.MOST_WRITTEN:
        message = f"figures whose texts would be written as {written:,} characters; leave it out"
        raise ArticleError(message, "text_bomb")


def _article_root(xml: bytes, where: str) -> tuple[Any, bool]:
    shorter = _without_references(xml)
    try:
        root, mended = safe_xml.read(shorter, where)
    except ArticleError as error:
        if error.reason != "not_xml" or shorter is xml:
            raise
        root, mended = safe_xml.read(xml, where)  # lists in a list, or what looked like one was a comment
    if name(root) == "pmc-articleset" and len(root) == 1:  # what NCBI's efetch wraps one article in
        root = root[0]
    if name(root) != "article":
        raise ArticleError(
            f"{where}: XML, but its root is <{name(root)}>, not <article>; give an article in JATS XML", "not_jats"
        )
    return root, mended


def _without_references(xml: bytes) -> bytes:
    """The file with its (last) list of references emptied: a third of the bytes, nearly half of the parser's time, and
    no figure is in it. One that might hold a figure, or cite one, is kept."""
    end = xml.rfind(b"</ref-list>")
    start = xml.rfind(b"<ref-list", 0, max(end, 0))
    inside = xml.find(b">", start) + 1
    if start < 0 or xml.rfind(b"</fig", inside, end) >= 0 or xml.rfind(b"<xref", inside, end) >= 0:
        return xml
    return xml[:inside] + xml[end:]


def _label(figure: Any) -> str:
    return next(filter(None, map(plain_text.text, figure.iterchildren("{*}label"))), "")


def _figure(
    element: Any, label: str, mentions: Iterable[Mention], groups: dict[Any, str], reader: rights.Reader
) -> Figure:
    captions, legends = [], []
    for child in element:
        match name(child):
            case "caption":
                captions.append(child)
            case "p" | "list" | "def-list":  # what publishers put beside a caption, or instead of one
                legends.append(child)
    group = parent if name(parent := element.getparent()) == "fig-group" else None
    if group is not None and group not in groups:
        groups[group] = _caption(group.findall("{*}caption"))
    above = groups.get(group, "")
    caption = _caption(captions, legends)
    found = reader.of(element, caption, group, above)
    return Figure(
        id=element.get("id", ""),
        label=label,
        caption=caption or above,
        graphics=tuple(dict.fromkeys(_graphics(element))),
        mentions=tuple(mentions),
        licence=found.licence,
        group_caption=above if caption else "",
        third_party=found.third_party,
        credit=found.credit,
    )


def _caption(captions: list[Any], legends: Iterable[Any] = ()) -> str:
    english = [c for c in captions if c.get(_LANGUAGE, "").lower().startswith("en")] if len(captions) > 1 else captions
    return " ".join(filter(None, map(plain_text.text, [*(english or captions)[:1], *legends])))


def _graphics(figure: Any) -> Iterator[str]:
    """One href per image, in document order."""
    seen = set()
    for graphic in figure.iter("{*}graphic"):
        around: dict[str, Any] = {}
        ancestor = graphic
        while (ancestor := ancestor.getparent()) is not figure:
            around.setdefault(name(ancestor), ancestor)
        if "caption" in around or "fig" in around:  # a symbol in the text; the picture of a figure in this one
            continue
        if (alternatives := around.get("alternatives")) is None:
            candidates = [graphic]
        elif alternatives in seen:
            continue
        else:
            seen.add(alternatives)
            candidates = [g for g in alternatives.iter("{*}graphic") if rights.href(g)]
            full = [g for g in candidates if not any(_THUMBNAIL.search(value) for value in g.attrib.values())]
            candidates = full or candidates
        if candidates and (href := rights.href(candidates[0])):
            yield href
