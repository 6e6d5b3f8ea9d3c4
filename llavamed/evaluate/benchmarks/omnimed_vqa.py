"""OmniMedVQA (Hu et al., CVPR 2024): multiple choice made from 73 medical classification datasets, 12 modalities.

The questions are one JSON file a source dataset. 88,996 questions on 42 datasets come with their images
(`open-access`); those of the others must be had from their owners (`restricted-access`). Rows have two to four
options, the right one given as its text. Three things in the files surprise, and each is counted in `noted`: one row
says `modality` for `modality_type`; the reference of some rows may be none of the options, and then no
answer is right, as in the official scorer; ids may occur in two files, and then the file's name goes before the id.

Official is the nearest option by difflib to what the model says, so every answer names some option.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.evaluate.benchmarks.files import data_files, read_objects, sha256_of, text_of
from llavamed.records import Question

NAME = "omnimed-vqa"
SPLITS = ("open-access", "restricted-access")
SPLIT = "open-access"
ORIGIN = "from the hub's foreverbeliever/OmniMedVQA: QA_information/Open-access/*.json and Images/"
SIGNS = (("QA_information/Open-access/*.json", '"gt_answer"'),)

_LETTERS = "ABCD"


def read(data: Path, split: str) -> Benchmark:
    folder = f"QA_information/{split.capitalize()}"
    paths = data_files(data, [f"{folder}/*.json"], NAME, ORIGIN)
    rows = [(path, number, row) for path in paths for number, row in enumerate(read_objects(path))]
    times = Counter(str(row.get("question_id")) for _, _, row in rows)
    questions = tuple(_question(row, path, number, times) for path, number, row in rows)
    noted = {
        "modality under another key": sum("modality_type" not in row for _, _, row in rows),
        "reference is none of the options (never right)": sum(not question.letter for question in questions),
        "id in two files": sum(times[str(row["question_id"])] > 1 for _, _, row in rows),
    }
    return Benchmark(
        NAME,
        split,
        questions,
        data,
        sha256_of(paths, data),
        family="omnimed_vqa",
        noted={reason: count for reason, count in noted.items() if count},
    )


def _question(row: Mapping[str, Any], path: Path, number: int, times: Counter[str]) -> Question:
    id = text_of(row, "question_id", path, number)
    options = tuple(str(row.get(f"option_{letter}") or "").strip() for letter in _LETTERS)
    while options and not options[-1]:
        options = options[:-1]
    answer = text_of(row, "gt_answer", path, number)
    return Question(
        id=id if times[id] == 1 else f"{path.stem}/{id}",
        image=text_of(row, "image_path", path, number),
        question=text_of(row, "question", path, number),
        answer=answer,
        closed=True,
        options=options,
        letter=_LETTERS[options.index(answer)] if answer in options else "",
        groups={
            "modality": str(row.get("modality_type") or row.get("modality") or ""),
            "type": str(row.get("question_type", "")),
            "dataset": str(row.get("dataset", path.stem)),
        },
    )
