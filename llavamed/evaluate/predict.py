"""Ask a model every question of a benchmark, and lose nothing when the power goes.

`predictions.jsonl` is a journal: an answer is appended as soon as it is there, and forced to the disk every second.
After `kill -9` or a power cut the next call drops a cut last line, asks what is missing and ends with the same file,
because the questions are always asked in one order and the finished file is put into the benchmark's own.

That order is one of speed: images by their longest prompt, in tokens, and the questions about an image together,
longest first. So a batch has little padding, one that does not fit in memory fails at once, and what was
made of an image (its pixels, its features, an endpoint's cache) is used for all its questions.

Beside it `header.json` says what was asked of whom. If the model, the prompt, the control, the
decoding, the benchmark's file or its images change, the old answers are of another experiment and are not used.

A request that raises is recorded as `failed` with the reason and stays in the denominator as wrong;
the next call asks it again. Wrong input (an image that is missing or damaged) and defects of ours end the run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from llavamed.engine import Engine, Request, Unanswered
from llavamed.errors import InputError
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.controls import pictures
from llavamed.manifest import fingerprint, write_atomic
from llavamed.progress import Progress, track
from llavamed.records import Prediction, Question, user

JOURNAL = "predictions.jsonl"
HEADER = "header.json"

_SYNC_EVERY_SECONDS = 1.0
_IMAGES_KEPT = 4  # decoded; an image's questions follow one another
_ANY_IMAGE = Image.new("RGB", (1, 1))  # all take the same number of tokens


def predict(
    engine: Engine,
    benchmark: Benchmark,
    out: Path,
    control: str = "real",
    seed: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    model_fingerprint: str = "",
) -> Path:
    """Write `out/predictions.jsonl`, one `records.Prediction` a question, greedily decoded; returns its path.

    `model_fingerprint` identifies the weights where the engine's name does not (a folder trained again).
    Raises InputError if images of the benchmark are missing or damaged.
    """
    benchmark.require_images()
    if benchmark.by_likelihood and not hasattr(engine, "count_tokens"):
        raise InputError(
            f"{engine.name}: an endpoint gives no likelihoods, which {benchmark.name} needs; give a folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    journal = out / JOURNAL
    header = _header(engine, benchmark, control, seed, max_new_tokens, model_fingerprint)
    done = _resume(journal, out / HEADER, header, {question.id for question in benchmark.questions})

    if len(done) < len(benchmark.questions):
        pending = [question for question in _in_order(engine, benchmark) if question.id not in done]
        picture = lru_cache(_IMAGES_KEPT)(pictures(control, benchmark.image_names, benchmark.read_image, seed))
        requests = (
            _request(benchmark, q, tuple(picture(name) for name in q.images), max_new_tokens, seed) for q in pending
        )
        total, failed, synced = len(benchmark.questions), 0, time.monotonic()
        with journal.open("a", encoding="utf-8") as rows, Progress(control, total, "answers", len(done)) as progress:
            for place, outcome in _outcomes(engine, requests, batch_size):
                prediction = _prediction(pending[place], outcome, control)
                done[prediction.id] = prediction
                rows.write(_line(prediction))
                rows.flush()  # what the system has, outlives the process; what the disk has, outlives the power
                if time.monotonic() - synced >= _SYNC_EVERY_SECONDS:
                    os.fsync(rows.fileno())
                    synced = time.monotonic()
                failed += bool(prediction.failed)
                progress.advance(1, f"{failed} failed" if failed else "")
    write_atomic(journal, "".join(_line(done[question.id]) for question in benchmark.questions))
    return journal


def read_header(predictions: Path) -> dict[str, Any] | None:
    """What made a predictions file of ours, or None beside a file made elsewhere."""
    path = predictions.parent / HEADER
    if predictions.name != JOURNAL or not path.is_file():
        return None
    try:
        header: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return None
    return header


def _header(
    engine: Engine, benchmark: Benchmark, control: str, seed: int, max_new_tokens: int, model_fingerprint: str
) -> dict[str, Any]:
    header = {
        "model": engine.name,
        "model_fingerprint": model_fingerprint,
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "data_sha256": dict(benchmark.sha256),
        "images": benchmark.images_fingerprint,
        "prompt": benchmark.prompts,
        "prompt_hash": benchmark.prompt_hash,
        "control": control,
        "seed": seed,
        "decoding": {"likeliest_of": "the letters"}
        if benchmark.by_likelihood
        else {"temperature": 0.0, "max_new_tokens": max_new_tokens},
    }
    return {"fingerprint": fingerprint(header), **header}


def _resume(journal: Path, header_path: Path, header: dict[str, Any], ids: set[str]) -> dict[str, Prediction]:
    """The answers to keep, with the journal cut back to exactly those; begins anew under another header."""
    old = read_header(journal)
    if old is None or old.get("fingerprint") != header["fingerprint"]:
        journal.unlink(missing_ok=True)  # first: an old answer must never stand under a new header
        write_atomic(header_path, json.dumps(header, indent=1, ensure_ascii=False) + "\n")
    kept: dict[str, Prediction] = {}
    if journal.is_file():
        for line in journal.read_bytes().splitlines():
            try:
                prediction = Prediction.from_json(json.loads(line))
            except (ValueError, TypeError):
                continue  # the line that was being written when the process died
            if prediction.id in ids and not prediction.failed:
                kept[prediction.id] = prediction
    write_atomic(journal, "".join(_line(prediction) for prediction in kept.values()))
    return kept


def _in_order(engine: Engine, benchmark: Benchmark) -> list[Question]:
    """The questions as they are asked: see the top."""
    lengths: dict[str, int] = {}
    longest: dict[tuple[str, ...], int] = {}  # of the questions on the same images
    count_tokens = getattr(engine, "count_tokens", None)
    for question in track(benchmark.questions, "reading questions", unit="questions"):
        request = _request(benchmark, question, (_ANY_IMAGE,) * len(question.images))
        lengths[question.id] = count_tokens(request) if count_tokens else len(request.messages[-1].text)
        longest[question.images] = max(longest.get(question.images, 0), lengths[question.id])
    return sorted(benchmark.questions, key=lambda q: (-longest[q.images], q.images, -lengths[q.id], q.id))


def _request(
    benchmark: Benchmark, question: Question, images: tuple[Image.Image, ...], max_new_tokens: int = 1, seed: int = 0
) -> Request:
    return Request(
        messages=(user(benchmark.ask(question), images=len(images)),),
        images=images,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
        seed=seed,
        choices=tuple(question.lettered) if benchmark.by_likelihood else (),
    )


def _outcomes(engine: Engine, requests: Iterable[Request], batch_size: int) -> Iterator[tuple[int, str | Exception]]:
    """(place, answer or the reason why there is none) of every request. An engine that has no `each` is asked in
    batches."""
    if each := getattr(engine, "each", None):
        yield from each(requests, batch_size)
        return
    left, place = iter(requests), 0
    while batch := list(islice(left, batch_size)):
        yield from enumerate(_answers(engine, batch), place)
        place += len(batch)


def _answers(engine: Engine, requests: Sequence[Request]) -> Sequence[str | Exception]:
    """A batch that raises without the outcome of each of its requests is asked one by one, to find the request at
    fault."""
    try:
        answers: Sequence[str | Exception] = engine.generate(requests)
    except (InputError, AssertionError):
        raise
    except Exception as error:  # noqa: BLE001 - an engine may raise anything; the reason is recorded and counted
        if isinstance(error, Unanswered) and error.answers:
            answers = error.answers
        elif len(requests) == 1:
            answers = [error]
        else:
            return [answer for request in requests for answer in _answers(engine, [request])]
    assert len(answers) == len(requests), f"{engine.name} gave {len(answers)} answers to {len(requests)} questions"
    return answers


def _prediction(question: Question, answer: str | Exception, control: str) -> Prediction:
    if isinstance(answer, str):
        return Prediction(question.id, answer, control=control)
    return Prediction(question.id, "", failed=f"{type(answer).__name__}: {answer}", control=control)


def _line(prediction: Prediction) -> str:
    return json.dumps(prediction.to_json(), ensure_ascii=False) + "\n"
