"""Articles -> a corpus of pairs, with an account of everything that was left out.

For each article: read the XML, find each figure's images beside it, check them, and write one pair per
image. Nothing is skipped silently: an article or figure that is dropped is counted under one reason,
the first in the order of the checks below, and the figures add up:

    figure_images = pairs + the figures' part of the funnel

A bad article never stops a build; a build in which no article can be read is an error. Figures that
pass every check but have no image on disk are written to `without_image.jsonl` (text-only sources such
as Europe PMC's XML still give captions, labels and mentions).

Same articles, same settings: same bytes in every shard and in the index. A finished folder is not
built again, and an older corpus is only given up once an article of the new one has been read.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import ImageStat

from llavamed import manifest
from llavamed.corpus import archives, domain, jats, licence, sources, store
from llavamed.corpus.summary import ATTRIBUTION, REPORT, Summary
from llavamed.errors import InputError
from llavamed.imaging.decode import ImageError, glance
from llavamed.manifest import Manifest
from llavamed.progress import track
from llavamed.recipe import CorpusSection
from llavamed.records import Pair

WITHOUT_IMAGE = "without_image.jsonl"
_SHARDS = "shard-[0-9]*.tar"
_OURS = (_SHARDS, store.INDEX, WITHOUT_IMAGE, ATTRIBUTION, REPORT)
_LEAST_DEVIATION = 2.0  # of luminance, 0-255: below it a picture is a blank page or a solid block
_NAMED = 1000  # articles left out, and unresolved citations, that the manifest names one by one


@dataclass
class _Drop(Exception):
    """Why a figure's image does not become a pair."""

    reason: str


def build(articles: Path, out: Path, section: CorpusSection | None = None) -> Manifest:
    """Build the corpus of `articles` (a folder or a zip, see `sources`) in `out`, or return what is there already.

    Raises InputError for a path without articles, for one in which no article can be read, and for an
    `out` that holds something else; in all these cases `out` is left as it was.
    """
    section = section or CorpusSection()
    licence.check_policy(section.licence)
    if out.resolve().is_relative_to(articles.resolve()):
        raise InputError(f"{out}: lies in the articles ({articles}); give the corpus a folder of its own")
    listing = sources.scan(articles)
    settings = section.model_dump(mode="json", exclude={"articles"})
    result = Manifest("corpus", settings, {str(articles): listing.fingerprint})
    if manifest.is_done(out, result):
        print(f"{out}: finished already, skipped", file=sys.stderr)
        return _finished(out)
    began = time.monotonic()
    summary = Summary(str(articles), section)
    for problem in listing.problems:
        summary.leave_out(problem.where, problem.reason, problem.message)
    articles_read = _read_all(listing.entries, summary)
    first = next(articles_read, None)
    if first is None:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.articles_funnel.items()))
        raise InputError(f"{articles}: no article in it can be used ({reasons}; e.g. {summary.left_out[0]['message']})")
    manifest.begin(out, result.stage)
    _clear(out)
    with store.CorpusWriter(out) as writer, (out / WITHOUT_IMAGE).open("w", encoding="utf-8") as imageless:
        taken: set[str] = set()
        for source, article, metadata in chain([first], articles_read):
            for pair, figure, href in _candidates(source, article, metadata, taken):
                try:
                    pair, data = _examine(pair, figure, href, source, section)
                except _Drop as drop:
                    summary.funnel[drop.reason] += 1
                    if drop.reason == "image_missing":
                        imageless.write(json.dumps(pair.to_json(), ensure_ascii=False) + "\n")
                        summary.show(pair, None)
                    continue
                writer.add(pair, data)
                summary.keep(pair)
                summary.show(pair, data)
    result.counts = {**summary.counts, "pairs": writer.count, "shards": len(list(out.glob(_SHARDS)))}
    result.funnel = {**_sorted(summary.articles_funnel, "article_"), **_sorted(summary.funnel)}
    assert result.counts["figure_images"] == writer.count + summary.funnel.total(), "a figure is not accounted for"
    result.extra = {"domains": _sorted(summary.domains), "licences": _sorted(summary.licences)}
    result.extra["articles_left_out"] = summary.left_out[:_NAMED]
    result.extra["citations_unresolved"] = summary.unresolved[:_NAMED]
    result.seconds = time.monotonic() - began
    summary.write(out, result)
    result.write(out)
    return result


_Read = tuple[sources.Source, jats.Article, dict[str, Any]]  # an article, where it stands, and its metadata


def _read_all(listed: Iterable[sources.Source | sources.Package], summary: Summary) -> Iterator[_Read]:
    for entry in track(listed, "reading articles", unit="articles"):
        found, problems = entry.open() if isinstance(entry, sources.Package) else ([entry], [])
        for problem in problems:
            summary.leave_out(problem.where, problem.reason, problem.message)
        for source in found:
            if (read := _read(source, summary)) is not None:
                yield source, *read


