"""MedMCQA (Pal et al., CHIL 2022): questions of Indian medical entrance examinations, four options, no image.

A language model's medical knowledge, to see what training on images took from it. The answers of the test split are
hidden, so everyone reports `validation` (4,183). The authors' `dev.json` (JSON lines) counts the right option `cop`
from 1; the hub's Parquet counts it from 0: read as one another, every answer is wrong by one.

Asked with lm-evaluation-harness's prompt. That harness compares the likelihood of the four letters; here the
model writes, and the letter is read from what it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.evaluate.benchmarks.files import data_files, read_parquet, sha256_of, text_of
from llavamed.records import Question, read_jsonl

NAME = "medmcqa"
SPLITS = ("train", "validation")
SPLIT = "validation"
ORIGIN = (
    "dev.json of the authors' archive (medmcqa.github.io), or data/validation-*.parquet of openlifescienceai/medmcqa"
)
SIGNS = (("dev.json", '"cop"'), ("data/validation-*.parquet", "cop"), ("validation-*.parquet", "cop"))

_LETTERS = "ABCD"
_JSON = {"train": "train.json", "validation": "dev.json"}


def read(data: Path, split: str) -> Benchmark:
    names = [_JSON[split], f"data/{split}-*.parquet", f"{split}-*.parquet"]
    paths = data_files(data, names, NAME, ORIGIN)
    parquet = paths[0].suffix == ".parquet"
    questions = tuple(
        _question(row, path, number, first=0 if parquet else 1)
        for path in paths
        for number, row in enumerate(read_parquet(path) if parquet else read_jsonl(path))
    )
    return Benchmark(
        NAME,
        split,
        questions,
        data,
        sha256_of(paths, data),
        choice_prompt="Question: {question}\nChoices:\n{options}\nAnswer:",
        family="medmcqa",
        max_new_tokens=32,
    )


def _question(row: Mapping[str, Any], path: Path, number: int, first: int) -> Question:
    options = tuple(text_of(row, f"op{letter.lower()}", path, number) for letter in _LETTERS)
    right = row.get("cop")
    if not isinstance(right, int) or not 0 <= right - first < len(options):
        raise InputError(
            f"{path}: row {number}: cop is {right!r}; it must be {first} to {first + 3} (the test split has no answers)"
        )
    return Question(
        id=text_of(row, "id", path, number),
        image="",
        question=text_of(row, "question", path, number),
        answer=options[right - first],
        closed=True,
        options=options,
        letter=_LETTERS[right - first],
        groups={"subject": str(row.get("subject_name") or "")},
    )
