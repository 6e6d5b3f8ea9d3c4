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
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lxml import etree

from llavamed.corpus import citations, licence, plain_text, safe_xml
from llavamed.corpus.citations import Unresolved
from llavamed.corpus.plain_text import name
from llavamed.corpus.safe_xml import ArticleError
from llavamed.records import Mention

__all__ = ["Article", "ArticleError", "Figure", "Unresolved", "parse_article"]

_THUMBNAIL = re.compile(r"thumb|\b\d{2,3}x\d{2,3}\b", re.IGNORECASE)
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


@dataclass(frozen=True)
class Figure:
    """One `<fig>`. `graphics` holds one href per image, as written; `licence` is the figure's own where it
    states one ("unknown" if it only names another copyright holder), and empty where the article's holds.
    `group_caption` is what the group around it says, where the figure has a caption of its own."""

    id: str
    label: str
    caption: str
    graphics: tuple[str, ...]
    mentions: tuple[Mention, ...] = ()
    licence: str = ""
    group_caption: str = ""


@dataclass(frozen=True)
class Article:
    """`pmcid` is "PMC" and digits or empty; `licence` an SPDX-like id or "unknown"; `citations` counts every `<xref>`
    to a figure, `unresolved` lists those of figures that are not in the file; `mentions_bare` are dropped because they
    say nothing."""

    pmcid: str
    pmid: str
    doi: str
    title: str
    licence: str
    figures: tuple[Figure, ...]
    citations: int = 0
    unresolved: tuple[Unresolved, ...] = ()
    mentions_bare: int = 0


def parse_article(xml: bytes, where: str = "article") -> Article:
    """The article in `xml`. Raises ArticleError, naming `where`, for what is not XML or not JATS."""
    root = _article_root(xml, where)
    try:
        return _article(root)
    except ArticleError as error:
        raise ArticleError(f"{where}: {error}", error.reason) from None


def _article(root: Any) -> Article:
    meta = root.find("{*}front/{*}article-meta")
    nodes: dict[str, list[Any]] = {"fig": [], "xref": [], "sub-article": [], "response": [], "&": []}
    for node in root.iter("{*}fig", "{*}xref", "{*}sub-article", "{*}response", etree.Entity):  # the one walk over all
        if node.get("ref-type") not in citations.OTHER_TYPES:
            nodes["&" if node.tag is etree.Entity else name(node)].append(node)
    safe_xml.write_out(nodes["&"])
    elements, has_sub_articles = nodes["fig"], bool(nodes["sub-article"] or nodes["response"])
    labels = [_label(element) for element in elements]
    found = citations.find(elements, labels, nodes["xref"], has_sub_articles)
    figures = tuple(map(_figure, elements, labels, found.mentions))
    rest = (figures, found.total, found.unresolved, found.bare)
    if meta is None:
        return Article("", "", "", "", licence.UNKNOWN, *rest)
    ids = {e.get("pub-id-type", ""): (e.text or "").strip() for e in reversed(meta.findall("{*}article-id"))}
    pmcid = ids.get("pmc") or ids.get("pmcid") or ""
    title = meta.find("{*}title-group/{*}article-title")
    return Article(
        f"PMC{pmcid.upper().removeprefix('PMC')}" if pmcid else "",
        ids.get("pmid", ""),
        ids.get("doi", ""),
        plain_text.text(title, without_xrefs=True) if title is not None else "",
        _licence(meta),
        *rest,
    )


def _article_root(xml: bytes, where: str) -> Any:
    shorter = _without_references(xml)
    try:
        root = safe_xml.parse(shorter, where)
    except ArticleError as error:
        if error.reason != "not_xml" or shorter is xml:
            raise
        root = safe_xml.parse(xml, where)  # lists in a list, or what looked like one was a comment
    if name(root) == "pmc-articleset" and len(root) == 1:  # what NCBI's efetch wraps one article in
        root = root[0]
    if name(root) != "article":
        raise ArticleError(
            f"{where}: XML, but its root is <{name(root)}>, not <article>; give an article in JATS XML", "not_jats"
        )
    return root


def _without_references(xml: bytes) -> bytes:
    """The file with its (last) list of references emptied: a third of the bytes, nearly half of the parser's time, and
    no figure is in it. One that might hold a figure, or cite one, is kept."""
    end = xml.rfind(b"</ref-list>")
    start = xml.rfind(b"<ref-list", 0, max(end, 0))
    inside = xml.find(b">", start) + 1
    if start < 0 or xml.find(b"</fig", inside, end) >= 0 or xml.find(b"<xref", inside, end) >= 0:
        return xml
    return xml[:inside] + xml[end:]


def _label(figure: Any) -> str:
    return next(filter(None, map(plain_text.text, figure.iterchildren("{*}label"))), "")


def _figure(element: Any, label: str, mentions: Iterable[Mention]) -> Figure:
    permitted = False
    captions, legends = [], []
    for child in element:
        match name(child):
            case "caption":
                captions.append(child)
            case "p" | "list" | "def-list":  # what publishers put beside a caption, or instead of one
                legends.append(child)
            case "permissions":
                permitted = True
    parent = element.getparent()
    above = _caption(parent.findall("{*}caption")) if name(parent) == "fig-group" else ""
    caption = _caption(captions, legends)
    return Figure(
        id=element.get("id", ""),
        label=label,
        caption=caption or above,
        graphics=tuple(dict.fromkeys(_graphics(element))),
        mentions=tuple(mentions),
        licence=_licence(element) if permitted else "",
        group_caption=above if caption else "",
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
        if "caption" in around:  # a symbol in the text
            continue
        if (alternatives := around.get("alternatives")) is None:
            candidates = [graphic]
        elif alternatives in seen:
            continue
        else:
            seen.add(alternatives)
            candidates = [g for g in alternatives.iter("{*}graphic") if _href(g)]
            full = [g for g in candidates if not any(_THUMBNAIL.search(value) for value in g.attrib.values())]
            candidates = full or candidates
        if candidates and (href := _href(candidates[0])):
            yield href


def _licence(meta: Any) -> str:
    """Of every `<license>` in the metadata (or a figure's permissions) the narrowest; in files from before
    2008 the prose stands in `<copyright-statement>`."""
    found = []
    for element in meta.iter("{*}license"):
        links = [_href(e) or (e.text or "") for e in element.iter("{*}license_ref", "{*}ext-link", "{*}uri")]
        found.append(_identify((_href(element), *links), plain_text.text(element)))
    if not found:
        refs = [(e.text or "").strip() for e in meta.iter("{*}license_ref")]
        prose = " ".join(plain_text.text(e) for e in meta.iter("{*}copyright-statement"))
        found.append(_identify(tuple(refs), prose))
    return licence.narrowest(found)


@lru_cache(maxsize=1024)
def _identify(urls: tuple[str, ...], text: str) -> str:
    """A publisher's articles all say the same."""
    return licence.identify(urls, text)


def _href(element: Any) -> str:
    """`xlink:href`, whatever its prefix is bound to."""
    return next((v.strip() for k, v in element.attrib.items() if k.rpartition("}")[2] == "href"), "")
