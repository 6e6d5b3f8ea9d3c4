"""MMMU (Yue et al., CVPR 2024): college examinations in 30 subjects, with one to seven pictures a question.

The validation split has 900 questions, 847 of them multiple choice with up to nine options; the answers of the test are
hidden. The hub's files are one Parquet a subject with the pictures inside; a question says `<image 2>` where it
means one, and all of them go before the text in their order. The options are text that looks like a Python
list, and so are some open references, of which any counts.

With `answer_dict_val.json` of the authors' repository alone, predictions can be scored and nothing asked: it has the
answers, and the options come with the predictions (`output.json` of each subject has them).

The order of the questions is part of the official score: where no letter is found, one is drawn at random, from one
generator over all subjects in alphabetical order, within a subject in the order of the rows: those of `output.json`
where the answers come in one, else those of the benchmark's own file.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import Benchmark, Published
from llavamed.evaluate.benchmarks.files import data_file, read_json, read_parquet, sha256_of, text_of
from llavamed.evaluate.benchmarks.stored import Cell, ParquetImages, filled_cells
from llavamed.evaluate.metrics.mmmu import DOMAINS, subject
from llavamed.records import Question

NAME = "mmmu"
SPLITS = ("dev", "validation")
SPLIT = "validation"
ORIGIN = (
    "<Subject>/<split>-*.parquet of the hub's MMMU/MMMU, or eval/answer_dict_val.json of its repository to score only"
)
SIGNS = (("answer_dict_val.json", '"ground_truth"'), ("*/validation-*.parquet", "image_7", "subfield"))

KEY = "answer_dict_val.json"
SUBJECTS = tuple(sorted(each for subjects in DOMAINS.values() for each in subjects))
PUBLISHED = tuple(
    Published(model, {"accuracy_official": value}, "validation, zero-shot", "MMMU's README, 2023-12")
    for model, value in (
        ("GPT-4V (playground)", 56.8),
        ("LLaVA-1.5-13B", 36.4),
        ("Qwen-VL-7B-Chat", 35.9),
        ("frequent choice", 22.1),
        ("random choice", 26.8),
    )
)

_IMAGES = tuple(f"image_{number}" for number in range(1, 8))
_ID = re.compile(r"[a-z]+_\w+_\d+")
_OPEN = ("open", "short-answer")  # the same, in the Parquet and in the answer key


def read(data: Path, split: str) -> Benchmark:
    benchmark = read_subjects(data, split, NAME, SUBJECTS)
    return replace(benchmark, published=PUBLISHED if split == "validation" else ())


def read_subjects(data: Path, split: str, name: str, subjects: Sequence[str]) -> Benchmark:
    """The questions of some subjects, from the Parquet files or, without any, from the answer key."""
    if split == "validation" and not any(data.glob(f"*/{split}-*.parquet")):
        return _from_key(data, split, name, subjects)
    paths = [data_file(data, [f"{each}/{split}-*.parquet"], name, ORIGIN) for each in subjects]
    questions: list[Question] = []
    cells: dict[str, Cell] = {}
    for path in paths:
        held: dict[int, list[str]] = {}
        for place, column in filled_cells(path, _IMAGES):
            held.setdefault(place, []).append(column)
        for number, row in enumerate(read_parquet(path, leave=_IMAGES)):
            id = text_of(row, "id", path, number)
            images = {f"{id}/{column}": Cell(path, number, column) for column in held.get(number, ())}
            cells.update(images)
            questions.append(_question(row, path, number, tuple(images)))
    return Benchmark(
        name,
        split,
        tuple(questions),
        data,
        sha256_of(paths, data),
        prompt="{question}\n\nAnswer the question using a single word or phrase.",
        choice_prompt="{question}\n\n{options}\n\nAnswer with the option's letter from the given choices directly.",
        option_line="({letter}) {option}",
        family="mmmu",
        max_new_tokens=128,
        embedded=ParquetImages(cells),
    )


def _question(row: Mapping[str, Any], path: Path, number: int, images: tuple[str, ...]) -> Question:
    id = text_of(row, "id", path, number)
    if not _ID.fullmatch(id):
        raise InputError(f"{path}: row {number} has the id {id!r}; MMMU's are like validation_Art_7")
    answers = _listed(text_of(row, "answer", path, number), path, number)
    options = tuple(str(option).strip() for option in _listed(str(row.get("options") or "[]"), path, number))
    letter = ""
    if _is_choice(text_of(row, "question_type", path, number), f"{path}: row {number}"):
        letter = answers[0]
        if letter not in tuple(ascii_uppercase[: len(options)]):
            raise InputError(
                f"{path}: row {number}: the answer {letter!r} is none of its {len(options)} options; the test split "
                "has no answers"
            )
    return Question(
        id=id,
        image=images[0] if images else "",
        question=text_of(row, "question", path, number),
        answer=options[ascii_uppercase.index(letter)] if letter else answers[0],
        closed=bool(letter),
        options=options if letter else (),
        groups={**_groups(id), "difficulty": str(row.get("topic_difficulty") or "")},
        letter=letter,
        answers=() if letter else answers,
        more_images=images[1:],
    )


def _from_key(data: Path, split: str, name: str, subjects: Sequence[str]) -> Benchmark:
    path = data_file(data, [KEY], name, ORIGIN)
    key = read_json(path)
    if not isinstance(key, dict) or not all(
        _ID.fullmatch(id) and isinstance(row, dict) and "ground_truth" in row for id, row in key.items()
    ):
        raise InputError(f"{path}: not MMMU's answer key (id: question_type, ground_truth); fetch the file again")
    questions = []
    for id in sorted(key, key=subject):  # within one in the order of the file
        row = key[id]
        found = row["ground_truth"]
        answers = tuple(str(answer) for answer in (found if isinstance(found, list) else [found]))
        choice = _is_choice(str(row.get("question_type")), f"{path}: {id}")
        if subject(id) in subjects:
            questions.append(
                Question(
                    id=id,
                    image="",
                    question="",
                    answer=answers[0],
                    closed=choice,
                    groups=_groups(id),
                    letter=answers[0] if choice else "",
                    answers=() if choice else answers,
                )
            )
    return Benchmark(
        name,
        split,
        tuple(questions),
        data,
        sha256_of([path], data),
        family="mmmu",
        beside=frozenset(key) - {question.id for question in questions},
    )


def _is_choice(kind: str, where: str) -> bool:
    if kind not in ("multiple-choice", *_OPEN):
        raise InputError(f"{where} has question_type {kind!r}; it must be multiple-choice, {' or '.join(_OPEN)}")
    return kind == "multiple-choice"


def _listed(text: str, path: Path, number: int) -> tuple[str, ...]:
    """`text`, or the items of the Python list that it is written as."""
    if not (text.startswith("[") and text.endswith("]")):
        return (text,)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (SyntaxWarning, DeprecationWarning))  # a formula's "\\mu" is no escape
            return tuple(str(item) for item in ast.literal_eval(text))
    except (ValueError, SyntaxError):
        raise InputError(f"{path}: row {number}: {text[:60]!r} is not a list; fetch the file again") from None


def _groups(id: str) -> dict[str, str]:
    field = subject(id)
    domain = next((name for name, subjects in DOMAINS.items() if field in subjects), "")
    return {"domain": domain, "subject": field}
