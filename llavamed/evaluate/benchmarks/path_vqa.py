"""PathVQA (He et al. 2020): questions made by rule from captions of pathology textbooks, 4,998 images.

Three forms of it circulate. LLaVA-Med's JSON has open and closed marked (test: 3,370 open, 3,391 closed; 6,761
together). The hub's Parquet has duplicates removed (test: 6,719) and marks nothing: there a question is closed
if its answer is yes or no. The numbers of the two are not of the same questions, so the report names the files read.
The authors' own release is a pickle, which may run any program when it is opened: it is refused.
"""

from __future__ import annotations

from pathlib import Path

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.evaluate.benchmarks.files import (
    data_files,
    read_objects,
    read_parquet,
    sha256_of,
    subfolder,
    text_of,
)
from llavamed.evaluate.benchmarks.llava_med import (
    NOTEBOOK,
    PAPER,
    Row,
    is_closed,
    published_rows,
    read_questions,
)
from llavamed.evaluate.benchmarks.offered import closed_options, yes_no_options
from llavamed.evaluate.benchmarks.stored import Cell, ParquetImages
from llavamed.records import Question

NAME = "path-vqa"
SPLITS = ("train", "validation", "test")
SPLIT = "test"
ORIGIN = (
    "from the hub's flaviagiammarino/path-vqa (data/<split>-*.parquet, images inside), or LLaVA-Med's <split>.json "
    "with the images in images/"
)
SIGNS = (("data/test-*.parquet", "image question answer"),)

PUBLISHED = published_rows(
    (
        ("LLaVA", 7.74, 63.20, "fine-tuned on the training split, 3 epochs", PAPER),
        ("LLaVA-Med (from LLaVA)", 37.95, 91.21, "fine-tuned on the training split", PAPER),
        ("LLaVA-Med (from Vicuna)", 38.87, 91.65, "fine-tuned on the training split", PAPER),
        ("LLaVA-Med (BioMed CLIP)", 39.60, 91.09, "fine-tuned on the training split", PAPER),
        ("LLaVA", 8.74, 45.65, "zero-shot", NOTEBOOK),
        ("LLaVA-Med stage 1 only", 6.26, 13.51, "zero-shot", NOTEBOOK),
        ("LLaVA-Med 60K-IM, 3 epochs", 12.30, 54.05, "zero-shot", NOTEBOOK),
        ("LLaVA-Med 60K-IM, BioMed CLIP", 11.65, 49.07, "zero-shot", NOTEBOOK),
    )
)


def read(data: Path, split: str) -> Benchmark:
    """The hub's Parquet or LLaVA-Med's JSON, whichever lies in `data`. Raises InputError for a pickle."""
    short = "val" if split == "validation" else split
    names = [f"{folder}{split}-*.parquet" for folder in ("data/", "")] + [f"{split}.json", f"{short}.json"]
    if data.is_dir() and not any(any(data.glob(name)) for name in names):
        pickle = next(data.rglob("*.pkl"), None)
        if pickle is not None:
            raise InputError(f"{pickle}: a pickle, which may run any program when opened and is not read; {ORIGIN}")
    paths = data_files(data, names, NAME, ORIGIN)
    published = PUBLISHED if split == "test" else ()
    if paths[0].suffix == ".json":
        questions = read_questions(read_objects(paths[0]), paths[0], _from_json)
        sha256 = sha256_of(paths[:1], data)
        return Benchmark(NAME, split, questions, subfolder(data, "images"), sha256, published=published)
    rows = [(path, number, row) for path in paths for number, row in enumerate(read_parquet(path, leave=["image"]))]
    questions = tuple(
        _from_parquet(row, path, number, f"{split}-{place}") for place, (path, number, row) in enumerate(rows)
    )
    cells = {f"{split}-{place}": Cell(path, number, "image") for place, (path, number, _) in enumerate(rows)}
    return Benchmark(
        NAME, split, questions, data, sha256_of(paths, data), published=published, embedded=ParquetImages(cells)
    )


def _from_parquet(row: Row, path: Path, number: int, id: str) -> Question:
    answer = text_of(row, "answer", path, number)
    options = yes_no_options(answer, closed=True)
    return Question(id, id, text_of(row, "question", path, number), answer, closed=bool(options), options=options)


def _from_json(row: Row, path: Path, number: int) -> Question:
    """A row without turns: PathVQA's own fields as JSON, closed or open by `answer_type` where there is one."""
    answer = text_of(row, "answer", path, number)
    closed = is_closed(row, path, number) if "answer_type" in row else bool(yes_no_options(answer, closed=True))
    image = text_of(row, "image", path, number)
    asked = text_of(row, "question", path, number)
    return Question(
        id=str(row.get("id", number)),
        image=image if Path(image).suffix else f"{image}.jpg",
        question=asked,
        answer=answer,
        closed=closed,
        options=closed_options(asked, answer, closed),
    )
