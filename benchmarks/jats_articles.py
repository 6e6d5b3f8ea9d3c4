"""The reader of articles against a plain count of what stands in the files, for any folder of JATS articles.

    python benchmarks/jats_articles.py FOLDER [--json]

One row a publisher: figures, captions lost or cut, hrefs wrong, citations of figures and what became of them. Below, a
line for each thing that nobody accounts for (then the exit code is 1), and for each file that the reader refuses.

The counts are XPath's, on a tree that plain lxml read; nothing of `llavamed.corpus.jats` is used in them. What files
taught, and what is held to:

- a caption is its own letters and those of the paragraphs and lists beside it, but for what no reader of the page sees
  (`UNSEEN`) and what is set apart from it (`ASIDE`); of both it is told how many there were. Of a formula in several
  forms TeX is left out; where it is there as TeX alone, or beside its picture, the first TeX is text. Signs that the
  reader adds (`10^6`, `1/2`) do not count;
- of captions in several languages the English one is read, else the first; a figure without one has its group's;
- `<alternatives>` are one image, and no thumbnail where there is another; a picture in a caption is a symbol, and one
  of a figure within the figure is that one's;
- an `<xref>` cites a figure if its type says so, or if it names a figure by a type that is not of something else
  (`OTHERS`). It is resolved if what it names is a figure, a part of one or the group around it, in the same sub-article
  or else in any; or if its number is that of a figure without id. All else must be listed with its text;
- a citation in running text must be in a mention of its figure, with its words; in figures and cells of tables it need
  not. A figure that has mentions and no citation must have a range or a list in one.
"""

from __future__ import annotations

import argparse
import html
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from lxml import etree

from llavamed.corpus.jats import Article, ArticleError, Figure, parse_article
from llavamed.printing import table

UNSEEN = ("annotation", "annotation-xml", "alt-text", "long-desc", "object-id")
ASIDE = ("permissions", "fn", "boxed-text", "supplementary-material", "fig", "fig-group", "table-wrap",
         "table-wrap-group")  # fmt: skip
FORMULAS = ("alternatives", "inline-formula", "disp-formula")
OTHERS = ("bibr", "aff", "table", "table-fn", "disp-formula", "fn", "corresp")
ENTITY = re.compile(rb"&(?!(?:amp|lt|gt|quot|apos);)([A-Za-z][A-Za-z0-9]*;)")
ADDED = re.compile(r"[\s^/()]")
SMALL = re.compile(r"thumb|\b\d{2,3}x\d{2,3}\b", re.IGNORECASE)
NUMBER = re.compile(r"[A-Z]?\d+")
DASH_OR_COMMA = "(?:[-‐‑‒–—−~,;&]|to|through|thru|and|or)"
MANY = re.compile(rf"\d\w*\)?\s*{DASH_OR_COMMA}\s*\(?(?:Fig[a-z]*\.?\s*)?[A-Z]?\d", re.IGNORECASE)
HREF = "@*[local-name()='href']"
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
COLUMNS = ("files", "figures", "captions", "lost", "cut", "images", "hrefs wrong", "xrefs", "resolved", "listed",
           "unaccounted")  # fmt: skip
ALSO = {
    "unseen": "elements that no reader of the page sees, left out of captions",
    "aside": "elements set apart, left out of captions",
    "TeX": "formulas of captions that are there as TeX alone, and read so",
    "of another type": "links to a figure that say they are of something else, not counted as citations",
    "by words alone": "figures that a range or a list cites and no link",
}


def named(*tags: str) -> str:
    return "*[" + " or ".join(f"local-name()='{tag}'" for tag in tags) + "]"


def tree(xml: bytes) -> Any:
    """The file as lxml reads it, slips and all, its named characters written out."""
    known = ENTITY.sub(lambda m: html.unescape(m[0].decode()).encode("ascii", "xmlcharrefreplace"), xml)
    known = ENTITY.sub(b" ", known)  # names that HTML has not
    return etree.fromstring(known.lstrip(), etree.XMLParser(recover=True, resolve_entities=False, no_network=True))


def letters(text: str) -> str:
    return ADDED.sub("", text)


def said(element: Any) -> str:
    """The letters of an element without what is left out on purpose."""
    around = f"count(ancestor::{named(*UNSEEN, *ASIDE)})"
    depth = element.xpath(around) + (etree.QName(element).localname in (*UNSEEN, *ASIDE))
    return letters("".join(element.xpath(f".//text()[{around} = $depth]", depth=depth)))


