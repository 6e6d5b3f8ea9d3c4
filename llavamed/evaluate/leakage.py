"""Has the model seen the benchmark? Its images and questions, looked up in what a model was trained on.

In: a benchmark, and one or several sources of training data: a corpus folder, a file of conversations with its images,
or another split of a benchmark. Out: which images and questions of the benchmark occur there, and, where a run was
scored, its score on the questions whose image was seen beside its score on the others. Nothing is removed.

An image is the same if its bytes are (sha256), or, asked for, if its decoded pixels are: a TIFF that became a PNG in
the corpus has other bytes and the same pixels. A picture that was scaled or compressed again is neither and is not
found here. A question is the same if it is in the same words, letter case, spacing and punctuation aside. Many
questions are asked of many images ("Is this a CT?"), so a question alone says little, and the same question about
the same image says that the answer itself may have been learned.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llavamed.corpus.store import INDEX, Corpus, open_images
from llavamed.errors import InputError
from llavamed.evaluate import benchmarks, show
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.compare import LEAKAGE, Run, credits, headline
from llavamed.evaluate.compare import load as load_runs
from llavamed.evaluate.statistics import bootstrap
from llavamed.imaging.decode import decode
from llavamed.instruct import formats
from llavamed.manifest import write_atomic
from llavamed.progress import track
from llavamed.records import Conversation, read_conversations

_EXAMPLES = 10
_WORDS = re.compile(r"\w+")
_Record = tuple[str, tuple[str, ...], tuple[str, ...]]  # where, names of images, questions
_SPLIT = re.compile(r"(?P<name>[a-z0-9_-]+):(?P<split>[^=]+)=(?P<data>.+)")

Hash = Callable[[bytes], str]


@dataclass
class Seen:
    """What one source holds. A pair is (image's hash, question's words)."""

    source: str
    images: dict[str, str] = field(default_factory=dict)  # hash -> where
    questions: dict[str, str] = field(default_factory=dict)  # words -> where
    pairs: set[tuple[str, str]] = field(default_factory=set)
    unreadable: int = 0  # images that could not be looked at
    asks: bool = True  # False: it holds no questions (a corpus)

    def add(self, where: str, hashes: Sequence[str], questions: Sequence[str]) -> None:
        for found in hashes:
            self.images.setdefault(found, where)
        for question in filter(None, map(words, questions)):
            self.questions.setdefault(question, where)
            self.pairs.update((found, question) for found in hashes)


def words(text: str) -> str:
    """The words of a question alone: "Is there a  Nodule?" -> "is there a nodule"."""
    return " ".join(_WORDS.findall(text.casefold()))


def check(
    benchmark: Benchmark, sources: Sequence[str], images: Path | None = None, pixels: bool = False
) -> dict[str, Any]:
    """Look the benchmark up in every source: a corpus folder, a .jsonl or .json of conversations (its images below
    `images`, a folder or a corpus), or `BENCHMARK:SPLIT=FOLDER`. Returns the content of `leakage.json`.

    Raises InputError for a source that is none of these.
    """
    make = _pixels if pixels else _bytes
    read = benchmark.read_image if benchmark.has_images else None
    hashes = {name: _hash(read, name, make) for name in benchmark.image_names}
    found = [_seen(source, images, make, pixels) for source in sources]
    rows = []
    for seen in found:
        by_image = [q.id for q in benchmark.questions if any(hashes[image] in seen.images for image in q.images)]
        by_words = [q.id for q in benchmark.questions if words(q.question) in seen.questions]
        both = [
            q.id
            for q in benchmark.questions
            if any((hashes[image], words(q.question)) in seen.pairs for image in q.images)
        ]
        first = set(by_image[:_EXAMPLES])
        rows.append({
            "source": seen.source,
            "images": sum(found in seen.images for found in hashes.values()),
            "questions_on_seen_images": len(by_image),
            "questions_in_the_same_words": len(by_words) if seen.asks else None,  # None: there are none to compare with
            "same_image_and_question": len(both) if seen.asks else None,
            "unreadable_images": seen.unreadable,
            "examples": [
                {"id": q.id, "image": image, "seen_as": seen.images[hashes[image]]}
                for q in benchmark.questions
                if q.id in first
                for image in q.images
                if hashes[image] in seen.images
            ],
            "ids": by_image,
        })  # fmt: skip
    unreadable = sum(not value for value in hashes.values())
    body = {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "data_sha256": dict(benchmark.sha256),
        "compared": "decoded pixels (sha256)" if pixels else "bytes (sha256)",
        "n_images": len(hashes),
        "n_questions": len(benchmark.questions),
        "unreadable_images": unreadable,
        "sources": rows,
    }
    return body | {"told": told(body)}


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
    return f"{'; '.join(parts)}. Compared by {body['compared']}; scaled or recompressed copies are not found."


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


def _seen(source: str, images: Path | None, make: Hash, pixels: bool) -> Seen:
    split = _SPLIT.fullmatch(source)
    path = Path(source)
    if split:
        benchmark = benchmarks.load(split["name"], Path(split["data"]), split["split"])
        seen = Seen(f"{split['name']} {split['split']}")
        read = benchmark.read_image if benchmark.has_images else None
        rows: Iterator[_Record] = ((q.id, q.images, (q.question,)) for q in benchmark.questions)
    elif path.is_dir() and (path / INDEX).is_file():
        return _in_corpus(Corpus(path), source, make if pixels else None)
    elif path.is_file():
        seen, read = Seen(source), open_images(images) if images is not None else None
        rows = ((c.id, c.images, _asked(c)) for c in _conversations(path))
    else:
        raise _no_source(source)
    known: dict[str, str] = {}
    for where, names, questions in track(rows, f"reading {seen.source}", unit="records"):
        for name in names:
            if name not in known:
                known[name] = _hash(read, name, make)
        seen.add(f"{seen.source}: {where}", [known[name] for name in names if known[name]], questions)
    seen.unreadable = sum(not value for value in known.values())
    return seen


def _no_source(source: str) -> InputError:
    return InputError(
        f"{source}: neither a corpus folder, nor a .jsonl or .json of conversations, nor BENCHMARK:SPLIT=FOLDER"
    )


def _in_corpus(corpus: Corpus, source: str, make: Hash | None) -> Seen:
    """The index knows the sha256 of every image; pixels have to be read."""
    seen = Seen(source, asks=False)
    for pair in track(corpus.pairs(), f"reading {source}", total=len(corpus), unit="pairs"):
        found = pair.sha256 if make is None else _hash(corpus.image, pair.key, make)
        seen.unreadable += not found
        seen.add(f"{source}: {pair.key}", [found] if found else [], ())
    return seen


def _conversations(path: Path) -> Iterator[Conversation]:
    if path.suffix == ".json":
        yield from formats.import_file(path, "llava")
    else:
        yield from read_conversations(path)


def _asked(conversation: Conversation) -> tuple[str, ...]:
    return tuple(message.text for message in conversation.messages if message.role == "user")


def _hash(read: Callable[[str], bytes] | None, name: str, make: Hash) -> str:
    """ "" for an image that is not there or cannot be decoded."""
    if read is None:
        return ""
    try:
        return make(read(name))
    except (InputError, OSError):
        return ""


def _bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _pixels(data: bytes) -> str:
    image = decode(data)
    return hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()
