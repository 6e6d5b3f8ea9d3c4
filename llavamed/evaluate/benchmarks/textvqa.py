"""TextVQA 0.5.1 (Singh et al., CVPR 2019): questions that are answered by reading the text in the picture.

5,000 validation questions with ten people's answers. LLaVA-1.5's 58.2 was measured with the words that an OCR
system (Rosetta) had found, written into the prompt: `Reference OCR token: ...`. With
`TextVQA_Rosetta_OCR_v0.2_val.json` in the folder we ask that way too; without it the model must read alone, and the
prompt in the report says which it was.

LLaVA's answer files name a question by its picture, so a row is known by that and its text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import LLAVA_15, SHORT_ANSWER, Benchmark, Published
from llavamed.evaluate.benchmarks.files import data_file, objects, read_json, sha256_of, text_of
from llavamed.evaluate.metrics.textvqa import ANNOTATORS
from llavamed.records import Question

NAME = "textvqa"
SPLITS = ("train", "val")
SPLIT = "val"
ORIGIN = "TextVQA_0.5.1_<split>.json of textvqa.org/dataset, the pictures in train_images/"
SIGNS = (("TextVQA_0.5.1_*.json", '"'),)
PUBLISHED = tuple(
    Published(f"LLaVA-1.5-{size}", {"accuracy_official": value}, "with OCR tokens in the prompt", LLAVA_15)
    for size, value in (("7B", 58.2), ("13B", 61.3))
)


def read(data: Path, split: str) -> Benchmark:
    path = data_file(data, [f"TextVQA_0.5.1_{split}.json"], NAME, ORIGIN)
    ocr = data / f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
    words = {str(row.get("image_id")): row.get("ocr_tokens") or [] for row in _rows(ocr)} if ocr.is_file() else None
    questions = []
    for number, row in enumerate(_rows(path)):
        image = text_of(row, "image_id", path, number)
        text = text_of(row, "question", path, number)
        if words is not None:
            text = f"{text}\nReference OCR token: {', '.join(words.get(image, []))}"
        answers = row.get("answers")
        if not isinstance(answers, list) or len(answers) != ANNOTATORS:
            raise InputError(f"{path}: row {number}: {ANNOTATORS} answers are needed; the test split has none")
        questions.append(
            Question(
                id=text_of(row, "question_id", path, number),
                image=f"{image}.jpg",
                question=text,
                answer=str(max(answers, key=answers.count)),
                closed=False,
                answers=tuple(map(str, answers)),
            )
        )
    aliases = {f"{Path(q.image).stem}\n{q.question.splitlines()[0]}".casefold(): q.id for q in questions}
    return Benchmark(
        NAME,
        split,
        tuple(questions),
        data / "train_images",
        sha256_of([path, *([ocr] if words is not None else [])], data),
        prompt=SHORT_ANSWER,
        family="textvqa",
        max_new_tokens=128,
        published=PUBLISHED if split == "val" else (),
        aliases=aliases,
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    body = read_json(path)
    return objects(body.get("data") if isinstance(body, dict) else None, f"{path}: has no list 'data'; fetch it again")
