"""GMAI-MMBench (Chen et al., NeurIPS 2024): multiple choice from 284 medical datasets in 38 modalities.

The files are VLMEvalKit's TSV: a row has the picture as base64, up to five options in columns A to E (empty where not
offered), the right letter in `answer`, and columns of groups. The validation file is one (md5
254bd581627866f1c499d3d6b4422324 as VLMEvalKit has it); the test, which has no public answers, is not read. A
row's picture may be the index of another row that has it.

Published: GPT-4o 53.96 on average over the clinical tasks of the test split, by the paper's abstract.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.evaluate.benchmarks.files import data_file, sha256_of, text_of
from llavamed.evaluate.benchmarks.stored import read_tsv
from llavamed.records import Question

NAME = "gmai-mmbench"
SPLITS = ("validation",)
SPLIT = "validation"
ORIGIN = "GMAI-MMBench_VAL.tsv from the hub's OpenGVLab/GMAI-MMBench (or VLMEval/GMAI-MMBench)"
SIGNS = (("GMAI*VAL*.tsv", "index", "image"),)

_GROUPS = ("clinical vqa task", "department", "perceptual granularity", "modality", "category", "l2-category")
_EMPTY = {"", "nan"}  # how pandas writes an empty cell


def read(data: Path, split: str) -> Benchmark:
    path = data_file(data, ["GMAI*VAL*.tsv"], NAME, ORIGIN)
    rows, images = read_tsv(path)
    questions = tuple(_question(row, path, number) for number, row in enumerate(rows, 1))
    return Benchmark(NAME, split, questions, data, sha256_of([path], data), family="gmai_mmbench", embedded=images)


def _question(row: Mapping[str, str], path: Path, number: int) -> Question:
    cells = [row.get(letter, "").strip() for letter in ascii_uppercase[:5]]
    options = tuple("" if cell.casefold() in _EMPTY else cell for cell in cells)
    while options and not options[-1]:
        options = options[:-1]
    letter = text_of(row, "answer", path, number).upper()
    if letter not in tuple(ascii_uppercase[: len(options)]) or not options[ascii_uppercase.index(letter)]:
        raise InputError(
            f"{path}: row {number}: the answer {letter!r} is no option of it; is this the file with answers?"
        )
    groups = {name.casefold(): value.strip() for name, value in row.items()}
    return Question(
        id=row["index"].strip(),
        image=row["index"].strip(),
        question=text_of(row, "question", path, number),
        answer=options[ascii_uppercase.index(letter)],
        closed=True,
        options=options,
        letter=letter,
        groups={name: groups[name] for name in _GROUPS if groups.get(name, "") not in _EMPTY},
    )
