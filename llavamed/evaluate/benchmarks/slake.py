"""SLAKE 1.0 (Liu et al., ISBI 2021): English and Chinese questions on CT, MRI and X-ray images.

Under the name `slake` only the English questions are asked, as LLaVA-Med did (4,919 train, 1,053 validate, 1,061
test); `slake_zh.py` asks the others. A file of answers to both is read for either. The images are a separate
download: without them predictions made elsewhere can still be scored. 61 closed English test questions are not
yes/no ("heart or lung?").
"""

from __future__ import annotations

from pathlib import Path

from llavamed.evaluate.benchmarks.benchmark import Benchmark, Published
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

NAME = "slake"
SPLITS = ("train", "validate", "test")
SPLIT = "test"
ORIGIN = "from SLAKE 1.0 at www.med-vqa.com/slake or the hub's BoKelvin/SLAKE, its images in imgs/<img_name>"
SIGNS = (("test.json", '"img_name"'), ("validate.json", '"img_name"'))

PUBLISHED = published_rows(
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
    return read_language(data, split, NAME, "en", PUBLISHED if split == "test" else ())


def read_language(data: Path, split: str, name: str, language: str, published: tuple[Published, ...] = ()) -> Benchmark:
    """The questions in one language; those in the other are counted in `dropped`, and answers to them passed over."""
    path = data_file(data, [f"{split}.json"], name, ORIGIN)
    rows = read_objects(path)
    asked = [row for row in rows if row.get("q_lang", "en") == language]  # LLaVA-Med's own file has English alone
    others = [row for row in rows if row.get("q_lang", "en") != language]
    questions = read_questions(asked, path, _question)
    return Benchmark(
        name,
        split,
        questions,
        data / "imgs",
        sha256_of([path], data),
        published=published,
        dropped={f"not in {'English' if language == 'en' else 'Chinese'}": len(others)},
        beside=frozenset(str(row["qid"]) for row in others if "qid" in row),
    )


def _question(row: Row, path: Path, number: int) -> Question:
    closed = is_closed(row, path, number)
    answer = text_of(row, "answer", path, number)
    asked = text_of(row, "question", path, number)
    return Question(
        id=text_of(row, "qid", path, number),
        image=text_of(row, "img_name", path, number),
        question=asked,
        answer=answer,
        closed=closed,
        options=closed_options(asked, answer, closed),
        groups={
            "modality": str(row.get("modality", "")),
            "location": str(row.get("location", "")),
            "content": str(row.get("content_type", "")),
        },
    )
