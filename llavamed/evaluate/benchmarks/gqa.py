"""GQA (Hudson & Manning, CVPR 2019): questions composed from the scene graphs of pictures, one short answer each.

The field reports accuracy on `testdev_balanced` (12,578 questions). The official evaluator also computes consistency,
validity and plausibility, from files that version 1.2 no longer comes with: like LLaVA, we compute accuracy, over all
and apart over open questions (structural type `query`) and binary ones (all other types).
"""

from __future__ import annotations

from pathlib import Path

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import LLAVA_15, SHORT_ANSWER, Benchmark, Published
from llavamed.evaluate.benchmarks.files import data_file, read_json, sha256_of, text_of
from llavamed.records import Question

NAME = "gqa"
SPLITS = ("train_balanced", "val_balanced", "testdev_balanced", "testdev_all")
SPLIT = "testdev_balanced"
ORIGIN = "questions1.2.zip of cs.stanford.edu/people/dorarad/gqa, the pictures in images/<imageId>.jpg"
SIGNS = (("testdev_balanced_questions.json", '"imageId"'), ("val_balanced_questions.json", '"imageId"'))
PUBLISHED = tuple(
    Published(f"LLaVA-1.5-{size}", {"accuracy_official": value}, "testdev-balanced", LLAVA_15)
    for size, value in (("7B", 62.0), ("13B", 63.3))
)


def read(data: Path, split: str) -> Benchmark:
    path = data_file(data, [f"{split}_questions.json", f"questions1.2/{split}_questions.json"], NAME, ORIGIN)
    body = read_json(path)
    if not isinstance(body, dict) or not all(isinstance(row, dict) for row in body.values()):
        raise InputError(f"{path}: must be a JSON object of questions by id; fetch the file again")
    questions = []
    for number, (id, row) in enumerate(body.items()):
        types = row.get("types")
        questions.append(
            Question(
                id=str(id),
                image=f"{text_of(row, 'imageId', path, number)}.jpg",
                question=text_of(row, "question", path, number),
                answer=text_of(row, "answer", path, number),
                closed=False,
                groups={name: str(types.get(name, "")) for name in ("structural", "semantic")}
                if isinstance(types, dict)
                else {},
            )
        )
    return Benchmark(
        NAME,
        split,
        tuple(questions),
        data / "images",
        sha256_of([path], data),
        prompt=SHORT_ANSWER,
        family="gqa",
        max_new_tokens=128,
        published=PUBLISHED if split == "testdev_balanced" else (),
    )
