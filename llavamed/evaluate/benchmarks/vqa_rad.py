"""VQA-RAD (Lau et al., Scientific Data 2018): 315 radiology images, questions asked by clinicians.

Two splits of it circulate. The one here is LLaVA-Med's: 3,064 training and 451 test questions (272
closed, 179 open), split by *question*: nearly every test image is also a training image, and
`overlap` counts how many. Fine-tuned numbers, the published ones included, are therefore partly
recall of the image. 21 closed test questions are not yes/no ("left or right?").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llavamed.evaluate.benchmarks.benchmark import (
    NOTEBOOK,
    PAPER,
    Benchmark,
    data_file,
    is_closed,
    llava_med_rows,
    read_rows,
    text_of,
    yes_no_options,
)
from llavamed.records import Question

NAME = "vqa-rad"
SPLITS = ("train", "test")
ORIGIN = "from the VQA-RAD dataset at osf.io/89kps, split as in LLaVA-Med (3,064 train, 451 test), images in images/"

# Slips of the dataset's annotators, which would otherwise be groups of their own.
_SPELLING = {"ATRIB": "ATTRIB", "PRSE": "PRES"}

PUBLISHED = llava_med_rows(
    (
        ("LLaVA", 50.00, 65.07, "fine-tuned on the training split, 3 epochs", PAPER),
        ("LLaVA-Med (from LLaVA)", 61.52, 84.19, "fine-tuned on the training split", PAPER),
        ("LLaVA-Med (from Vicuna)", 64.39, 81.98, "fine-tuned on the training split", PAPER),
        ("LLaVA-Med (BioMed CLIP)", 64.75, 83.09, "fine-tuned on the training split", PAPER),
        ("LLaVA", 20.74, 59.19, "zero-shot", NOTEBOOK),
        ("LLaVA-Med stage 1 only", 15.27, 12.50, "zero-shot", NOTEBOOK),
        ("LLaVA-Med 60K-IM, 3 epochs", 28.23, 61.40, "zero-shot", NOTEBOOK),
        ("LLaVA-Med 60K-IM, BioMed CLIP", 37.84, 60.66, "zero-shot", NOTEBOOK),
    )
)


def read(data: Path, split: str) -> Benchmark:
    """`data/<split>.json` and `data/images/`. Raises InputError for what is missing or not VQA-RAD."""
    path = data_file(data, [f"{split}.json"], NAME, ORIGIN)
    rows, sha256 = read_rows(path)
    questions = tuple(_question(row, path, number) for number, row in enumerate(rows))
    return Benchmark(NAME, split, questions, data / "images", sha256, published=PUBLISHED if split == "test" else ())


def _question(row: dict[str, Any], path: Path, number: int) -> Question:
    closed = is_closed(row, path, number)
    answer = text_of(row, "answer", path, number)
    types = {
        _SPELLING.get(name, name) for name in str(row.get("question_type", "")).upper().replace(" ", "").split(",")
    }
    return Question(
        id=text_of(row, "qid", path, number),
        image=text_of(row, "image_name", path, number),
        question=text_of(row, "question", path, number),
        answer=answer,
        closed=closed,
        options=yes_no_options(answer, closed),
        groups={
            "organ": str(row.get("image_organ", "")),
            "type": ", ".join(sorted(types)),
            "phrase": str(row.get("phrase_type", "")),
        },
    )
