"""Ask a model every question of a benchmark, and lose nothing when the power goes.

`predictions.jsonl` is a journal: each batch is appended and forced to the disk as soon as it is answered.
After `kill -9` or a power cut the next call drops a cut last line, asks what is missing and ends with the same file,
because the questions are always asked in one order (longest first, so that a batch has little
padding and a batch that does not fit in memory fails at once) and the finished file is put into the
benchmark's own order.

Beside it `header.json` says what was asked of whom. If the model, the prompt, the control, the
decoding, the benchmark's file or its images change, the old answers are of another experiment and are not used.

A request that raises is recorded as `failed` with the reason and stays in the denominator as wrong;
the next call asks it again. Wrong input (an image that is missing or damaged) and defects of ours end the run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llavamed.engine import Engine, Request, Unanswered
from llavamed.errors import InputError
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.controls import pictures
from llavamed.manifest import fingerprint, write_atomic
from llavamed.progress import Progress
from llavamed.records import Prediction, Question, user

JOURNAL = "predictions.jsonl"
HEADER = "header.json"


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
    out.mkdir(parents=True, exist_ok=True)
    journal = out / JOURNAL
    header = _header(engine, benchmark, control, seed, max_new_tokens, model_fingerprint)
    done = _resume(journal, out / HEADER, header, {question.id for question in benchmark.questions})

    pending = [q for q in sorted(benchmark.questions, key=_longest_first(benchmark)) if q.id not in done]
    if pending:
        picture = pictures(control, benchmark.image_names, lambda name: benchmark.read_image(name), seed)
        total = len(benchmark.questions)
        with journal.open("a", encoding="utf-8") as rows, Progress(control, total, "answers", len(done)) as progress:
            for start in range(0, len(pending), batch_size):
                batch = pending[start : start + batch_size]
                requests = [
                    Request(
                        messages=(user(benchmark.ask(question), images=len(question.images)),),
                        images=tuple(picture(name) for name in question.images),
                        max_new_tokens=max_new_tokens,
                        temperature=0.0,
                        seed=seed,
                    )
                    for question in batch
                ]
                for prediction in _answer(engine, batch, requests, control):
                    done[prediction.id] = prediction
                    rows.write(_line(prediction))
                rows.flush()
                os.fsync(rows.fileno())
                failed = sum(bool(prediction.failed) for prediction in done.values())
                progress.advance(len(batch), f"{failed} failed" if failed else "")
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
        "decoding": {"temperature": 0.0, "max_new_tokens": max_new_tokens},
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


def _longest_first(benchmark: Benchmark) -> Any:
    return lambda question: (-len(benchmark.ask(question)), question.id)


def _answer(engine: Engine, batch: Sequence[Question], requests: list[Request], control: str) -> list[Prediction]:
    """One prediction a question. A batch that raises without the outcome of each of its requests is asked one by
    one, to find the request at fault."""
    answers: Sequence[str | Exception]
    try:
        answers = engine.generate(requests)
    except (InputError, AssertionError):
        raise
    except Exception as error:  # noqa: BLE001 - an engine may raise anything; the reason is recorded and counted
        if isinstance(error, Unanswered) and error.answers:
            answers = error.answers
        elif len(batch) == 1:
            answers = [error]
        else:
            singly = [_answer(engine, [q], [r], control) for q, r in zip(batch, requests, strict=True)]
            return [prediction for single in singly for prediction in single]
    assert len(answers) == len(batch), f"{engine.name} gave {len(answers)} answers to {len(batch)} questions"
    return [_prediction(q, answer, control) for q, answer in zip(batch, answers, strict=True)]


def _prediction(question: Question, answer: str | Exception, control: str) -> Prediction:
    if isinstance(answer, str):
        return Prediction(question.id, answer, control=control)
    return Prediction(question.id, "", failed=f"{type(answer).__name__}: {answer}", control=control)


def _line(prediction: Prediction) -> str:
    return json.dumps(prediction.to_json(), ensure_ascii=False) + "\n"
