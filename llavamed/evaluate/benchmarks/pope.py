"""POPE (Li et al., EMNLP 2023): does the model see what is not there? "Is there a ... in the image?", half yes,
half no.

Three splits ask about absent objects that are random, popular in COCO, or adversarial (often seen beside what is
there). Positive is yes; the headline is F1. LLaVA reports the mean F1 over the three, which is the split `all`
here.

Each of the three files counts its questions from 1. In `all` the id is `random/1`; answers that count so too are told
apart by their `category` or by the name of their file (`parts`). LLaVA's answer files have ids of their own, which
`llava_pope_test.jsonl` translates if it is in the folder: its n-th question of a category is the n-th of that file. It
is about an older version of POPE, with 2,910 random questions; today's has 3,000 (LLaVA's issue 626).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import LLAVA_15, SHORT_ANSWER, Benchmark, Published
from llavamed.evaluate.benchmarks.files import data_file, sha256_of, text_of
from llavamed.records import Question, read_jsonl

NAME = "pope"
CATEGORIES = ("random", "popular", "adversarial")
SPLITS = (*CATEGORIES, "all")
SPLIT = "all"
ORIGIN = (
    "coco_pope_{random,popular,adversarial}.json of github.com/AoiDragon/POPE (output/coco; one of them does with "
    "--split), COCO's pictures in val2014/"
)
SIGNS = (("coco_pope_*.json", '"label"'), ("coco/coco_pope_*.json", '"label"'))
PUBLISHED = tuple(
    Published(f"LLaVA-1.5-{size}", {"f1_official": 85.9}, "mean F1 of the three", LLAVA_15) for size in ("7B", "13B")
)

_LLAVA = "llava_pope_test.jsonl"
_LLAVA_COMMIT = "e3e39262c85a6a83f26cf5094022a782cb0df58d"  # of POPE, by LLaVA's docs/Evaluation.md


def read(data: Path, split: str) -> Benchmark:
    categories = CATEGORIES if split == "all" else (split,)
    folders = ("", "coco/", "output/coco/")
    there = [name for name in CATEGORIES if any((data / f"{f}coco_pope_{name}.json").is_file() for f in folders)]
    if split == "all" and len(there) in (1, 2):
        raise InputError(
            f"{data}: holds of POPE's three files only {', '.join(there)}; say --split {there[0]}, or fetch the "
            f"others: {ORIGIN}"
        )
    paths = {
        category: data_file(
            data, [f"{folder}coco_pope_{category}.json" for folder in ("", "coco/", "output/coco/")], NAME, ORIGIN
        )
        for category in categories
    }
    questions = tuple(
        question for category, path in paths.items() for question in _questions(path, category, split == "all")
    )
    return Benchmark(
        NAME,
        split,
        questions,
        data / "val2014",
        sha256_of(paths.values(), data),
        prompt=SHORT_ANSWER,
        family="pope",
        max_new_tokens=128,
        published=PUBLISHED if split == "all" else (),
        aliases=_llava_ids(data / _LLAVA, questions) if split == "all" else {},
        parts=CATEGORIES if split == "all" else (),
    )


def _questions(path: Path, category: str, prefix: bool) -> list[Question]:
    questions = []
    for number, row in enumerate(read_jsonl(path)):
        label = text_of(row, "label", path, number).lower()
        if label not in ("yes", "no"):
            raise InputError(f"{path}: row {number} has the label {label!r}; it must be yes or no")
        id = text_of(row, "question_id", path, number)
        questions.append(
            Question(
                id=f"{category}/{id}" if prefix else id,
                image=text_of(row, "image", path, number),
                question=text_of(row, "text", path, number),
                answer=label,
                closed=True,
                options=("yes", "no"),
                groups={"category": category},
            )
        )
    return questions


def _llava_ids(path: Path, questions: tuple[Question, ...]) -> dict[str, str]:
    """LLaVA's id -> ours, where its question file is there. Raises InputError if it asks something else."""
    if not path.is_file():
        return {}
    waiting = {category: [q for q in questions if q.groups["category"] == category] for category in CATEGORIES}
    rows = list(read_jsonl(path))
    asked = Counter(text_of(row, "category", path, number) for number, row in enumerate(rows))
    counts = {category: len(waiting[category]) for category in CATEGORIES}
    told = (
        f"take POPE's files of commit {_LLAVA_COMMIT}, which it is about (2,910 random questions; later ones have "
        f"3,000), or take {_LLAVA} away to go on without LLaVA's ids"
    )
    if asked != counts:
        found, ours = (", ".join(f"{of.get(c, 0):,} {c}" for c in CATEGORIES) for of in (asked, counts))
        raise InputError(f"{path}: has {found} questions, the coco_pope files {ours}; {told}")
    ids: dict[str, str] = {}
    for number, row in enumerate(rows):
        question = waiting[row["category"]].pop(0)
        if not text_of(row, "text", path, number).startswith(question.question):
            raise InputError(f"{path}: row {number} asks another question than the coco_pope files; {told}")
        ids[text_of(row, "question_id", path, number)] = question.id
    return ids
