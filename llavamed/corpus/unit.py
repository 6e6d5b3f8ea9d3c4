"""A work unit: some articles in, their shard out. The same function for one process, many, or many machines.

For each article: read the XML, find each figure's images beside it, check them, and write one pair per image. What is
dropped is counted under one reason, the first in the order of the checks in `_examine`.

A unit is a pure function of its articles and settings: no clock, no random numbers, no order but that of the articles.
So it does not matter who makes it, and it may be made twice. It writes, through `Output`:

    shard-402198305514.tar        its pairs (more than PAIRS_PER_SHARD: shard-402198305514-001.tar...; or .parquet)
    units/402198305514.parquet    their rows of the index, with the MinHash of each caption and each picture's miniature
    units/402198305514.jsonl      its pairs whose image is missing
    units/402198305514.json       its tally, its fingerprint, how long the others are; last: with it a unit is finished

The files in `units/` stay: the next build of the same folder goes on from them (`build`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import ImageStat

from llavamed.corpus import archives, domain, jats, licence, panel, sources, store
from llavamed.corpus.duplicates import minhash
from llavamed.corpus.output import Output
from llavamed.corpus.tally import NAMED, Tally
from llavamed.imaging.decode import Glance, ImageError, decode, glance
from llavamed.imaging.lookalike import miniature, phash
from llavamed.manifest import file_sha256, fingerprint
from llavamed.recipe import CorpusSection
from llavamed.records import Pair

ARTICLES = 50  # a unit, half of it more or less: about three hundred pairs, and little to wait for at the end
KINDS = ("json", "jsonl", "parquet")  # of a unit's files; without the first it is not finished
FOLDER = "units/"
_PACKED_BYTES = 2**20  # of an article with its images
_LEAST_DEVIATION = 2.0  # of luminance, 0-255: below it a picture is a blank page or a solid block

Entry = sources.Source | sources.Package
_Made = tuple[Pair, bytes, np.ndarray]  # a pair, its image's bytes, its miniature


@dataclass
class _Drop(Exception):
    """Why a figure's image does not become a pair; `image` has its bytes where they were read."""

    reason: str
    image: bytes | None = None


class _Candidate(NamedTuple):
    """One image that a figure names: its href ("" if it names none), and the names and digests of the figure's images
    before it."""

    figure: jats.Figure
    href: str
    before: set[str | bytes]