def words(element: Any) -> str:
    return " ".join(element.xpath("string()").split())


def captions(figure: Any) -> list[Any]:
    """The elements that hold what is said of a figure."""
    own, beside = figure.xpath("*[local-name()='caption']"), figure.xpath(named("p", "list", "def-list"))
    group = figure.xpath("parent::*[local-name()='fig-group']/*[local-name()='caption']")
    for holders, more in ((own, beside), (group, [])):
        english = [c for c in holders if c.get(LANGUAGE, "").lower().startswith("en")] if len(holders) > 1 else holders
        found = [*(english or holders)[:1], *more]
        if any(map(said, found)):
            return found
    return []


def pictures(figure: Any) -> list[list[str]]:
    """For each image of a figure, the hrefs of which one is right."""
    images: dict[Any, list[Any]] = defaultdict(list)
    for graphic in figure.xpath(f".//*[local-name()='graphic'][{HREF}]"):
        above = graphic.xpath(f"ancestor::{named('fig', 'caption', 'alternatives')}")
        inside = [etree.QName(one).localname for one in above[above.index(figure) + 1 :]]
        if "fig" not in inside and "caption" not in inside:
            images[above[-1] if inside else graphic].append(graphic)
    large = ([g for g in same if not any(map(SMALL.search, g.attrib.values()))] or same for same in images.values())
    return [[g.xpath(f"string({HREF})") for g in same] for same in large]


def scope(element: Any) -> Any:
    return next(iter(element.xpath(f"ancestor::{named('sub-article', 'response')}[1]")), None)


