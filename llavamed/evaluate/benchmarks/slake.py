"""SLAKE 1.0 (Liu et al., ISBI 2021): English and Chinese questions on CT, MRI and X-ray images.

Only the English questions are read, as LLaVA-Med did (4,919 train, 1,053 validate, 1,061 test); the
Chinese ones are counted in `dropped`. The images are a separate download: without them predictions
made elsewhere can still be scored. 61 closed test questions are not yes/no ("heart or lung?").
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

NAME = "slake"
SPLITS = ("train", "validate", "test")
ORIGIN = "from SLAKE 1.0 at www.med-vqa.com/slake, its images in imgs/<img_name>"

PUBLISHED = llava_med_rows(
    (
        ("LLaVA", 78.18, 63.22, "fine-tuned on the training split, 3 epochs", PAPER),
        ("LLaVA-Med (from LLaVA)", 83.08, 85.34, "fine-tuned on the training split", PAPER),
        ("LLaVA-Med (from Vicuna)", 84.71, 83.17, "fine-tuned on the training split", PAPER),
        ("LLaVA-Med (BioMed CLIP)", 87.11, 86.78, "fine-tuned on the training split", PAPER),
        ("LLaVA", 26.82, 50.24, "zero-shot", NOTEBOOK),
        ("LLaVA-Med stage 1 only", 18.55, 13.46, "zero-shot", NOTEBOOK),
        ("LLaVA-Med 60K-IM, 3 epochs", 39.17, 52.16, "zero-shot", NOTEBOOK),
        ("LLaVA-Med 60K-IM, BioMed CLIP", 39.73, 54.33, "zero-shot", NOTEBOOK),
    )
)


def read(data: Path, split: str) -> Benchmark:
    """`data/<split>.json` and `data/imgs/`. Raises InputError for what is missing or not SLAKE."""
    path = data_file(data, [f"{split}.json"], NAME, ORIGIN)
    rows, sha256 = read_rows(path)
    numbered = [(number, row) for number, row in enumerate(rows) if row.get("q_lang") == "en"]
    questions = tuple(_question(row, path, number) for number, row in numbered)
    dropped = {"not in English": len(rows) - len(numbered)}
    published = PUBLISHED if split == "test" else ()
    return Benchmark(NAME, split, questions, data / "imgs", sha256, published=published, dropped=dropped)


def _question(row: dict[str, Any], path: Path, number: int) -> Question:
    closed = is_closed(row, path, number)
    answer = text_of(row, "answer", path, number)
    return Question(
        id=text_of(row, "qid", path, number),
        image=text_of(row, "img_name", path, number),
        question=text_of(row, "question", path, number),
        answer=answer,
        closed=closed,
        options=yes_no_options(answer, closed),
        groups={
            "modality": str(row.get("modality", "")),
            "location": str(row.get("location", "")),
            "content": str(row.get("content_type", "")),
        },
    )
