"""LLaVA-Med's visual chat: 193 questions on 50 figures of PubMed Central that no model was trained on.

143 are of conversations, 50 ask for a detailed description; the figures are of five domains. There is no right
answer to compare with: a judge grades each answer beside that of a text-only GPT-4 which had read the caption.
So `llavamed eval` asks the questions here and writes the answers, and no accuracy is printed; the judging is a step
of its own. LLaVA-Med's rows (overall 36.1 for LLaVA, 50.2 for LLaVA-Med 60K-IM, of 100 for the reference) were given by
gpt-4-0314, which can no longer be asked.
"""

from __future__ import annotations

from pathlib import Path

from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.evaluate.benchmarks.files import data_file, sha256_of, text_of
from llavamed.records import Question, read_jsonl

NAME = "llava-med-chat"
SPLITS = ("test",)
SPLIT = "test"
FILE = "llava_med_eval_qa50_qa.jsonl"
ORIGIN = f"{FILE} of LLaVA-Med's repository (data/eval), with the figures in images/"
SIGNS = ((FILE, '"fig_caption"'),)


def read(data: Path, split: str) -> Benchmark:
    path = data_file(data, [FILE, "*qa50_qa*.jsonl"], NAME, ORIGIN)
    questions = []
    for number, row in enumerate(read_jsonl(path)):
        domain = row.get("domain")
        domains = [name for name, held in domain.items() if held] if isinstance(domain, dict) else []
        questions.append(
            Question(
                id=text_of(row, "question_id", path, number),
                image=text_of(row, "image", path, number),
                question=text_of(row, "text", path, number).replace("<image>", "").strip(),  # where it stands differs
                answer=text_of(row, "gpt4_answer", path, number),
                closed=False,
                groups={"type": str(row.get("type", "")), "domain": ", ".join(domains)},
            )
        )
    return Benchmark(
        NAME,
        split,
        tuple(questions),
        data / "images",
        sha256_of([path], data),
        family="chat",
        max_new_tokens=1024,  # LLaVA-Med's model_vqa.py
    )
