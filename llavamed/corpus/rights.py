"""What an article says about who made it and who may use it: its licence, its authors, and the rights in each figure.

The article's licence holds for its figures, unless something nearer says otherwise. In the order of nearness:

- `<permissions>` in the figure, on it, on its graphics or in its caption; of several the narrowest holds;
- `<permissions>` of the group or box around it;
- `<permissions>` of the sub-article it stands in (a reply has a licence of its own);

and beside any of these a credit line (`credit`) in the caption, the group's caption or an `<attrib>`. Permissions that
name a holder who is neither an author nor the article's own holder, and no licence, leave the figure "unknown".

All of it is rare, so nothing is looked up for a figure unless its caption has a word of a credit line, or the article
has such an element anywhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

from llavamed.corpus import credit, licence, plain_text
from llavamed.corpus.citations import SUB_ARTICLES, sub_article
from llavamed.corpus.plain_text import name

_MOST_AUTHORS = 20  # named one by one
_HOLDERS = ("{*}copyright-statement", "{*}copyright-holder")
_METADATA = frozenset({"article-meta", "front-stub", "front", "article", *SUB_ARTICLES})


@dataclass(frozen=True)
class Rights:
    """`licence` is the figure's own, "unknown" if there is one that is not known, and "" where the article's holds;
    `third_party` says that a holder is named who is not the article's; `credit` is what is to be said with it."""

    licence: str = ""
    third_party: bool = False
    credit: str = ""


NONE = Rights()


def stated(meta: Any) -> str:
    """Of every `<license>` in the metadata (or a figure's permissions) the narrowest; in files from before
    2008 the prose stands in `<copyright-statement>`."""
    found = []
    for element in meta.iter("{*}license"):
        links = [href(e) or (e.text or "") for e in element.iter("{*}license_ref", "{*}ext-link", "{*}uri")]
        found.append(_identify((href(element), *links), plain_text.text(element)))
    if not found:
        refs = [(e.text or "").strip() for e in meta.iter("{*}license_ref")]
        prose = " ".join(plain_text.text(e) for e in meta.iter("{*}copyright-statement"))
        found.append(_identify(tuple(refs), prose))
    return licence.narrowest(found)


@lru_cache(maxsize=1024)
def _identify(urls: tuple[str, ...], text: str) -> str:
    """A publisher's articles all say the same."""
    return licence.identify(urls, text)


def href(element: Any) -> str:
    """`xlink:href`, whatever its prefix is bound to."""
    return next((v.strip() for k, v in element.attrib.items() if k.rpartition("}")[2].rpartition(":")[2] == "href"), "")


def authors(meta: Any) -> str:
    """The authors as they are printed, "Ada Lovelace, Li Wei, The PRISMA Group"; beyond the first twenty "et al."."""
    found = list(filter(None, (_person(contrib) for contrib in _contributors(meta))))
    return ", ".join(found[:_MOST_AUTHORS]) + (" et al." if len(found) > _MOST_AUTHORS else "")


def _contributors(meta: Any) -> Iterable[Any]:
    for group in meta.iterchildren("{*}contrib-group"):
        for contrib in group.iterchildren("{*}contrib"):
            if contrib.get("contrib-type", "author") == "author":
                yield contrib


def _person(contrib: Any) -> str:
    for child in contrib:
        tag = name(child)
        if tag == "name-alternatives" and len(child):
            child = child[0]
            tag = name(child)
        if tag == "name":
            parts = {name(part): plain_text.text(part) if len(part) else (part.text or "").strip() for part in child}
            order = ["given-names", "surname"]
            if child.get("name-style") == "eastern":
                order.reverse()
            return " ".join(filter(None, [parts.get("prefix", ""), *(parts.get(n, "") for n in order)]))
        if tag == "string-name":
            return plain_text.text(child)
        if tag == "collab":  # its members may stand in it
            words = [child.text or ""]
            for part in child:
                words += ["" if name(part) in ("contrib-group", "xref") else plain_text.text(part), part.tail or ""]
            return " ".join(" ".join(words).split())
    return ""


