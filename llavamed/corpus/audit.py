"""Take out of a corpus what it will be judged on: the images and questions of benchmarks (`corpus audit`).

A model that was trained on the figure a benchmark's image was taken from has seen the test. Each shard is looked
through by itself, so that any number of processes can do it and a stopped audit goes on: the image of each pair against
the benchmarks' images, caption and mentions against their questions (`held_out`). With a panel goes its whole figure.
What is found is written to `audit.json` and shown in `audit.html`, picture beside picture; then the pairs are taken out
of shards, index and attribution (`prune`), and the manifest says how many there were of each benchmark.

Auditing again against the same files finds that it was done; against others, or other files, it goes on from there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from llavamed import manifest
from llavamed.corpus import engines, prune
from llavamed.corpus.alone import alone
from llavamed.corpus.held_out import VERSION, HeldOut, Read
from llavamed.corpus.store import INDEX, Corpus
from llavamed.errors import InputError
from llavamed.imaging.decode import decode
from llavamed.imaging.thumbnail import of_image
from llavamed.manifest import fingerprint, write_atomic
from llavamed.progress import Progress
from llavamed.records import Pair
from llavamed.report import Page

FOUND = "audit.json"
PAGE = "audit.html"
_WORK = ".partial-audit"  # `corpus build` removes it, should it begin anew
_CARDS, _ROWS = 24, 500
_MUCH = 2**31  # bytes of benchmarks' pictures, in all processes together
COLUMNS = ("benchmark", "images", "images found", "questions", "questions found", "pairs with any")


@dataclass(frozen=True)
class Against:
    """What a benchmark will judge by: `images` by name, read by `read` (None: they are not here), and `questions`.
    `fingerprint` changes when its files do."""

    name: str
    images: tuple[str, ...]
    read: Read | None
    questions: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class Finding:
    """A pair that holds what a benchmark asks about. `what` is the image's name or the question there; `how` is
    "bytes", "pixels", "looks" or "words"; `score` how surely, 0-1."""

    key: str
    benchmark: str
    what: str
    how: str
    score: float


def audit(
    corpus: Path, benchmarks: Sequence[Against], keep: bool = False, workers: int | None = None
) -> dict[str, Any]:
    """Look for the benchmarks' images and questions in a corpus folder and take out the pairs that hold them, or with
    `keep` only tell. Returns the content of `audit.json`. Raises InputError for a folder that is no corpus."""
    if not corpus.is_dir():
        Corpus(corpus)  # raises
    with alone(corpus):
        return _audit(corpus, benchmarks, keep, workers)


def _audit(corpus: Path, benchmarks: Sequence[Against], keep: bool, workers: int | None) -> dict[str, Any]:
    prune.go_on(corpus)
    body = Corpus(corpus).body
    benchmarks = [replace(one, fingerprint=fingerprint([one.fingerprint, VERSION])) for one in benchmarks]
    known = {row["benchmark"]: row for row in body.get("extra", {}).get("audits", [])}
    new = [one for one in benchmarks if known.get(one.name, {}).get("fingerprint") != one.fingerprint]
    before: dict[str, Any] = {"benchmarks": list(known.values()), "found": []}
    if known:
        before = json.loads((corpus / FOUND).read_text(encoding="utf-8"))
    if not new:
        print(f"{corpus}: audited against these already, skipped", file=sys.stderr)
        return before
    found = _look(corpus, new, workers)
    removed = sorted({one.key for one in found})
    rows = [_row(one, [f for f in found if f.benchmark == one.name]) for one in new]
    replaced = {one.name for one in new}
    whole = {
        "benchmarks": [*(row for row in before["benchmarks"] if row["benchmark"] not in replaced), *rows],
        "found": [*before["found"], *map(asdict, found)],
    }
    if keep:
        return whole
    _write_page(corpus, new, whole, found)
    write_atomic(corpus / FOUND, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    beside = _same_figure(corpus, set(removed))
    reasons = {**dict(_reasons(found)), "benchmark_figure": len(beside)}
    reasons = {name: count for name, count in reasons.items() if count}
    prune.begin(corpus, sorted({*removed, *beside}), whole["benchmarks"], reasons, (FOUND, PAGE))
    return whole


def table(body: dict[str, Any]) -> tuple[tuple[str, ...], list[list[Any]]]:
    names = ("benchmark", "images", "images_found", "questions", "questions_found", "pairs")
    return COLUMNS, [[row[name] for name in names] for row in body["benchmarks"]]


def _row(benchmark: Against, found: Sequence[Finding]) -> dict[str, Any]:
    images = {one.what for one in found if one.how != "words"}
    return {
        "benchmark": benchmark.name,
        "fingerprint": benchmark.fingerprint,
        "images": len(benchmark.images) if benchmark.read else 0,
        "images_found": len(images),
        "questions": len(benchmark.questions),
        "questions_found": len({one.what for one in found if one.how == "words"}),
        "pairs": len({one.key for one in found}),
    }


def _reasons(found: Sequence[Finding]) -> list[tuple[str, int]]:
    """Each pair once: by its image, if that was found."""
    by_image = {one.key for one in found if one.how != "words"}
    return [("benchmark_image", len(by_image)), ("benchmark_question", len({one.key for one in found} - by_image))]


def _same_figure(corpus: Path, found: set[str]) -> set[str]:
    """The other pairs of the figures that these keys are of: a panel that a benchmark has is in the whole as well."""
    table = pq.read_table(corpus / INDEX, columns=["key", "parent"])
    figure = {
        key: parent or key for key, parent in zip(*(table[c].to_pylist() for c in ("key", "parent")), strict=True)
    }
    figures = {figure[key] for key in found}
    return {key for key, whole in figure.items() if whole in figures} - found


def _look(corpus: Path, benchmarks: Sequence[Against], workers: int | None) -> list[Finding]:
    """All findings in the order of the shards. Those of a finished shard are kept until the audit is done."""
    index = pq.read_table(corpus / INDEX, columns=["shard"])
    shards = sorted({str(name) for name in index["shard"].unique().to_pylist()})
    work = corpus / _WORK / fingerprint([manifest.file_sha256(corpus / INDEX), [one.fingerprint for one in benchmarks]])
    work.mkdir(parents=True, exist_ok=True)
    held = {one.name: HeldOut(one.images, one.read, one.questions) for one in benchmarks}
    for benchmark in benchmarks:
        if not benchmark.images:
            print(f"{benchmark.name}: its images are not here, only its questions are looked for", file=sys.stderr)
    for name, one in held.items():
        if one.unreadable:
            print(f"{name}: {one.unreadable:,} of its images cannot be read and are not looked for", file=sys.stderr)
    size, count = sum(one.nbytes for one in held.values()), min(workers or engines.cores(), len(shards))
    if size * (count + 1) > _MUCH:
        print(
            f"the benchmarks' pictures take {size / 2**30:.1f} GiB in each of {count + 1} processes, and the time of a "
            "look grows with them: give fewer --workers, or one benchmark at a time",
            file=sys.stderr,
        )
    found: dict[str, list[Finding]] = {}
    allowed = Corpus(corpus).body["settings"]["max_pixels"]  # the corpus may have larger images than is usual
    look = partial(look_through, corpus=corpus, held=held, work=work, max_pixels=allowed)
    with Progress("auditing", len(shards), "shards") as progress:
        for shard, ones in engines.run(look, shards, "local", workers, str(corpus)):
            found[shard] = ones
            progress.advance(note=f"{sum(map(len, found.values())):,} found")
    return [one for shard in shards for one in found[shard]]


def look_through(shard: str, corpus: Path, held: Mapping[str, HeldOut], work: Path, max_pixels: int) -> list[Finding]:
    """What one shard holds of the benchmarks; from the file of an earlier run in `work`, if there is one."""
    done = work / f"{shard}.json"
    if done.is_file():
        return [Finding(**row) for row in json.loads(done.read_text(encoding="utf-8"))]
    columns = ["key", "offset", "size", "sha256", "caption", "mentions"]
    here = [("shard", "=", shard)]
    rows = pq.read_table(corpus / INDEX, columns=columns, filters=here, use_threads=False).to_pylist()
    found = []
    with (corpus / shard).open("rb") as data:
        for row in rows:

            def read(row: dict[str, Any] = row) -> bytes:
                data.seek(row["offset"])
                return data.read(row["size"])

            texts = (row["caption"], *(one["paragraph"] or one["sentence"] for one in row["mentions"]))
            for name, index in held.items():
                if (seen := index.image(row["sha256"], read, max_pixels)) is not None:
                    found += [Finding(row["key"], name, what, seen.how, seen.score) for what in seen.names]
                asked = dict.fromkeys(question for text in texts for question in index.inside(text))
                found += [Finding(row["key"], name, question, "words", 1.0) for question in asked]
    write_atomic(done, json.dumps([asdict(one) for one in found], ensure_ascii=False))
    return found


def _write_page(corpus: Path, benchmarks: Sequence[Against], body: dict[str, Any], found: Sequence[Finding]) -> None:
    """What was found, before it is taken out: the benchmark's picture left, the corpus's right."""
    columns, rows = table(body)
    removed = len({one["key"] for one in body["found"]})
    page = Page("Audit", f"Benchmarks looked up in {corpus}.", {"pairs taken out": f"{removed:,}"})
    page.table("Benchmarks", columns, rows)
    shown = [[one["key"], one["benchmark"], one["what"], one["how"], one["score"]] for one in body["found"]]
    page.table(
        "Found", ("pair", "benchmark", "image or question", "by", "how surely"), shown[:_ROWS], f"Of {len(shown)}."
    )
    read = {one.name: one.read for one in benchmarks}
    images = Corpus(corpus)
    pairs = {pair.key: pair for pair in _pairs(images, {one.key for one in found})}
    cards = []
    for one in found[:_CARDS]:
        theirs = read[one.benchmark] if one.how != "words" else None
        pictures = [decode(data) for data in ([theirs(one.what)] if theirs else []) + [images.image(one.key)]]
        lines = [("caption", pairs[one.key].caption), (one.how, f"{one.what} ({one.score})")]
        cards.append({"image": of_image(_beside(pictures)), "title": f"{one.benchmark}: {one.key}", "lines": lines})
    if cards:
        page.cards("Benchmark and corpus", cards)
    page.write(corpus / PAGE)


def _pairs(corpus: Corpus, keys: set[str]) -> list[Pair]:
    return [pair for pair in corpus.pairs() if pair.key in keys]


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    height = 240
    scaled = [one.resize((max(1, round(one.width * height / one.height)), height)) for one in pictures]
    sheet = Image.new("RGB", (sum(one.width for one in scaled) + 8 * (len(scaled) - 1), height), "white")
    at = 0
    for one in scaled:
        sheet.paste(one, (at, 0))
        at += one.width + 8
    return sheet


def read_data(pairs: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """`--data NAME=FOLDER`, for each of `names`. Raises InputError for one that is missing or not asked about."""
    found = {}
    for entry in pairs:
        name, equals, folder = entry.partition("=")
        if not equals or name not in names:
            raise InputError(f"--data {entry}: give NAME=FOLDER with a name of {', '.join(names)}")
        found[name] = Path(folder)
    for name in names:
        if name not in found:
            raise InputError(f"--against {name}: say where its files are: --data {name}=FOLDER")
    return found
