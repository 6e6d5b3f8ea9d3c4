"""Articles -> a corpus of pairs, with an account of everything that was left out.

The articles are cut into work units in the order of their names (`unit`), the units are made by whoever is there
(`engines`), and what they wrote is put together in the order of the units: the index with its groups of duplicates, the
attribution, the page, and last the manifest. Nothing is skipped silently: an article or figure that is dropped is
counted under one reason, and the figures add up:

    figure_images = pairs + the figures' part of the funnel

A bad article never stops a build; a build in which no article can be read is an error. Figures that
pass every check but have no image on disk are written to `without_image.jsonl` (text-only sources such
as Europe PMC's XML still give captions, labels and mentions).

Same articles, same settings: same bytes in every shard and in the index, whether one process made them or a hundred,
in one go or after being killed. A finished folder is not built again, and an older corpus is only given up once an
article of the new one has been read; with it goes what an audit took out of it and said of it, which is told.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llavamed import manifest
from llavamed.corpus import audit, card, engines, licence, sources, store, summary
from llavamed.corpus import unit as units
from llavamed.corpus.alone import alone
from llavamed.corpus.output import Output
from llavamed.corpus.tally import Tally
from llavamed.corpus.unit import Unit
from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.progress import Progress
from llavamed.recipe import CorpusSection

STAGE = "corpus"
VERSION = 3  # of what is made of the same articles and settings; another is built again
_SHARDS = "shard-[0-9]*"
_MADE = (store.INDEX, store.WITHOUT_IMAGE, card.CARD, summary.ATTRIBUTION, summary.REPORT, summary.LEFT_OUT)


def build(
    articles: Path,
    out: Path | str,
    section: CorpusSection | None = None,
    workers: int | None = None,
    engine: str = "local",
) -> Manifest:
    """Build the corpus of `articles` (a folder or an archive, see `sources`) in `out`, or return what is there already.

    `out` is a local folder or a place that fsspec knows ("s3://bucket/corpus"); `workers` None means one process for
    each processor, `engine` "ray" a Ray cluster that sees the articles under the same path. Raises InputError for a
    path without articles, for one in which no article can be read, and for an `out` that holds something else or is
    being written by another run; in all these cases `out` is left as it was.
    """
    section = section or CorpusSection()
    licence.check_policy(section.licence)
    place = Output(str(out))
    if place.folder is not None and place.folder.resolve().is_relative_to(articles.resolve()):
        raise InputError(f"{out}: lies in the articles ({articles}); give the corpus a folder of its own")
    listing = sources.scan(articles)
    settings = section.model_dump(mode="json", exclude={"articles"}) | {"version": VERSION}
    result = Manifest(STAGE, settings, {str(articles): listing.fingerprint})
    if (body := _finished(place, result)) is not None:
        print(f"{out}: finished already, skipped", file=sys.stderr)
        return Manifest.of(body)
    began = time.monotonic()
    tally = Tally()
    for problem in listing.problems:
        tally.leave_out(problem.where, problem.reason, problem.message)
    _try(articles, listing, tally)
    with alone(place.folder) if place.folder is not None else nullcontext():
        audits = _begin(place, result)
        made = _cut(listing, section, result.fingerprint)
        _clear(place, made)
        tallies = _make(made, place, engine, workers, len(listing.entries))
        made, tallies = _without_collisions(made, tallies, place)
        for one in made:
            tally.add(tallies[one.number])
        _put_together(place, made, tally, result, articles, began)
    _tell(out, articles, result, audits)
    return result


def _tell(out: Path | str, articles: Path, result: Manifest, audits: list[str]) -> None:
    """What a person should know at once."""
    if waiting := result.funnel.get("article_not_fetched"):
        print(
            f"{articles}: {waiting:,} articles are not fetched whole and left out; run the same `corpus fetch` again",
            file=sys.stderr,
        )
    if not result.counts["pairs"]:
        reasons = sorted(result.funnel.items(), key=lambda item: (-item[1], item[0]))
        most = ", ".join(f"{count:,} {reason}" for reason, count in reasons[:3]) or "the articles have no figures"
        print(f"{out}: no pair was kept ({most}); see report.html", file=sys.stderr)
    if audits:
        print(
            f"{out}: was audited against {', '.join(audits)}, which the new build undoes: run `llavamed corpus audit` "
            "again before you train on it",
            file=sys.stderr,
        )


def _finished(out: Output, result: Manifest) -> dict[str, Any] | None:
    """The manifest of a corpus made from the same input, perhaps audited since, whose files are all there."""
    if out.folder is not None and not out.folder.is_dir():
        return None
    body = manifest.read(out.folder) if out.folder is not None else json.loads(out.read(manifest.NAME) or b"null")
    if body is None or body.get("extra", {}).get("built", body["fingerprint"]) != result.fingerprint:
        return None
    names = set(out.names("*"))
    return body if set(body["files"]) <= names else None


def _try(articles: Path, listing: sources.Listing, tally: Tally) -> None:
    """Raises InputError, with the reasons, if no article can be read; mostly the first one can."""
    tried = Tally()
    if next(units.articles(listing.entries, tried), None) is None:
        tried.add(tally)
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(tried.articles_funnel.items()))
        example = tried.left_out[0]["message"]
        raise InputError(f"{articles}: no article in it can be used ({reasons}; e.g. {example})")


def _begin(out: Output, result: Manifest) -> list[str]:
    """From here on the place is unfinished. Returns the benchmarks that what was in it is audited against; the marker
    keeps them, should this build be stopped. Raises InputError if the place holds what is not ours."""
    if out.folder is not None:
        before = manifest.read_marker(out.folder / manifest.UNFINISHED) or manifest.read(out.folder) or {}
        manifest.begin(out.folder, result.stage)
        if audits := _audited(before):
            marker = json.dumps({"stage": result.stage, "audited": audits}) + "\n"
            manifest.write_atomic(out.folder / manifest.UNFINISHED, marker)
        return audits
    marker = json.loads(out.read(manifest.UNFINISHED) or out.read(manifest.NAME) or b"null")
    if marker is None and out.names("*"):
        raise InputError(f"{out.place}: not empty and not made by llavamed; give an empty or a new place")
    if marker is not None and marker.get("stage") != result.stage:
        raise InputError(f"{out.place}: holds the work of {marker.get('stage')!r}; give another place, or delete it")
    with out.workspace() as place:
        (place / "marker").write_text(json.dumps({"stage": result.stage}) + "\n")
        out.put(manifest.UNFINISHED, place / "marker")
    out.remove(manifest.NAME)
    return []


def _audited(body: dict[str, Any]) -> list[str]:
    """From a manifest, the marker of an audit that was stopped, or that of a build."""
    rows = body.get("prune", {}).get("audits") or body.get("extra", {}).get("audits") or []
    return body.get("audited") or [row["benchmark"] for row in rows]


def _cut(listing: sources.Listing, section: CorpusSection, fingerprint: str) -> list[Unit]:
    size = units.ARTICLES
    parts = [tuple(listing.entries[at : at + size]) for at in range(0, len(listing.entries), size)]
    return [Unit(number, part, section, fingerprint) for number, part in enumerate(parts)]


def _clear(out: Output, made: Sequence[Unit]) -> None:
    """Remove what an outdated build left, and shards that no finished unit names; nothing else in the place."""
    out.clear_workspaces()
    kept: set[str] = set()
    for one in made:
        if (tally := units.finished(one, out)) is not None:
            kept |= {f"{one.name}.{kind}" for kind in ("parquet", "jsonl", "json")} | set(tally.files)
    for name in (*out.names(_SHARDS), *out.names("[0-9]*", units.FOLDER), *_MADE, audit.FOUND, audit.PAGE):
        if name not in kept:
            out.remove(name)


def _make(made: Sequence[Unit], out: Output, engine: str, workers: int | None, total: int) -> dict[int, Tally]:
    tallies, pairs = {}, 0
    with Progress("reading articles", total, "articles") as progress:
        for one, tally in engines.run(partial(units.make, out=out), made, engine, workers, out.place):
            tallies[one.number] = tally
            pairs += tally.counts["pairs"]
            progress.advance(len(one.entries), note=f"{pairs:,} pairs")
    return tallies


def _without_collisions(
    made: list[Unit], tallies: dict[int, Tally], out: Output
) -> tuple[list[Unit], dict[int, Tally]]:
    """Keys are unique within a unit. Where two units have one (the same article twice), the later is made again, told
    which keys are taken."""
    while True:
        first: dict[bytes, int] = {}
        again: dict[int, set[str]] = defaultdict(set)
        for one in made:
            for key in _keys(one, out):
                digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
                if first.setdefault(digest, one.number) != one.number:
                    again[one.number].add(key)
        if not again:
            return made, tallies
        made = [replace(one, taken=one.taken | again.get(one.number, set())) for one in made]
        for number in again:
            for shard in tallies[number].files:
                out.remove(shard)
            tallies[number] = units.make(made[number], out)


def _keys(one: Unit, out: Output) -> list[str]:
    """All keys of a unit: of its pairs, and of those without an image."""
    keys: list[str] = store.read_keys(_part(one, out))
    lines = (out.read(f"{one.name}.jsonl") or b"").splitlines()
    return keys + [json.loads(line)["key"] for line in lines]


def _part(one: Unit, out: Output) -> bytes:
    found = out.read(f"{one.name}.parquet")
    assert found is not None, f"{one.name} is not finished"
    return found


def _put_together(
    out: Output, made: Sequence[Unit], tally: Tally, result: Manifest, articles: Path, began: float
) -> None:
    counts = {name: tally.counts[name] for name in summary.COUNTS}
    with out.workspace() as place:
        groups = store.merge_indexes([partial(_part, one, out) for one in made], place / store.INDEX)
        with (place / store.WITHOUT_IMAGE).open("wb") as lines:
            for one in made:
                lines.write(out.read(f"{one.name}.jsonl") or b"")
        result.counts = {**counts, "shards": len(tally.files), **{f"{name}s": n for name, n in groups.items()}}
        summary.describe(result, tally)
        card.write(place, result.settings["format"])
        summary.write_attribution(place, tally)
        summary.write_left_out(place, tally)
        summary.write_page(place, result, tally, str(articles), lambda at: out.read(*at))
        result.seconds = time.monotonic() - began
        result.files = tally.files | {name: manifest.file_sha256(place / name) for name in _MADE}
        result.files = dict(sorted(result.files.items()))
        result.write(place, hash_files=False)
        for name in (*_MADE, manifest.NAME):
            out.put(name, place / name)
    out.remove(manifest.UNFINISHED)
    _drop_units(out, made)


def _drop_units(out: Output, made: Sequence[Unit]) -> None:
    if out.folder is not None:
        shutil.rmtree(out.folder / units.FOLDER)
        return
    for one in made:
        for kind in ("json", "jsonl", "parquet"):
            out.remove(f"{one.name}.{kind}")
