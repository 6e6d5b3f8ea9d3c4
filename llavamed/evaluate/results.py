"""Answers in the files of the two large harnesses, matched to the questions they are about.

    lmms-eval      *_samples_<task>.jsonl, written by --log_samples (read: version 0.7.3)
    VLMEvalKit     <model>_<dataset>.xlsx | .tsv | .json, by PRED_FORMAT (read: its files of 2026)
    others         what `predictions.py` reads

The hard thing is the identity of a row. lmms-eval drops the question and numbers rows by their place in *its* copy of
the data set (`doc_id`); VLMEvalKit has its own `index`. Such a number may coincide with a benchmark's id and
mean another question. So a match counts only if the text agrees: the question must occur in what the file says was
asked, and the image's name in what it says was shown, if it says that. Ids are tried first, then the order, then
texts and images themselves; if none fits, nothing is written.

What these tools write in place of an answer that never came ("Failed to obtain answer via API.") is a failure here, not
an answer. They score it as one: "[LMMS_EVAL_REQUEST_FAILED after 5 retries] ... not ..." holds the answer "no".
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate import predictions
from llavamed.evaluate.predictions import ID_KEYS, TEXT_KEYS
from llavamed.records import Prediction, Question

_ASKED_KEYS = ("question", "prompt", "input")
_BEGINNING = 8  # letters of a question by which a place in a prompt is looked up
_FAILURES = ("Failed to obtain answer", "[LMMS_EVAL_REQUEST_FAILED", "[LMMS_EVAL_BUDGET_EXCEEDED]")


@dataclass(frozen=True)
class Answer:
    """One row. `ids` are all that might be the benchmark's id; `asked` is the question or the prompt, or empty, and
    `shown` the names of the images, as far as the file has them."""

    ids: tuple[str, ...]
    text: str
    failed: str = ""
    asked: str = ""
    shown: tuple[str, ...] = ()


def read(path: Path) -> list[Answer]:
    """The rows of a file in any of these forms. Raises InputError that names the row for what is none of them."""
    if path.suffix.lower() == ".pkl":
        raise InputError(
            f"{path}: a pickle, which may run anything when it is read; run VLMEvalKit with PRED_FORMAT=tsv"
        )
    rows = list(_sheet(path)) if path.suffix.lower() == ".xlsx" else predictions.read(path)
    if not rows:
        raise InputError(f"{path}: no rows")
    return [_answer(row, f"{path}: row {number}") for number, row in enumerate(rows, 1)]


def by_id(path: Path, ids: Sequence[str]) -> dict[str, Answer]:
    """Exactly one answer for each of `ids`. Raises InputError that tells what is missing, repeated or unknown."""
    answers = read(path)
    counted = Counter(answer.ids[0] for answer in answers)
    problems = {
        "missing": [id for id in ids if id not in counted],
        "repeated": [id for id, count in counted.items() if count > 1],
        "unknown": sorted(counted.keys() - set(ids)),
    }
    told = [f"{len(found)} {kind} ids (first: {', '.join(found[:5])})" for kind, found in problems.items() if found]
    if told:
        raise InputError(f"{path}: {'; '.join(told)}; there must be one answer for each of the {len(ids)} questions")
    return {answer.ids[0]: answer for answer in answers}


def match(answers: Sequence[Answer], questions: Sequence[Question], where: str) -> tuple[list[Prediction], str]:
    """One prediction a question, in the order of the questions, and how they were matched.

    Raises InputError if the rows are not the answers to these questions.
    """
    if len(answers) != len(questions):
        raise InputError(
            f"{where}: {len(answers)} answers, but the benchmark has {len(questions)} questions; "
            "check the split, and that the run was not limited"
        )
    names = {Path(question.image).name for question in questions}
    if not any(names & set(answer.shown) for answer in answers):  # the tool names images its own way
        answers = [replace(answer, shown=()) for answer in answers]
    found, how = _by_ids(answers, questions), "by id"
    if found is None:
        found, how = _by_order(answers, questions), "by order, every question found in what was asked"
    if found is None:
        found, how = _by_text(answers, questions), "by the text of the question and the name of the image"
    if found is None:
        raise InputError(
            f"{where}: its rows cannot be matched to the questions, neither by id nor by order nor by text "
            f"(its first row asks {answers[0].asked[:80]!r}; the first question is {questions[0].question[:80]!r}); "
            "if you know that the order is the same, `llavamed score --by-order` takes it on your word"
        )
    rows = zip(questions, found, strict=True)
    return [Prediction(question.id, answer.text, failed=answer.failed) for question, answer in rows], how


def _by_ids(answers: Sequence[Answer], questions: Sequence[Question]) -> list[Answer] | None:
    for place in range(max(len(answer.ids) for answer in answers)):
        keyed = {answer.ids[place]: answer for answer in answers if len(answer.ids) > place}
        found = [keyed.get(question.id) for question in questions]
        pairs = [(a, q) for a, q in zip(found, questions, strict=True) if a is not None]
        if len(pairs) == len(questions) and all(not a.asked or _agree(a, q) for a, q in pairs):
            return [a for a, _ in pairs]
    return None


def _by_order(answers: Sequence[Answer], questions: Sequence[Question]) -> list[Answer] | None:
    numbers = [answer.ids[0] for answer in answers]
    ordered = sorted(answers, key=lambda a: int(a.ids[0])) if all(map(str.isdecimal, numbers)) else list(answers)
    return ordered if all(map(_agree, ordered, questions)) else None


def _by_text(answers: Sequence[Answer], questions: Sequence[Question]) -> list[Answer] | None:
    """The one question that each answer is about: of those that occur in what was asked, the longest.

    Looking every question up in every prompt would take hours for VQA v2. Here the places of a prompt where any
    question might begin are found by its first letters, and what stands there in a table of all questions.
    """
    found: dict[int, Answer] = {}
    places: dict[str, dict[str, list[int]]] = {}  # question's words -> image -> where it stands
    for index, question in enumerate(questions):
        if text := _plain(question.question):
            places.setdefault(text, {}).setdefault(Path(question.image).name, []).append(index)
    lengths: dict[str, set[int]] = {}
    for text in places:
        lengths.setdefault(text[:_BEGINNING], set()).add(len(text))
    beginnings = sorted({len(beginning) for beginning in lengths})
    for answer in answers:
        asked = _plain(answer.asked)
        occurring = {
            asked[start : start + length]
            for start in range(len(asked))
            for size in beginnings
            for length in lengths.get(asked[start : start + size], ())
        }
        fits: list[int] = []
        for _, texts in itertools.groupby(sorted(occurring & places.keys(), key=len, reverse=True), len):
            about = [places[text] for text in texts]
            fits = [i for images in about for name in set(answer.shown) or images for i in images.get(name, ())]
            if fits:
                break
        if len(fits) != 1 or fits[0] in found:
            return None  # "Is there a nodule?" about ten images that the file does not name
        found[fits[0]] = answer
    return [found[index] for index in range(len(questions))]


def _agree(answer: Answer, question: Question) -> bool:
    if answer.shown and Path(question.image).name not in answer.shown:
        return False
    return _plain(question.question) in _plain(answer.asked)


@cache
def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _answer(row: Mapping[str, Any], where: str) -> Answer:
    if "doc_id" in row and ("resps" in row or "filtered_resps" in row):
        text = _only(row.get("resps", row.get("filtered_resps")), where)
        ids = [str(row["doc_id"])]
        # a task's own record of the row, where it has one, holds the data set's id
        records = [value for value in row.values() if isinstance(value, dict)]
        ids += [str(record[key]) for record in records for key in ID_KEYS if record.get(key) is not None]
    else:
        ids = [_text(row[key]) for key in ID_KEYS if row.get(key) is not None]
        key = next((key for key in TEXT_KEYS if key in row), None)  # "answer" comes last: it may be the reference
        if key is None or not ids:
            raise InputError(
                f"{where}: no answer or no id; it needs one of {', '.join(ID_KEYS)} and one of {', '.join(TEXT_KEYS)}"
            )
        text = _text(row[key])
    asked = next((_text(row[key]) for key in _ASKED_KEYS if row.get(key) is not None), "")
    failed = str(row.get("failed") or "") or next((text for mark in _FAILURES if text.startswith(mark)), "")
    media = row.get("input_media")
    shown = tuple(Path(str(name)).name for name in media) if isinstance(media, list) else ()
    return Answer(tuple(ids), "" if failed else text, failed, asked, shown)


def _only(value: Any, where: str) -> str:
    """lmms-eval wraps a response in a list or two; a task that compares likelihoods has several."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise InputError(
            f"{where}: {type(value).__name__} where one generated answer belongs; likelihoods are not read"
        )
    return value


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # an empty cell
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _sheet(path: Path) -> Iterable[Mapping[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a file of answers")
    try:
        import openpyxl
    except ImportError:
        raise InputError(
            f"{path}: .xlsx needs openpyxl; `pip install 'llavamed[harness]'`, or run VLMEvalKit with PRED_FORMAT=tsv"
        ) from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file raises whatever zip, XML or openpyxl raise
        raise InputError(f"{path}: not a sheet that can be read ({error}); write it again") from None
    cells = book.worksheets[0].iter_rows(values_only=True)
    names = [str(name) for name in next(cells, ())]
    yield from (dict(zip(names, row, strict=False)) for row in cells if any(cell is not None for cell in row))
    book.close()
