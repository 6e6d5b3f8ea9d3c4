"""The phantom world's held-out questions, and any folder of questions in our own format.

`questions.jsonl` holds one `records.Question` a line, `images/` the pictures. Whoever has a benchmark
of their own writes these two and evaluates it by the same command. A folder with several splits has
one such folder per split inside.
"""

from __future__ import annotations

from pathlib import Path

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import Benchmark, data_file
from llavamed.manifest import file_sha256
from llavamed.records import Question, read_jsonl

NAME = "phantom"
SPLITS = ("train", "test")
ORIGIN = "one question a line with id, image, question, answer, closed; images in images/; `llavamed demo` makes one"


def read(data: Path, split: str) -> Benchmark:
    """`data/<split>/questions.jsonl`, or `data/questions.jsonl` for the only split there is, "test"."""
    inner = data / split
    folder = inner if (inner / "questions.jsonl").is_file() or split != "test" else data
    path = data_file(folder, ["questions.jsonl"], NAME, ORIGIN)
    questions = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            question = Question.from_json({**row, "id": str(row["id"])})
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path}:{number}: not a question ({error}); it needs id, image, question, answer, closed"
            ) from None
        questions.append(question)
    return Benchmark(NAME, split, tuple(questions), folder / "images", {path.name: file_sha256(path)})
