"""What a person reads about a corpus: `ATTRIBUTION.md` and `report.html`, from the tally of all its units."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llavamed.corpus import attribution, licence
from llavamed.corpus.tally import WORDS, Tally
from llavamed.imaging.thumbnail import thumbnail
from llavamed.manifest import Manifest, write_atomic
from llavamed.records import DOMAINS, Pair
from llavamed.report import Page

ATTRIBUTION = "ATTRIBUTION.md"
REPORT = "report.html"
LEFT_OUT = "left_out.jsonl"  # the few images of each reason that the page shows, small
_ROWS = 50  # articles left out that the page names

# In the order of the manifest.
COUNTS = (
    "articles",
    "articles_left_out",
    "figures",
    "figure_images",
    "mentions",
    "mentions_bare",  # table cells that say "Fig. 5" and no more
    "articles_mended",  # read in spite of a prefix or a named character that the file does not declare
    "licence_conflicts",  # articles whose metadata and XML name different licences; the narrower holds
    "citations",  # links to a figure, captions' own included
    "citations_unresolved",  # of them those that name a figure which is not in the file; the manifest lists them
    "panels",  # cut from compound figures; pairs beside those of the whole figures
    "pairs",
)

# What the reasons mean, for the page.
_MEANING = {
    "not_xml": "the file is not XML, or cut short",
    "not_jats": "XML, but no <article>",
    "xml_entities": "the XML declares entities of its own (bombs and calls to other files are made of them)",
    "xml_own_dtd": "the XML brings a document type of its own",
    "xml_encoding": "an encoding that cannot be checked",
    "xml_too_large": "the XML would fill the memory",
    "xml_bomb": "the XML unfolds to a multiple of its size",
    "xml_too_deep": "nested deeper than any article",
    "mentions_bomb": "citations that would write one paragraph thousands of times",
    "text_bomb": "a caption or title that would be written thousands of times",
    "xml_oversized": "one text, name or attribute of millions of characters",
    "not_fetched": "`corpus fetch` has not got all of the article yet",
    "metadata_damaged": "the metadata cannot be read, so nobody knows whether it is retracted",
    "retracted": "the metadata says it is retracted",
    "superseded": "a later version of the article is here",
    "too_large": "the file is too large to be an article",
    "unreadable": "the file or folder cannot be opened",
    "no_file": "a link to nothing, or something that is no file",
    "link_leads_out": "a link to a file outside the articles",
    "linked_folder": "a link to a folder: it is not entered",
    "bucket_without_article": "no XML in the folder bears the folder's name",
    "archive_without_article": "a zip or tar without any XML",
    "archive_unknown": "packed in a way that is not read",
    "nested_archive": "an archive in an archive: it is not entered",
    "archive_damaged": "the archive, or this file in it, is damaged",
    "archive_encrypted": "the archive is encrypted",
    "archive_bomb": "an archive that unfolds to a multiple of its size",
    "archive_too_many_files": "an archive of more files than any article has",
    "archive_path_out": "a name in an archive that leads out of it",
    "archive_link": "a link in an archive",
    "archive_device": "a device or pipe in an archive",
    "licence_unknown": "no licence that is recognised",
    "licence_excluded": "the recipe's policy does not permit its licence",
    "third_party": "a credit line or its permissions say that somebody else owns the figure",
    "caption_too_short": "fewer words than corpus.min_caption_words",
    "no_graphic": "the figure names no image",
    "image_missing": "the image is not beside the article; listed in without_image.jsonl",
    "image_format": "the image is there, but as SVG, EPS, PDF or the like; listed in without_image.jsonl",
    "image_again": "the same file as another image of the figure",
    "image_empty": "an empty file",
    "image_truncated": "the image ends too early",
    "image_damaged": "the image is damaged",
    "image_too_many_pixels": "more pixels than corpus.max_pixels",
    "image_too_large": "the file is too large to be an image",
    "image_unreadable": "the image file cannot be opened",
    "image_archive_damaged": "the image is damaged in its archive",
    "image_archive_encrypted": "the archive is encrypted",
    "image_archive_bomb": "the archive unfolds to a multiple of its size",
    "image_polyglot": "an image that is a document, an archive or a script as well",
    "image_too_many_scans": "a JPEG made of hundreds of passes",
    "not_an_image": "no JPEG, PNG, WEBP, TIFF, BMP or GIF",
    "too_small": "the short side is under corpus.min_side",
    "too_elongated": "the sides' ratio is over corpus.max_aspect",
    "near_constant": "a blank or single-coloured image",
    "benchmark_image": "an image of a benchmark (audit.html); taken out",
    "benchmark_figure": "of one figure with a pair that was taken out",
    "benchmark_question": "caption or mentions hold a question of a benchmark (audit.html); taken out",
}

# Why a compound figure stays whole.
_WHOLE = {
    "split": "cut into panels, one for each label of its caption",
    "no_labels": "the caption's labels do not run from A without a gap",
    "no_gutters": "no band of paper from edge to edge parts the picture",
    "counts_differ": "the picture does not fall into as many panels as the caption names",
    "panel_too_small": "a panel is under corpus.min_side, or too elongated",
}


def describe(result: Manifest, tally: Tally) -> None:
    """Put funnel, domains and licences into the manifest; its counts are there."""
    result.funnel = {**_sorted(tally.articles_funnel, "article_"), **_sorted(tally.funnel)}
    found = result.counts["figure_images"] + result.counts["panels"]
    accounted = result.counts["pairs"] + tally.funnel.total()
    assert found == accounted, "a figure is not accounted for"
    result.extra = {"domains": _sorted(tally.domains), "licences": _sorted(tally.licences)}
    result.extra["compound"] = _sorted(tally.whole)
    lengths = {"caption_words": tally.caption_words, "mention_words": tally.mention_words}
    result.extra |= {name: {words: counted[words] for words in WORDS} for name, counted in lengths.items()}
    result.extra["articles_left_out"] = tally.left_out
    result.extra["citations_unresolved"] = tally.unresolved


def _sorted(counter: Counter[str], prefix: str = "") -> dict[str, int]:
    return {f"{prefix}{key}": counter[key] for key in sorted(counter)}


def write_attribution(out: Path, tally: Tally) -> None:
    lines = [
        "# Attribution",
        "",
        "The figures and texts of this corpus come from the articles below, under the licence named with each; where",
        "some of an article's figures are under another, their keys follow, and so does what a figure says of its",
        "origin.",
        "Articles of PubMed Central are courtesy of the U.S. National Library of Medicine. Retractions and new",
        "versions after the day of download are not reflected here. Pictures were left as they were published, but for",
        "TIFF and BMP, which became PNG; captions lost their markup.",
        *["Pairs that name a `parent` are panels, cut from its picture and caption."] * bool(tally.whole),
        "",
        "| licence | pairs with an image | its text |",
        "|---|---|---|",
        *(f"| {name} | {count} | {_text_of(name)} |" for name, count in _licences(tally)),
        "",
    ]
    write_atomic(out / ATTRIBUTION, "\n".join([*lines, *attribution.lines(tally.credits)]) + "\n")


def _licences(tally: Tally) -> list[tuple[str, str]]:
    """Those of pairs without an image too, which are not counted."""
    named = {name for entry in tally.credits.values() for name in (entry["licence"], *entry.get("others", ()))}
    return _by_count(Counter({**dict.fromkeys(named, 0), **tally.licences}))


def _text_of(name: str) -> str:
    if name == licence.UNKNOWN:
        return "none is known"
    return f"<{address}>" if (address := licence.url(name)) else "as the article states it"


def write_left_out(out: Path, tally: Tally) -> None:
    lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in tally.rejected)
    write_atomic(out / LEFT_OUT, "".join(lines))


def write_page(
    out: Path, result: Manifest, tally: Tally, articles: str, image: Callable[[list[Any]], bytes | None]
) -> None:
    """`image` gives the bytes at a place (shard, offset, size)."""
    counts = result.counts
    page = Page(
        "Corpus",
        f"Pairs of figure and text from {articles}; licence policy: {result.settings['licence']}.",
        {name: f"{counts[name]:,}" for name in ("articles", "figures", "mentions", "pairs")},
    )
    page.table("Articles", ("", "articles", "meaning"), _rows("used", counts["articles"], tally.articles_funnel))
    page.table(
        "Figures",
        ("", "images", "meaning"),
        [
            ("named by the articles", f"{counts['figure_images']:,}", "one for each image of a figure"),
            *([("panels cut from them", f"+{counts['panels']:,}", "corpus.panels")] if tally.whole else []),
            *_rows("pairs", counts["pairs"], tally.funnel),
        ],
        "Each image that is left out is counted once, under the first check that it fails.",
    )
    page.table(
        "Domains", ("domain", "pairs"), _by_count(tally.domains), "By the words of the caption, mentions and title."
    )
    page.table("Licences", ("licence", "pairs"), _by_count(tally.licences))
    page.table(
        "Lengths",
        ("words", "captions", "mentions, together"),
        [(words, f"{tally.caption_words[words]:,}", f"{tally.mention_words[words]:,}") for words in WORDS],
        "Pairs by the number of words of their caption, and of all the sentences that cite them.",
    )
    if tally.whole:
        page.table(
            "Compound figures",
            ("", "figures", "meaning"),
            [(name, count, _WHOLE.get(name, "")) for name, count in _by_count(tally.whole)],
            "Whole figures are kept in every case, and each panel is a pair beside its figure.",
        )
    page.table(
        "Said more than once",
        ("", "groups"),
        [(name.replace("_groups", "s"), f"{counts[name]:,}") for name in ("image_groups", "caption_groups")],
        "Pairs with the same or nearly the same image or caption; they are kept, and the index names their group.",
    )
    if audits := result.extra.get("audits"):
        names = ("benchmark", "images_found", "questions_found", "pairs")
        page.table(
            "Audited against", ("benchmark", "its images found", "its questions found", "pairs taken out"),
            [[one[name] for name in names] for one in audits],
        )  # fmt: skip
        page.links("What was found", [("audit.html", "audit.html")])
    if tally.left_out:
        named = [(row["where"], row["reason"], row["message"]) for row in tally.left_out[:_ROWS]]
        page.table("Articles left out", ("file", "reason", "message"), named, f"The first {len(named)} of them.")
    for domain in DOMAINS:
        shown = [one for one in tally.samples if one["kind"] == domain]
        pairs = [Pair.from_json(one["pair"]) for one in shown]
        if pairs:
            images = [image(one["place"]) if one["place"] else None for one in shown]
            page.cards(f"A sample: {domain}", [_card(pair, data) for pair, data in zip(pairs, images, strict=True)])
    if tally.rejected:
        page.cards("Left out: a few of each reason", [_rejected(one) for one in tally.rejected])
    page.write(out / REPORT)


def _rows(first: str, count: int, funnel: Counter[str]) -> list[tuple[str, str, str]]:
    dropped = [(reason, f"-{n:,}", _MEANING.get(reason, "")) for reason, n in funnel.most_common()]
    return [*dropped, (first, f"{count:,}", "")]


def _by_count(counter: Counter[str]) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in sorted(counter.items(), key=lambda item: (-item[1], item[0]))]


def _rejected(one: dict[str, Any]) -> dict[str, Any]:
    pair = Pair.from_json(one["pair"])
    lines = [("reason", _MEANING.get(one["kind"], "")), ("caption", pair.caption or "none"), ("from", pair.source)]
    lines += [("licence", pair.licence)] * one["kind"].startswith("licence")
    lines += [("credit", pair.credit)] * (one["kind"] == "third_party")
    return {"image": one["image"], "title": f"{one['kind']}: {pair.key}", "lines": lines}


def _card(pair: Pair, data: bytes | None) -> dict[str, Any]:
    url = thumbnail(data) if data else ""
    lines = [("caption", pair.caption)]
    lines += [(f"mention {mention.panels}".strip(), mention.sentence) for mention in pair.mentions[:3]]
    flags = [*["plot"] * pair.is_plot, *["compound"] * pair.is_compound]
    flags += [f"panel {pair.panel} of {pair.parent}"] if pair.parent else []
    kind = ", ".join([pair.domain, *flags, pair.licence])
    lines += [("credit", pair.credit)] * bool(pair.credit)
    lines.append(("kind", kind if url else f"{kind}; the image is missing"))
    return {"image": url, "title": f"{pair.key} {pair.label}".strip(), "lines": lines}
