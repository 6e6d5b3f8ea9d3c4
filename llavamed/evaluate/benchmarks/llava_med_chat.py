"""LLaVA-Med's visual chat: 193 questions on 50 figures of PubMed Central that no model was trained on.

Here the file is one more benchmark, to be asked; `chat_questions.py` reads it, and the judge has from there what more
it must know. 143 are of conversations, 50 ask for a detailed description; the figures are of five domains. There is no
right answer to compare with: a judge grades each answer beside that of a text-only GPT-4 which had read the caption.
So `llavamed eval` asks the questions here and writes the answers, and no accuracy is printed; the judging is a step
of its own. LLaVA-Med's rows (overall 36.1 for LLaVA, 50.2 for LLaVA-Med 60K-IM, of 100 for the reference) were given by
gpt-4-0314, which can no longer be asked.
"""

from __future__ import annotations

from pathlib import Path

from llavamed.errors import InputError
from llavamed.evaluate import chat_questions
from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.evaluate.benchmarks.files import data_file, sha256_of
from llavamed.records import Question

NAME = "llava-med-chat"
SPLITS = ("test",)
SPLIT = "test"
FILE = "llava_med_eval_qa50_qa.jsonl"
ORIGIN = f"{FILE} of LLaVA-Med's repository (data/eval), with the figures in images/"
SIGNS = ((FILE, '"fig_caption"'),)


def read(data: Path, split: str) -> Benchmark:
    path = data_file(data, [FILE, "*qa50_qa*.jsonl"], NAME, ORIGIN)
    asked = chat_questions.read(path)
    if blind := [row.id for row in asked if not row.image]:
        raise InputError(f"{path}: question {blind[0]} names no image; {ORIGIN}")
    return Benchmark(
        NAME,
        split,
        tuple(
            Question(
                row.id, row.image, row.question, row.reference, False, groups={"type": row.kind, "domain": row.domain}
            )
            for row in asked
        ),
        data / "images",
        sha256_of([path], data),
        family="chat",
        max_new_tokens=1024,  # LLaVA-Med's model_vqa.py
    )
