"""The phantom world's held-out questions, and any folder of questions in our own format.

`questions.jsonl` holds one `records.Question` a line, `images/` the pictures. Whoever has a benchmark
of their own writes these two and evaluates it by the same command. A folder with several splits has
one such folder per split inside.
"""

from __future__ import annotations

from pathlib import Path

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.evaluate.benchmarks.files import data_file, sha256_of
from llavamed.records import Question, read_jsonl

NAME = "phantom"
SPLITS = ("train", "test")
SPLIT = "test"
ORIGIN = "one question a line with id, image, question, answer, closed; images in images/; `llavamed demo` makes one"
SIGNS = (("questions.jsonl", '"question"', '"closed"'), ("test/questions.jsonl", '"question"', '"closed"'))
_NAMED = 3  # problems told in full


def read(data: Path, split: str) -> Benchmark:
    """`data/<split>/questions.jsonl`, or `data/questions.jsonl` for the only split there is, "test"."""
    inner = data / split
    folder = inner if (inner / "questions.jsonl").is_file() or split != "test" else data
    path = data_file(folder, ["questions.jsonl"], NAME, ORIGIN)
    questions, problems = [], []
    for row in read_jsonl(path):
        try:
            # a whole number does for an id
            questions.append(Question.from_json(row | {"id": str(row["id"])} if "id" in row else row))
        except InputError as error:
            problems.append(str(error))
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise InputError(
            f"{path}: {len(problems)} of {len(problems) + len(questions)} records are not questions: "
            f"{'; '.join(problems[:_NAMED])}{more}; each needs id, image, question, answer, closed"
        )
    return Benchmark(NAME, split, tuple(questions), folder / "images", sha256_of([path], data))