class Reader:
    """Reads the rights in the figures of one article; `permissions` and `attribs` are all such elements in it."""

    def __init__(self, meta: Any, permissions: Iterable[Any], attribs: Iterable[Any]) -> None:
        self._meta = meta
        self._own: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._permissions: dict[Any, list[Any]] = defaultdict(list)
        self._attribs: dict[Any, list[str]] = defaultdict(list)
        self._groups: dict[Any, credit.Credit] = {}
        for element in permissions:
            if (scope := _scope(element)) is not None:
                self._permissions[scope].append(element)
        for element in attribs:
            scope = _scope(element)
            if scope is not None and name(scope) in ("fig", "fig-group") and (text := plain_text.text(element)):
                self._attribs[scope].append(text)

    def of(self, figure: Any, caption: str, group: Any, group_caption: str) -> Rights:
        """The rights in a figure with this caption, in a group (or None) with that."""
        lines = [self._read(caption)]
        if group_caption:
            if group not in self._groups:
                self._groups[group] = self._read(group_caption)
            lines.append(self._groups[group])
        if not self._permissions and not self._attribs:
            if all(line is credit.NONE for line in lines):
                return NONE  # nearly always
            return _together([], lines, [])
        attribs = [*self._attribs.get(figure, ()), *self._attribs.get(group, ())]
        lines += [self._read(text) for text in attribs]
        return _together(self._permitted(figure), lines, attribs)

    def _permitted(self, figure: Any) -> list[tuple[str, str]]:
        """(licence, holder) of the permissions that are nearest to the figure."""
        scope = figure
        while scope is not None and scope not in self._permissions:
            scope = scope.getparent()
        if scope is None:
            return []
        return [self._permission(element) for element in self._permissions[scope]]

    def _permission(self, element: Any) -> tuple[str, str]:
        found = stated(element)
        words = " ".join(filter(None, map(plain_text.text, element.iterchildren(*_HOLDERS))))
        if found != licence.UNKNOWN:
            return found, ""
        if next(element.iter("{*}license"), None) is None and (not words or self._is_own(words)):
            return "", ""
        return licence.UNKNOWN, words or plain_text.text(element)

    def _is_own(self, statement: str) -> bool:
        names, statements = self._about()
        return credit.is_own(statement, names, statements)

    def _read(self, text: str) -> credit.Credit:
        return credit.read(text, *self._about()) if credit.may_have(text) else credit.NONE

    def _about(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The authors' names, and what the article's own copyright lines say."""
        if self._own is None:
            names: list[str] = []
            statements: list[str] = []
            if self._meta is not None:
                for contrib in _contributors(self._meta):
                    surnames = [plain_text.text(e) for e in contrib.iter("{*}surname")]
                    names += surnames or [_person(contrib)]
                statements = [plain_text.text(e) for e in self._meta.iter(*_HOLDERS)]
            self._own = tuple(filter(None, names)), tuple(filter(None, statements))
        return self._own


def _scope(element: Any) -> Any | None:
    """What permissions or an attribution are about: the figure they stand in, else what they stand on; None for the
    article itself."""
    above = element.getparent()
    figure = next((a for a in element.iterancestors() if name(a) == "fig"), None)
    if figure is not None or above is None:
        return figure
    if name(above) not in _METADATA:
        return above
    return sub_article(element)


def _together(permitted: Sequence[tuple[str, str]], lines: Iterable[credit.Credit], attribs: Sequence[str]) -> Rights:
    lines = [line for line in lines if line.licence]
    found = [one for one, _ in permitted if one] + [line.licence for line in lines]
    said = [*attribs, *(holder for _, holder in permitted), *(line.line for line in lines)]
    said = [one for i, one in enumerate(said) if one and not any(one in other for other in said[:i])]
    whole = reduce(licence.strictest, found) if found else ""
    return Rights(whole, whole == licence.UNKNOWN, " ".join(said))