class File:
    """One article, as plain lxml has it and as we read it; `counts`, and `wrong`: what nobody accounts for."""

    def __init__(self, xml: bytes, where: str) -> None:
        self.article: Article = parse_article(xml, where)
        self.tree = tree(xml)
        self.publisher = " ".join(self.tree.xpath("string(//*[local-name()='publisher-name'])").split())
        self.elements = self.tree.xpath("//*[local-name()='fig']")
        self.counts: Counter[str] = Counter(files=1, figures=len(self.elements))
        self.wrong: list[str] = []
        for tex in self.tree.xpath("//*[local-name()='tex-math']"):
            others = tex.xpath(
                f"parent::{named(*FORMULAS)}/*[not(self::{named('label', 'tex-math', *UNSEEN, *ASIDE)})]"
            )
            others += tex.xpath(f"self::*[parent::{named('alternatives')}]/preceding-sibling::{named('tex-math')}")
            alone = not any(map(said, others))
            self.counts["TeX"] += alone and bool(tex.xpath("ancestor::*[local-name()='caption']"))
            set_alone = (tex.text or "").split(r"\begin{document}")[-1].split(r"\end{document}")[0]
            tex.text = set_alone if alone else None
        if len(self.article.figures) != len(self.elements):
            self.miss("unaccounted", f"{len(self.elements)} figures, {len(self.article.figures)} read")
            return
        for element, figure in zip(self.elements, self.article.figures, strict=True):
            self.check_figure(element, figure)
        self.check_citations()

    def miss(self, what: str, message: str) -> None:
        self.counts[what] += 1
        self.wrong.append(f"{what}: {message}")

    def check_figure(self, element: Any, figure: Figure) -> None:
        at = f"{element.get('id', '')!r} {figure.label!r}"
        label = next(filter(None, map(said, element.xpath("*[local-name()='label']"))), "")
        if (figure.id, letters(figure.label)) != (element.get("id", ""), label):
            self.miss("unaccounted", f"{at}: it is {element.get('id')!r} {label!r}, and read as {figure.id!r}")
        parts = captions(element)
        whole, ours = "".join(map(said, parts)), letters(figure.caption)
        self.counts["captions"] += bool(whole)
        if whole != ours:
            self.miss("cut" if ours else "lost", f"{at}: {whole!r} is read as {ours!r}")
        for part in parts:
            self.counts["unseen"] += len(part.xpath(f".//{named(*UNSEEN)}"))
            self.counts["aside"] += len(part.xpath(f".//{named(*ASIDE)}"))
            for simple in part.xpath(f"descendant-or-self::{named('p', 'title')}[not(*)][normalize-space()]"):
                if said(simple) in ours and f" {words(simple)} " not in f" {figure.caption} ":
                    self.miss("unaccounted", f"{at}: {words(simple)!r} is glued to what stands beside it")
        read = list(figure.graphics)
        right = pictures(element)
        self.counts["images"] += len(right)
        for hrefs in right:
            if read and read[0] in hrefs:
                read.pop(0)
            elif not set(hrefs) & set(figure.graphics):  # the same name again is one image
                self.miss("hrefs wrong", f"{at}: {' or '.join(hrefs)} is not in {figure.graphics}")
        if read:
            self.miss("hrefs wrong", f"{at}: {read} are read, and no image of it")

    def check_citations(self) -> None:
        figures = self.article.figures
        scopes = [scope(element) for element in self.elements]
        ids: dict[str, list[int]] = defaultdict(list)
        for i, element in enumerate(self.elements):
            group = element.xpath("parent::*[local-name()='fig-group']/@id")
            for one in dict.fromkeys([*element.xpath("descendant-or-self::*/@id"), *group]):
                ids[one].append(i)
        listed = Counter((one.rid, letters(one.text)) for one in self.article.unresolved)
        cited: set[int] = set()
        for xref in self.tree.xpath("//*[local-name()='xref']"):
            kind, rids = xref.get("ref-type", "").lower(), xref.get("rid", "").split() or [""]
            if kind not in ("fig", "figure"):
                if not any(rid in ids for rid in rids):
                    continue
                if kind in OTHERS:
                    self.counts["of another type"] += 1
                    continue
            self.counts["xrefs"] += 1
            text, here, found = words(xref), scope(xref), []
            for rid in rids:
                if known := [i for i in ids.get(rid, ()) if scopes[i] is here] or ids.get(rid, []):
                    found += known
                elif kind not in ("fig", "figure"):
                    continue
                elif listed[rid, letters(text)]:
                    listed[rid, letters(text)] -= 1
                    self.counts["listed"] += 1
                elif nameless := [i for i in self.nameless(text) if scopes[i] is here]:
                    found += nameless[:1]
                else:
                    self.miss("unaccounted", f"{rid!r} {text!r} is neither resolved nor listed")
            self.counts["resolved"] += bool(found)
            if xref.xpath(f"ancestor::{named('fig', 'fig-group')}"):
                continue
            cited.update(found)
            if xref.xpath(f"ancestor::{named('td', 'th')}"):
                continue
            for i in found:
                if not any(letters(text) in letters(mention.sentence) for mention in figures[i].mentions):
                    self.miss("unaccounted", f"{rids} {text!r} is in no mention of {figures[i].label!r}")
        if self.article.citations != self.counts["xrefs"]:
            self.miss("unaccounted", f"{self.counts['xrefs']} citations, {self.article.citations} read")
        for rid, text in listed.elements():
            self.miss("unaccounted", f"{rid!r} {text!r} is listed, and nobody cites it")
        for i, figure in enumerate(figures):
            if figure.mentions and i not in cited:
                self.counts["by words alone"] += 1
                if not any(MANY.search(mention.sentence) for mention in figure.mentions):
                    self.miss("unaccounted", f"nothing cites {figure.label!r}: {figure.mentions[0].sentence!r}")

    def nameless(self, text: str) -> list[int]:
        """The figures without id whose label has the first number of `text`."""
        labels = [NUMBER.findall(element.xpath("string(*[local-name()='label'])"))[:1] for element in self.elements]
        number = NUMBER.findall(text)[:1]
        return [i for i, one in enumerate(labels) if number and one == number and not self.elements[i].get("id")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    refused, wrong = [], []
    for path in sorted(p for p in arguments.folder.rglob("*") if p.suffix in (".xml", ".nxml")):
        where = str(path.relative_to(arguments.folder))
        try:
            file = File(path.read_bytes(), where)
        except ArticleError as error:
            refused.append(f"refused ({error.reason}): {error}")
            continue
        wrong += [f"{where}: {line}" for line in file.wrong]
        rows[file.publisher or "none named"].update(file.counts)
    total = sum(rows.values(), Counter())
    rows = {name: rows[name] for name in sorted(rows)} | {"all": total}
    shown = [[name[:40], *(row[column] for column in COLUMNS)] for name, row in rows.items()]
    table(["publisher", *COLUMNS], shown, arguments.json)
    also = [f"{total[name]} {meaning}" for name, meaning in ALSO.items() if total[name]]
    print(*also, *refused, *wrong, sep="\n", file=sys.stderr if arguments.json else sys.stdout)
    return bool(wrong or not total["files"])


if __name__ == "__main__":
    sys.exit(main())
