"""PMC-VQA (Zhang et al. 2023): multiple choice about figures of PubMed Central, questions written by ChatGPT.

`test_clean` are the 2,000 that a person checked; `test` and `test_2` are the whole test sets of version 1 and of
version 2 (figures that are not compound). The files are CSV with the options in four columns, each with its letter
and a colon before it ("A:Diffuse uptake pattern"). In version 1 the right letter is in `Answer_label` and
`Answer` is the text, in version 2 `Answer` is the letter. There are no ids: a question is known by its row, from 0,
or by the column `index` where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.evaluate.benchmarks.files import data_file, read_table, sha256_of, subfolder, text_of
from llavamed.records import Question

NAME = "pmc-vqa"
SPLITS = ("train", "train_2", "test", "test_2", "test_clean")
SPLIT = "test_clean"
ORIGIN = "from the hub's xmcmic/PMC-VQA, the images of images.zip in images/, of images_2.zip in figures/ or images_2/"
SIGNS = tuple((f"{split}.csv", "Figure_path", "Choice A") for split in SPLITS)

_LETTERS = "ABCD"
_PREFIX = re.compile(r"^\s*[A-D]\s*:\s*")


def read(data: Path, split: str) -> Benchmark:
    path = data_file(data, [f"{split}.csv"], NAME, ORIGIN)
    questions = tuple(_question(row, path, number) for number, row in enumerate(read_table(path)))
    folders = ("figures", "images_2", "images") if split.endswith("_2") else ("images",)
    return Benchmark(NAME, split, questions, subfolder(data, *folders), sha256_of([path], data), family="pmc_vqa")


def _question(row: Mapping[str, str], path: Path, number: int) -> Question:
    options = tuple(_PREFIX.sub("", text_of(row, f"Choice {letter}", path, number)) for letter in _LETTERS)
    letter = _letter(row, options, path, number)
    return Question(
        id=row.get("index") or str(number),
        image=text_of(row, "Figure_path", path, number),
        question=text_of(row, "Question", path, number),
        answer=options[_LETTERS.index(letter)],
        closed=True,
        options=options,
        letter=letter,
    )


def _letter(row: Mapping[str, str], options: tuple[str, ...], path: Path, number: int) -> str:
    for key in ("Answer_label", "Answer"):
        label = row.get(key, "").strip()
        if label in tuple(_LETTERS):
            return label
    answer = _PREFIX.sub("", text_of(row, "Answer", path, number))
    if answer not in options:
        raise InputError(f"{path}: row {number}: the answer {answer!r} is none of its options; fetch the file again")
    return _LETTERS[options.index(answer)]
