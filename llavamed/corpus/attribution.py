"""One article's entry in `ATTRIBUTION.md`: who made it, what it is called, where it is and under which licence.

That is what section 3(a) of the Creative Commons licences asks for. Most of an article's figures have its licence;
those that have another are named beside it, and so is what a figure says of its origin. All of these words come from
files of strangers, and the page is Markdown, so nothing in them may act as a link, an image or a tag.

Entries are small, as there is one in the memory for each article of a corpus: {"line", "licence"}, and where there is
need of it "others": {licence: [keys]} and "said": {key: words}. An empty list means that the entry was met twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from llavamed.records import Pair

Entry = dict[str, Any]

_ACTIVE = re.compile(r"([\\`*_\[\]<>|~#$!])")
_ADDRESS = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)(?=\w)", re.IGNORECASE)  # renderers make links of these


def plain(text: str) -> str:
    """Words as Markdown that shows just them."""
    text = " ".join(text.split()).replace("&", "&amp;")
    return _ADDRESS.sub("<!-- -->", _ACTIVE.sub(r"\\\1", text))


def link(pair: Pair) -> str:
    """Where the article is: its DOI, its page in PubMed Central or in PubMed, or "" if none is known."""
    if pair.doi:
        return f"https://doi.org/{quote(pair.doi, safe='/:;()')}"
    if found := re.match(r"PMC\d+", pair.article):
        return f"https://pmc.ncbi.nlm.nih.gov/articles/{found[0]}/"
    return f"https://pubmed.ncbi.nlm.nih.gov/{pair.pmid}/" if pair.pmid.isdecimal() else ""


def add(credits: dict[str, Entry], pair: Pair) -> None:
    """Give credit for a pair, with or without its image."""
    entry = credits.get(pair.article)
    if entry is None:
        title = pair.title.strip().rstrip(".") or "Without a title"
        parts = [plain(part).rstrip(".") + "." for part in (pair.authors, title) if part]
        parts += [f"<{address}>"] if (address := link(pair)) else []
        entry = {"line": f"{' '.join(parts)} ({plain(pair.article)})", "licence": pair.licence}
        credits[pair.article] = entry
    key = pair.parent or pair.key
    if pair.licence != entry["licence"]:
        keys = entry.setdefault("others", {}).setdefault(pair.licence, [])
        keys += [key] * (key not in keys)
    if pair.credit:
        entry.setdefault("said", {}).setdefault(key, pair.credit)


def merge(credits: dict[str, Entry], others: dict[str, Entry]) -> None:
    """Add the entries of another part of the corpus; one article may be in two."""
    for article, entry in others.items():
        mine = credits.setdefault(article, entry)
        if mine is entry:
            continue
        if entry["licence"] != mine["licence"]:
            mine.setdefault("others", {}).setdefault(entry["licence"], [])
        for name, keys in entry.get("others", {}).items():
            if name != mine["licence"]:
                mine.setdefault("others", {}).setdefault(name, []).extend(keys)
        if "said" in entry:
            mine["said"] = entry["said"] | mine.get("said", {})


def lines(credits: dict[str, Entry]) -> Iterator[str]:
    for article in sorted(credits):
        entry = credits[article]
        yield f"- {entry['line']}. {entry['licence']}."
        for name, keys in sorted(entry.get("others", {}).items()):
            which = ", ".join(f"`{key}`" for key in keys) or "pairs of another copy, whose field `licence` says so"
            yield f"  - {name}: {which}"
        for key, words in sorted(entry.get("said", {}).items()):
            yield f"  - `{key}`: {plain(words)}"
