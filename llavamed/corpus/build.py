"""Articles -> a corpus of pairs, with an account of everything that was left out.

The articles are cut into work units in the order of their names (`cut`), the units are made by whoever is there
(`engines`), and what they wrote is put together in the order of the units: the index with its groups of duplicates, the
attribution, the page, and last the manifest. Nothing is skipped silently: an article or figure that is dropped is
counted under one reason, and the figures add up:

    figure_images = pairs + the figures' part of the funnel

A bad article never stops a build; a build in which no article can be read is an error. Figures that
pass every check but have no image on disk are written to `without_image.jsonl` (text-only sources such
as Europe PMC's XML still give captions, labels and mentions).

Same articles, same settings: same bytes in every shard and in the index, whether one process made them or a hundred,
in one go, after being killed, or from what was there before. A finished folder is not built again. Where articles are
new, changed or gone, only their units are made again, and what is put together is put together anew; an older corpus is
only given up once an article of the new one has been read; with it goes what an audit took out of it and said of it,
which is told.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llavamed import manifest
from llavamed.corpus import audit, card, engines, licence, sources, store, summary
from llavamed.corpus import unit as units
from llavamed.corpus.alone import alone
from llavamed.corpus.cut import cut
from llavamed.corpus.output import Output
from llavamed.corpus.tally import Tally
from llavamed.corpus.unit import Unit
from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.progress import Progress
from llavamed.recipe import CorpusSection

STAGE = "corpus"
VERSION = 6  # of what is made of the same articles and settings; another is built again
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
    threads = engines.cores() if workers is None else workers
    if engine == "local" and threads > 1 and not place.names(manifest.NAME):
        engines.prepare(units.__name__, "pandas")  # which pyarrow imports where it is installed
    listing = sources.scan(articles, threads)
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
        made = cut(listing.entries, section, manifest.fingerprint(settings))
        kept = _kept(place, made)
        make = partial(_make, out=place, engine=engine, workers=workers)
        make([one for one in made if one.name not in kept])
        made = _without_collisions(made, place, make)
        for one in made:
            tally.add(_tally(one, place))
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
    body = out.manifest()
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
        audits = _audited(before)
        manifest.begin(out.folder, result.stage, audited=audits)
        return audits
    marker = json.loads(out.read(manifest.UNFINISHED) or out.read(manifest.NAME) or b"null")
    if marker is None and set(out.names("*")) - {manifest.UNFINISHED + manifest.ASIDE}:
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


def _tally(one: Unit, out: Output) -> Tally:
    """Of a unit that is made; read again, as those of all units fill the memory: they have pictures."""
    tally = units.finished(one, out)
    assert tally is not None, f"{one.name} is not finished"
    return tally


def _kept(out: Output, made: Sequence[Unit]) -> set[str]:
    """The names of the units that an earlier build has finished; all else that it left in the place is removed, and
    nothing of anybody else's. What it could not read may be readable now."""
    out.clear_workspaces()
    there = out.sizes("[0-9]*", units.FOLDER) | out.sizes(_SHARDS)
    kept: set[str] = set()
    files: set[str] = set()
    for one in made:
        if one.file("json") in there and (tally := units.finished(one, out, there)) is not None:
            if tally.articles_funnel["unreadable"] or tally.funnel["image_unreadable"]:
                continue
            kept.add(one.name)
            files |= {one.file(kind) for kind in units.KINDS} | tally.files.keys()
    # markers first: whenever this is stopped, a unit with its marker is whole
    left = sorted(there.keys() - files, key=lambda name: (not name.endswith(".json"), name))
    for name in (*left, *_MADE, audit.FOUND, audit.PAGE):
        out.remove(name)
    return kept


def _make(made: Sequence[Unit], out: Output, engine: str, workers: int | None) -> None:
    """The large ones first, so that the last worker is not long alone."""
    pairs = 0
    ordered = sorted(made, key=lambda one: -one.size)
    with Progress("reading articles", sum(len(one.entries) for one in made), "articles") as progress:
        for one, tally in engines.run(partial(units.make, out=out), ordered, engine, workers, out.place):
            pairs += tally.counts["pairs"]
            progress.advance(len(one.entries), note=f"{pairs:,} pairs")


def _without_collisions(made: list[Unit], out: Output, make: Callable[[list[Unit]], None]) -> list[Unit]:
    """Keys are unique within a unit. Where two units have one (the same article twice), the later is made again, told
    which keys are taken."""
    hashes = [_hashes(one, out) for one in made]
    while True:
        ends = np.cumsum([len(part) for part in hashes])
        values = np.concatenate([*hashes, np.zeros(0, np.uint64)])
        order = np.argsort(values, kind="stable")
        again = order[1:][values[order][1:] == values[order][:-1]]  # all but the first of each
        late: dict[int, set[int]] = defaultdict(set)
        for at, number in zip(again.tolist(), np.searchsorted(ends, again, side="right").tolist(), strict=True):
            late[number].add(int(values[at]))
        if not late:
            return made
        for number, found in late.items():
            one = made[number]
            taken = {key for key in _keys(one, out) if _hash(key) in found}
            shards = _tally(one, out).files
            for name in (one.file("json"), *shards):
                out.remove(name)
            made[number] = replace(one, taken=one.taken | taken)
        make([made[number] for number in late])
        for number in late:
            hashes[number] = _hashes(made[number], out)


def _hashes(one: Unit, out: Output) -> np.ndarray:
    """Of its keys; all keys of a corpus would fill the memory."""
    return np.array([_hash(key) for key in _keys(one, out)], np.uint64)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())


def _keys(one: Unit, out: Output) -> list[str]:
    """All keys of a unit: of its pairs, and of those without an image."""
    keys: list[str] = store.read_keys(_part(one, out))
    lines = (out.read(one.file("jsonl")) or b"").splitlines()
    return keys + [json.loads(line)["key"] for line in lines]


def _part(one: Unit, out: Output) -> bytes:
    found = out.read(one.file("parquet"))
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
                lines.write(out.read(one.file("jsonl")) or b"")
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