def _read(source: sources.Source, summary: Summary) -> tuple[jats.Article, dict[str, Any]] | None:
    """The article and its metadata, or None, counted by reason."""
    try:
        metadata = source.metadata() or {}
        if metadata.get("is_retracted"):
            summary.leave_out(source.where, "retracted", f"{source.where}: retracted, says its metadata")
            return None
        article = jats.parse_article(source.xml(), source.where)
    except (jats.ArticleError, archives.SourceError) as error:
        summary.leave_out(source.where, error.reason, str(error))
        return None
    stated = licence.combine(code, article.licence) if (code := _string(metadata, "license_code")) else article.licence
    article = replace(
        article,
        licence=stated,
        pmcid=article.pmcid or _string(metadata, "pmcid"),
        pmid=article.pmid or _string(metadata, "pmid"),
        doi=article.doi or _string(metadata, "doi"),
        title=article.title or _string(metadata, "title"),
    )
    summary.counts["articles"] += 1
    summary.counts["figures"] += len(article.figures)
    summary.counts["figure_images"] += sum(max(1, len(figure.graphics)) for figure in article.figures)
    summary.counts["mentions"] += sum(len(figure.mentions) for figure in article.figures)
    summary.counts["mentions_bare"] += article.mentions_bare
    summary.counts["citations"] += article.citations
    summary.counts["citations_unresolved"] += len(article.unresolved)
    summary.unresolved += [{"where": source.where, "rid": u.rid, "text": u.text} for u in article.unresolved]
    return article, metadata


def _candidates(
    source: sources.Source, article: jats.Article, metadata: dict[str, Any], taken: set[str]
) -> list[tuple[Pair, jats.Figure, str]]:
    """(pair without its image, figure, href) for every image the article names; "" for a figure without any."""
    name = _identity(source, article, metadata)
    rows = []
    for number, figure in enumerate(article.figures, 1):
        caption = f"{figure.group_caption} {figure.caption}".strip()
        verdict = domain.classify(caption, figure.mentions, article.title)
        for href in figure.graphics or ("",):
            pair = Pair(
                key=store.make_key(name, figure.id or f"figure{number}", taken),
                file="",
                caption=caption,
                label=figure.label,
                mentions=figure.mentions,
                title=article.title,
                article=name,
                figure=figure.id,
                pmid=article.pmid,
                doi=article.doi,
                licence=figure.licence or article.licence,
                source=source.where,
                domain=verdict.domain,
                domain_score=verdict.score,
                is_plot=verdict.is_plot,
                is_compound=domain.is_compound(caption),
            )
            rows.append((pair, figure, href))
    return rows


def _examine(
    pair: Pair, figure: jats.Figure, href: str, source: sources.Source, section: CorpusSection
) -> tuple[Pair, bytes]:
    """The finished pair and the bytes to store. Raises _Drop with the first check that fails."""
    if not licence.allowed(pair.licence, section.licence):
        raise _Drop("licence_unknown" if pair.licence == licence.UNKNOWN else "licence_excluded")
    if len(pair.caption.split()) < section.min_caption_words:
        raise _Drop("caption_too_short")
    if not href:
        raise _Drop("no_graphic")
    try:
        data = source.image(href)
        if data is None:
            raise _Drop("image_missing")
        seen = glance(data, f"{source.where}: {href}", section.max_pixels)
    except (ImageError, archives.SourceError) as error:
        raise _Drop(error.reason if "image" in error.reason else f"image_{error.reason}") from None
    if min(seen.width, seen.height) < section.min_side:
        raise _Drop("too_small")
    if max(seen.width, seen.height) > section.max_aspect * min(seen.width, seen.height):
        raise _Drop("too_elongated")
    if ImageStat.Stat(seen.grey).stddev[0] < _LEAST_DEVIATION:
        raise _Drop("near_constant")
    extension, stored = store.as_stored(data, seen.full)
    pair = replace(
        pair,
        file=f"{pair.key}.{extension}",
        width=seen.width,
        height=seen.height,
        sha256=hashlib.sha256(stored).hexdigest(),
    )
    return pair, stored


def _identity(source: sources.Source, article: jats.Article, metadata: dict[str, Any]) -> str:
    """The PMCID with its version where known, else the PMCID, the DOI or the file's stem."""
    if re.fullmatch(r"PMC\d+\.\d+", source.name):
        return source.name
    if article.pmcid and (version := _string(metadata, "version")):
        return f"{article.pmcid}.{version}"
    return article.pmcid or article.doi or source.name


def _string(metadata: dict[str, Any], key: str) -> str:
    value = metadata.get(key)
    return str(value) if isinstance(value, str | int) else ""


def _sorted(counter: Counter[str], prefix: str = "") -> dict[str, int]:
    return {f"{prefix}{key}": counter[key] for key in sorted(counter)}


def _clear(out: Path) -> None:
    """Remove what an unfinished or outdated build left; nothing else in the folder."""
    for pattern in _OURS:
        for path in out.glob(pattern):
            path.unlink()


def _finished(out: Path) -> Manifest:
    body = manifest.read(out)
    assert body is not None
    return Manifest(**{f.name: body[f.name] for f in fields(Manifest) if f.name in body})
