"""VQA-RAD (Lau et al., Scientific Data 2018): 315 radiology images, questions asked by clinicians.

Several splits of it circulate, all with the same 451 test questions (272 closed, 179 open) but for the
hub's. LLaVA-Med's, in `train.json` and `test.json`, trains on 3,064; the dataset's own file marks the test by
`phrase_type` and leaves 1,797 (with those LLaVA-Med's open recall falls from 64 to 33). Both split by *question*:
nearly every test image is also a training image, and `overlap` counts how many. Fine-tuned numbers, the published
ones included, are therefore partly recall of the image. 21 closed test questions are not yes/no ("left or right?").
"""

from __future__ import annotations

from pathlib import Path

from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.evaluate.benchmarks.files import data_file, read_objects, sha256_of, text_of
from llavamed.evaluate.benchmarks.llava_med import (
    NOTEBOOK,
    PAPER,
    Row,
    is_closed,
    published_rows,
    read_questions,
)
from llavamed.evaluate.benchmarks.offered import closed_options
from llavamed.records import Question

NAME = "vqa-rad"
SPLITS = ("train", "test")
SPLIT = "test"
PUBLIC = "VQA_RAD Dataset Public.json"  # the dataset's own file, both splits in one
ORIGIN = "from the VQA-RAD dataset at osf.io/89kps, split as in LLaVA-Med (3,064 train, 451 test), images in images/"
SIGNS = tuple((file, '"image_name"') for file in ("test.json", "train.json", PUBLIC))

# Slips of the dataset's annotators, which would otherwise be groups of their own.
_SPELLING = {"ATRIB": "ATTRIB", "PRSE": "PRES"}

PUBLISHED = published_rows(
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
    """`data/<split>.json` or the dataset's own file, and `data/images/`. Raises InputError for what is missing or not
    VQA-RAD."""
    path = data_file(data, [f"{split}.json", PUBLIC], NAME, ORIGIN)
    rows = read_objects(path)
    if path.name == PUBLIC:
        rows = [row for row in rows if str(row.get("phrase_type")).startswith("test_") == (split == "test")]
    questions = read_questions(rows, path, _question)
    published = PUBLISHED if split == "test" else ()
    return Benchmark(NAME, split, questions, data / "images", sha256_of([path], data), published=published)


def _question(row: Row, path: Path, number: int) -> Question:
    closed = is_closed(row, path, number)
    answer = text_of(row, "answer", path, number)
    asked = text_of(row, "question", path, number)
    types = {
        _SPELLING.get(name, name) for name in str(row.get("question_type", "")).upper().replace(" ", "").split(",")
    }
    return Question(
        id=text_of(row, "qid", path, number),
        image=text_of(row, "image_name", path, number),
        question=asked,
        answer=answer,
        closed=closed,
        options=closed_options(asked, answer, closed),
        groups={
            "organ": str(row.get("image_organ", "")),
            "type": ", ".join(sorted(types)),
            "phrase": str(row.get("phrase_type", "")),
        },
    )
