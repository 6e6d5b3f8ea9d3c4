"""Has the model seen the benchmark? Its images and questions, looked up in what a model was trained on.

In: a benchmark, and one or several sources of training data: a corpus folder, a file of conversations with its images,
or another split of a benchmark. Out: which images and questions of the benchmark occur there, and, where a run was
scored, its score on the questions whose image was seen beside its score on the others. Nothing is removed.

Both are recognised as `corpus.held_out` says, which `corpus audit` uses too (it removes what it finds): an image by its
bytes or, asked for, by how it looks, so that a scaled, recompressed or cut copy is found as well; a question by its
words. Many questions are asked of many images ("Is this a CT?"), so a question alone says little, and the same question
about the same image says that the answer itself may have been learned.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llavamed.corpus.audit import Against
from llavamed.corpus.held_out import HeldOut, Sighting, words
from llavamed.corpus.store import INDEX, Corpus, open_images
from llavamed.errors import InputError
from llavamed.evaluate import benchmarks, show
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.compare import LEAKAGE, Run, credits, headline
from llavamed.evaluate.compare import load as load_runs
from llavamed.evaluate.statistics import bootstrap
from llavamed.instruct import formats
from llavamed.manifest import fingerprint, write_atomic
from llavamed.progress import track
from llavamed.records import Conversation, read_conversations

_EXAMPLES = 10
_Record = tuple[str, tuple[str, ...], tuple[str, ...]]  # where, names of images, questions
_SPLIT = re.compile(r"(?P<name>[a-z0-9_-]+):(?P<split>[^=]+)=(?P<data>.+)")
_HOW = {
    True: "bytes, pixels and looks (altered copies are found)",
    False: "bytes (sha256); scaled or recompressed copies are not found",
}


@dataclass
class Seen:
    """What of the benchmark one source holds. A pair is (image's name, question's words)."""

    source: str
    images: dict[str, str] = field(default_factory=dict)  # name -> where
    questions: set[str] = field(default_factory=set)  # words
    pairs: set[tuple[str, str]] = field(default_factory=set)
    unreadable: int = 0  # images that could not be looked at
    asks: bool = True  # False: it holds no questions (a corpus)

    def add(self, where: str, names: Iterable[str], questions: Iterable[str]) -> None:
        asked = set(map(words, questions))
        self.questions |= asked
        for name in names:
            self.images.setdefault(name, where)
            self.pairs.update((name, question) for question in asked)


def check(
    benchmark: Benchmark, sources: Sequence[str], images: Path | None = None, looks: bool = False
) -> dict[str, Any]:
    """Look the benchmark up in every source: a corpus folder, a .jsonl or .json of conversations (its images below
    `images`, a folder or a corpus), or `BENCHMARK:SPLIT=FOLDER`. Returns the content of `leakage.json`.

    Raises InputError for a source that is none of these.
    """
    questions = [question.question for question in benchmark.questions]
    read = benchmark.read_image if benchmark.has_images else None
    held = HeldOut(benchmark.image_names, read, questions, looks)
    rows = []
    for seen in [_seen(source, images, held) for source in sources]:
        by_image = [q.id for q in benchmark.questions if any(image in seen.images for image in q.images)]
        by_words = [q.id for q in benchmark.questions if words(q.question) in seen.questions - {""}]
        both = [
            q.id for q in benchmark.questions if any((image, words(q.question)) in seen.pairs for image in q.images)
        ]
        first = set(by_image[:_EXAMPLES])
        rows.append({
            "source": seen.source,
            "images": len(seen.images),
            "questions_on_seen_images": len(by_image),
            "questions_in_the_same_words": len(by_words) if seen.asks else None,  # None: there are none to compare with
            "same_image_and_question": len(both) if seen.asks else None,
            "unreadable_images": seen.unreadable,
            "examples": [
                {"id": q.id, "image": image, "seen_as": seen.images[image]}
                for q in benchmark.questions
                if q.id in first
                for image in q.images
                if image in seen.images
            ],
            "ids": by_image,
        })  # fmt: skip
    body = {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "data_sha256": dict(benchmark.sha256),
        "compared": _HOW[looks],
        "n_images": len(benchmark.image_names),
        "n_questions": len(benchmark.questions),
        "unreadable_images": held.unreadable,
        "sources": rows,
    }
    return body | {"told": told(body)}


def against(name: str, data: Path) -> Against:
    """A benchmark, all of its splits that are in the folder, as `corpus.audit` takes it."""
    splits = benchmarks.load_all(name, data)
    images = dict.fromkeys(image for one in splits for image in one.image_names if one.has_images)
    return Against(
        f"{splits[0].name} ({', '.join(one.split for one in splits)})",
        tuple(images),
        splits[0].read_image if images else None,
        tuple(dict.fromkeys(q.question for one in splits for q in one.questions)),
        fingerprint([[one.split, dict(one.sha256), one.images_fingerprint] for one in splits]),
    )


def require_sources(sources: Sequence[str]) -> None:
    """Raises InputError for a source that `check` would refuse, before anything slow or dear is done."""
    for source in sources:
        split = _SPLIT.fullmatch(source)
        if split:
            benchmarks.load(split["name"], Path(split["data"]), split["split"])
        elif not (Path(source).is_file() or (Path(source) / INDEX).is_file()):
            raise _no_source(source)


def told(body: Mapping[str, Any]) -> str:
    """In a sentence or two."""
    parts = []
    for row in body["sources"]:
        both = row["same_image_and_question"]
        questions = "" if both is None else f" and {both} of {body['n_questions']} questions on their image"
        parts.append(f"{row['images']} of {body['n_images']} images{questions} also stand in {row['source']}")
        if row["unreadable_images"]:
            parts[-1] += f" ({row['unreadable_images']} of its images could not be read)"
    if body["unreadable_images"]:
        parts.append(f"{body['unreadable_images']} images of the benchmark could not be read and are not compared")
    return f"{'; '.join(parts)}. Compared by {body['compared']}."


def table(body: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    columns = ["training data", "images of the benchmark in it", "questions on these images",
               "questions in the same words", "the same question on the same image"]  # fmt: skip

    def of(count: int | None, whole: int) -> str:
        return "it has no questions" if count is None else f"{count} of {whole}"

    images, questions = body["n_images"], body["n_questions"]
    rows = [
        [
            row["source"],
            of(row["images"], images),
            of(row["questions_on_seen_images"], questions),
            of(row["questions_in_the_same_words"], questions),
            of(row["same_image_and_question"], questions),
        ]
        for row in body["sources"]
    ]
    return columns, rows


def beside(run_folder: Path, body: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """`body` with the run's score on seen and on unseen images; written into the run's folder as `leakage.json`.

    Raises InputError as `require_run` does.
    """
    run = require_run(run_folder, body["benchmark"], body["split"], body["data_sha256"])
    seen = {id for row in body["sources"] for id in row["ids"]}
    scores = []
    for metric in headline([run]):
        values = credits(run, metric)
        for name, chosen in (("seen", seen), ("not seen", values.keys() - seen)):
            ids = [id for id in values if id in chosen]
            if ids:
                images = [str(run.items[id]["image"] or id) for id in ids]
                interval = bootstrap([values[id] for id in ids], 1000, seed, images=images, most=show.most(metric))
                scores.append({"metric": metric, "image": name, **vars(interval)})
    whole = body | {"scores": scores}
    write_atomic(run.folder / LEAKAGE, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    return whole


def require_run(run_folder: Path, benchmark: str, split: str, data_sha256: Mapping[str, str] | None) -> Run:
    """The one run in the folder. Raises InputError if there are several, or if it is about other data."""
    found = [run for members in load_runs([str(run_folder)]).values() for run in members]
    if len(found) > 1:
        inner = ", ".join(str(run.folder) for run in found)
        raise InputError(f"{run_folder}: holds {len(found)} runs; give one of {inner}")
    (run,) = found
    about, asked = (run.scores["benchmark"], run.scores["split"]), (benchmark, split)
    if about != asked:
        raise InputError(f"{run_folder}: a run of {' '.join(about)}, not of {' '.join(asked)}; give a run of that")
    if run.provenance.get("data_sha256") != data_sha256:
        raise InputError(f"{run_folder}: scored on other files of {benchmark}; give the folder of those")
    return run


def scores_table(body: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [[row["metric"], row["image"], show.cell(row), str(row["n"])] for row in body["scores"]]
    return ["metric, % (95 % interval)", "image in the training data", "score", "n"], rows


def _seen(source: str, images: Path | None, held: HeldOut) -> Seen:
    split = _SPLIT.fullmatch(source)
    path = Path(source)
    if split:
        benchmark = benchmarks.load(split["name"], Path(split["data"]), split["split"])
        seen = Seen(f"{split['name']} {split['split']}")
        read = benchmark.read_image if benchmark.has_images else None
        rows: Iterator[_Record] = ((q.id, q.images, (q.question,)) for q in benchmark.questions)
    elif path.is_dir() and (path / INDEX).is_file():
        return _in_corpus(Corpus(path), source, held)
    elif path.is_file():
        seen, read = Seen(source), open_images(images) if images is not None else None
        rows = ((c.id, c.images, _asked(c)) for c in _conversations(path))
    else:
        raise _no_source(source)
    known: dict[str, tuple[str, ...]] = {}  # an image's name there -> its names in the benchmark
    for where, names, questions in track(rows, f"reading {seen.source}", unit="records"):
        for name in names:
            if name not in known:
                try:
                    if read is None:
                        raise InputError(f"{name}: not here")
                    data = read(name)
                    known[name] = _names(held.image(hashlib.sha256(data).hexdigest(), partial(bytes, data)))
                except (InputError, OSError):
                    known[name] = ()
                    seen.unreadable += 1
        seen.add(f"{seen.source}: {where}", [of for name in names for of in known[name]], questions)
    return seen


def _no_source(source: str) -> InputError:
    return InputError(
        f"{source}: neither a corpus folder, nor a .jsonl or .json of conversations, nor BENCHMARK:SPLIT=FOLDER"
    )


def _in_corpus(corpus: Corpus, source: str, held: HeldOut) -> Seen:
    """The index knows the sha256 of every image; to see what it looks like it has to be read."""
    seen = Seen(source, asks=False)
    for pair in track(corpus.pairs(), f"reading {source}", total=len(corpus), unit="pairs"):
        try:
            found = _names(held.image(pair.sha256, partial(corpus.image, pair.key)))
        except InputError:
            found, seen.unreadable = (), seen.unreadable + 1
        seen.add(f"{source}: {pair.key}", found, ())
    return seen


def _names(sighting: Sighting | None) -> tuple[str, ...]:
    return sighting.names if sighting else ()


def _conversations(path: Path) -> Iterator[Conversation]:
    if path.suffix == ".json":
        yield from formats.import_file(path, "llava")
    else:
        yield from read_conversations(path)


def _asked(conversation: Conversation) -> tuple[str, ...]:
    return tuple(message.text for message in conversation.messages if message.role == "user")