@dataclass(frozen=True)
class Unit:
    """`name` is that of its files; `settings` the fingerprint of all that is not in the articles; `taken` holds keys
    that other units have."""

    name: str
    entries: tuple[Entry, ...]
    section: CorpusSection
    settings: str
    taken: frozenset[str] = frozenset()

    @property
    def fingerprint(self) -> str:
        read = [(entry.where, entry.stamp) for entry in self.entries]
        parts = [(entry.part, entry.parts) for entry in self.entries if isinstance(entry, sources.Package)]
        return fingerprint([self.name, self.settings, read, parts, sorted(self.taken)])

    @property
    def size(self) -> int:
        """How much work it is, roughly, in articles; of an archive little is known before it is opened."""
        packed = sum(one.size // one.parts for one in self.entries if isinstance(one, sources.Package))
        return len(self.entries) + packed // _PACKED_BYTES

    def file(self, kind: str) -> str:
        return f"{FOLDER}{self.name}.{kind}"


def marker_of(shard: str) -> str:
    """The file that says that the unit of this shard is finished."""
    return f"{FOLDER}{re.split('[-.]', shard)[1]}.json"


def finished(unit: Unit, out: Output, there: Mapping[str, int] | None = None) -> Tally | None:
    """The tally of a unit that was made by an earlier run, or None. With `there`, the bytes of the files in the place,
    also None where one of its files is gone or of another length."""
    try:
        found = json.loads(out.read(unit.file("json")) or b"null")
    except ValueError:  # as a disk that failed leaves it
        return None
    if not isinstance(found, dict) or found.get("fingerprint") != unit.fingerprint:
        return None
    if there is not None and not found["bytes"].items() <= there.items():
        return None
    return Tally.from_json(found["tally"])


def make(unit: Unit, out: Output) -> Tally:
    """Make the unit, unless it is finished, and return its tally."""
    tally = finished(unit, out)
    if tally is not None:
        return tally
    tally = Tally()
    with out.workspace() as place:
        lines = place / "imageless.jsonl"
        with (
            store.CorpusWriter(place, unit.name, groups=True, fmt=unit.section.format) as writer,
            lines.open("w", encoding="utf-8") as imageless,
        ):
            taken = set(unit.taken)
            for source, article, metadata in articles(unit.entries, tally):
                for pair, candidate in _candidates(source, article, metadata, taken):
                    try:
                        pair, data, look = _examine(pair, candidate, source, unit.section)
                    except _Drop as drop:
                        tally.reject(drop.reason, pair, drop.image)
                        if drop.reason in ("image_missing", "image_format"):
                            imageless.write(json.dumps(pair.to_json(), ensure_ascii=False) + "\n")
                            tally.credit(pair)
                            tally.show(pair)
                        continue
                    panels: list[_Made] = []
                    if unit.section.panels and pair.is_compound:
                        pair, panels = _panels(pair, data, unit.section, taken)
                        tally.whole[pair.whole_because or "split"] += 1
                        tally.counts["panels"] += len(panels)
                    for one, image, small in ((pair, data, look), *panels):
                        writer.add(one, image, minhash(one.caption), small)
                        tally.keep(one)
                        tally.show(one)
        tally.put_places(writer.places)
        tally.files |= {shard.name: file_sha256(shard) for shard in writer.shards}
        made = {shard.name: shard for shard in writer.shards}
        made |= {unit.file("parquet"): place / store.INDEX, unit.file("jsonl"): lines}
        sizes = {name: path.stat().st_size for name, path in made.items()}
        for name, path in made.items():
            out.put(name, path)
        marker = place / "unit.json"
        body = {"fingerprint": unit.fingerprint, "bytes": sizes, "tally": tally.to_json()}
        marker.write_text(json.dumps(body), encoding="utf-8")
        out.put(unit.file("json"), marker)
    return tally


Read = tuple[sources.Source, jats.Article, dict[str, Any]]  # an article, where it stands, and its metadata


def articles(entries: Collection[Entry], tally: Tally) -> Iterator[Read]:
    """The articles of the entries that can be read; the others are counted."""
    for entry in entries:
        found, problems = entry.open() if isinstance(entry, sources.Package) else ([entry], [])
        for problem in problems:
            tally.leave_out(problem.where, problem.reason, problem.message)
        for source in found:
            if (read := _read(source, tally)) is not None:
                yield source, *read


def _read(source: sources.Source, tally: Tally) -> tuple[jats.Article, dict[str, Any]] | None:
    """The article and its metadata, or None, counted by reason."""
    try:
        metadata = source.metadata() or {}
        if metadata.get("is_retracted"):
            tally.leave_out(source.where, "retracted", f"{source.where}: retracted, says its metadata")
            return None
        article = jats.parse_article(source.xml(), source.where)
    except (jats.ArticleError, archives.SourceError) as error:
        tally.leave_out(source.where, error.reason, str(error))
        return None
    code = _string(metadata, "license_code")
    tally.counts["licence_conflicts"] += licence.conflict(code, article.licence)
    article = replace(
        article,
        licence=licence.combine(code, article.licence),
        pmcid=article.pmcid or _string(metadata, "pmcid"),
        pmid=article.pmid or _string(metadata, "pmid"),
        doi=article.doi or _string(metadata, "doi"),
        title=article.title or _string(metadata, "title"),
    )
    tally.counts.update(
        articles=1,
        figures=len(article.figures),
        figure_images=sum(max(1, len(figure.graphics)) for figure in article.figures),
        mentions=sum(len(figure.mentions) for figure in article.figures),
        mentions_bare=article.mentions_bare,
        articles_mended=article.mended,
        citations=article.citations,
        citations_unresolved=len(article.unresolved),
    )
    found = ({"where": source.where, "rid": u.rid, "text": u.text} for u in article.unresolved)
    tally.unresolved = [*tally.unresolved, *found][:NAMED]
    return article, metadata


def _candidates(
    source: sources.Source, article: jats.Article, metadata: dict[str, Any], taken: set[str]
) -> list[tuple[Pair, _Candidate]]:
    """A pair, yet without its image, for every image the article names, and one for a figure without any."""
    name = _identity(source, article, metadata)
    rows = []
    for number, figure in enumerate(article.figures, 1):
        caption = f"{figure.group_caption} {figure.caption}".strip()
        verdict = domain.classify(caption, figure.mentions, article.title)
        is_compound = panel.is_compound(caption)
        own = licence.strictest(article.licence, figure.licence) if figure.licence else article.licence
        before: set[str | bytes] = set()
        for href in figure.graphics or ("",):
            pair = Pair(
                key=store.make_key(name, figure.id or f"figure{number}", taken),
                file="",
                caption=caption,
                label=figure.label,
                mentions=figure.mentions,
                title=article.title,
                authors=article.authors,
                article=name,
                figure=figure.id,
                pmid=article.pmid,
                doi=article.doi,
                licence=own,
                credit=figure.credit,
                source=source.where,
                domain=verdict.domain,
                domain_score=verdict.score,
                is_plot=verdict.is_plot,
                is_compound=is_compound,
            )
            rows.append((pair, _Candidate(figure, href, before)))
    return rows


def _examine(pair: Pair, candidate: _Candidate, source: sources.Source, section: CorpusSection) -> _Made:
    """The finished pair, the bytes to store and the miniature. Raises _Drop with the first check that fails."""
    figure, href, before = candidate
    if not licence.allowed(pair.licence, section.licence):
        if figure.third_party:
            raise _Drop("third_party")
        raise _Drop("licence_unknown" if pair.licence == licence.UNKNOWN else "licence_excluded")
    if len(pair.caption.split()) < section.min_caption_words:
        raise _Drop("caption_too_short")
    if not href:
        raise _Drop("no_graphic")
    name = PurePosixPath(href.replace("\\", "/")).name.lower()
    if name in before:
        raise _Drop("image_again")
    before.add(name)
    try:
        data = source.image(href)
        if data is None:
            raise _Drop("image_missing")
        digest = hashlib.sha256(data).digest()
        if digest in before:
            raise _Drop("image_again")
        before.add(digest)
        seen = glance(data, f"{source.where}: {href}", section.max_pixels)
    except (ImageError, archives.SourceError) as error:
        raise _Drop(error.reason if "image" in error.reason else f"image_{error.reason}") from None
    if min(seen.width, seen.height) < section.min_side:
        raise _Drop("too_small", data)
    if max(seen.width, seen.height) > section.max_aspect * min(seen.width, seen.height):
        raise _Drop("too_elongated", data)
    if ImageStat.Stat(seen.grey).stddev[0] < _LEAST_DEVIATION:
        raise _Drop("near_constant", data)
    extension, stored = store.as_stored(data, seen.full)
    pair = replace(
        pair,
        file=f"{pair.key}.{extension}",
        width=seen.width,
        height=seen.height,
        sha256=hashlib.sha256(stored).hexdigest(),
        phash=f"{phash(seen.grey):016x}",
    )
    return pair, stored, miniature(seen)


def _panels(whole: Pair, data: bytes, section: CorpusSection, taken: set[str]) -> tuple[Pair, list[_Made]]:
    """The whole figure's pair, which says why it stays whole if it does, and the pairs of its panels."""
    try:
        image = decode(data, whole.key, section.max_pixels)
    except ImageError as error:  # the glance took it, at an eighth of its size
        return replace(whole, whole_because=error.reason), []
    grey_HW = np.asarray(image.convert("L"))
    found = panel.split(grey_HW, whole.caption)
    sides = [(box[2] - box[0], box[3] - box[1]) for _, box in found.panels]
    if any(min(side) < section.min_side or max(side) > section.max_aspect * min(side) for side in sides):
        return replace(whole, whole_because="panel_too_small"), []
    if not found.panels:
        return replace(whole, whole_because=found.whole_because), []
    made = []
    for part, box in found.panels:
        mentions = tuple(m for m in whole.mentions if not m.panels or len(part.label) > 1 or part.label in m.panels)
        verdict = domain.classify(part.text, mentions, whole.title)
        if verdict.score == 0:  # "MRI, sagittal (A) and axial (B)": what it shows is said of all
            verdict = domain.Verdict(whole.domain, whole.domain_score, whole.is_plot)
        key = store.make_key(whole.key, part.label, taken)
        extension, stored = store.cropped(image, box, whole.file)
        seen = Glance(box[2] - box[0], box[3] - box[1], image.crop(box).convert("L"), None)
        pair = replace(
            whole,
            key=key,
            file=f"{key}.{extension}",
            caption=part.text,
            mentions=mentions,
            width=seen.width,
            height=seen.height,
            sha256=hashlib.sha256(stored).hexdigest(),
            phash=f"{phash(seen.grey):016x}",
            domain=verdict.domain,
            domain_score=verdict.score,
            is_plot=verdict.is_plot,
            is_compound=False,
            parent=whole.key,
            panel=part.label,
            panel_box=",".join(map(str, box)),
        )
        made.append((pair, stored, miniature(seen)))
    return whole, made


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
