"""VQA v2 (Goyal et al., CVPR 2017): questions on COCO pictures, each answered by ten people.

Scored here is the validation split (214,354 questions): the answers of test-dev, on which LLaVA-1.5's 78.5 was
measured, are on a server. The official files are two: the questions, and the annotations with the ten answers and the
type of each question, matched by `question_id`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import SHORT_ANSWER, Benchmark
from llavamed.evaluate.benchmarks.files import data_file, objects, read_json, sha256_of, text_of
from llavamed.records import Question

NAME = "vqa-v2"
SPLITS = ("train", "val")
SPLIT = "val"
ORIGIN = "the questions and annotations of visualqa.org/download.html, with COCO's pictures in <split>2014/"
SIGNS = (("v2_OpenEnded_mscoco_*_questions.json", '"question'), ("v2_mscoco_*_annotations.json", '"'))


def read(data: Path, split: str) -> Benchmark:
    asked = data_file(data, [f"v2_OpenEnded_mscoco_{split}2014_questions.json"], NAME, ORIGIN)
    answered = data_file(data, [f"v2_mscoco_{split}2014_annotations.json"], NAME, ORIGIN)
    annotations = {row.get("question_id"): row for row in _list(answered, "annotations")}
    questions = []
    for number, row in enumerate(_list(asked, "questions")):
        annotation = annotations.get(row.get("question_id"))
        if annotation is None:
            raise InputError(f"{answered}: no annotation of question {row.get('question_id')!r}; is it the same split?")
        questions.append(_question(row, annotation, asked, number, f"COCO_{split}2014"))
    return Benchmark(
        NAME,
        split,
        tuple(questions),
        data / f"{split}2014",
        sha256_of([asked, answered], data),
        prompt=SHORT_ANSWER,
        family="vqa_v2",
        max_new_tokens=128,
    )


def _list(path: Path, key: str) -> list[dict[str, Any]]:
    body = read_json(path)
    return objects(body.get(key) if isinstance(body, dict) else None, f"{path}: has no list {key!r}; fetch it again")


def _question(row: Mapping[str, Any], annotation: Mapping[str, Any], path: Path, number: int, stem: str) -> Question:
    answers = annotation.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) and "answer" in answer for answer in answers):
        raise InputError(f"{path}: question {row['question_id']} has no answers in the annotations; fetch them again")
    return Question(
        id=str(row["question_id"]),
        image=f"{stem}_{int(row['image_id']):012d}.jpg",
        question=text_of(row, "question", path, number),
        answer=str(annotation.get("multiple_choice_answer", "")),
        closed=False,
        groups={name: str(annotation.get(name, "")) for name in ("answer_type", "question_type")},
        answers=tuple(str(answer["answer"]) for answer in answers),
    )
