"""ChartQA (Masry et al., ACL Findings 2022): questions about charts, 1,250 by people and 1,250 made by a model.

The score is relaxed accuracy: a number may be 5 % off. Two incompatible versions of that rule are in use (see
`metrics/chartqa.py`), and both let the year 2019 pass for 2010. The average over the two halves is what people report;
they are equally large, so it is the mean over all questions, and the groups of the report show each half.
"""

from __future__ import annotations

from pathlib import Path

from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.evaluate.benchmarks.files import data_file, read_objects, sha256_of, subfolder, text_of
from llavamed.records import Question

NAME = "chartqa"
SPLITS = ("train", "val", "test")
SPLIT = "test"
ORIGIN = "<split>/<split>_human.json, <split>/<split>_augmented.json and <split>/png/ of github.com/vis-nlp/ChartQA"
SIGNS = (("test/test_human.json", '"imgname"'), ("test_human.json", '"imgname"'))


def read(data: Path, split: str) -> Benchmark:
    questions = []
    paths = []
    for half in ("human", "augmented"):
        path = data_file(data, [f"{split}/{split}_{half}.json", f"{split}_{half}.json"], NAME, ORIGIN)
        paths.append(path)
        for number, row in enumerate(read_objects(path)):
            questions.append(
                Question(
                    id=f"{half}-{number}",
                    image=text_of(row, "imgname", path, number),
                    question=text_of(row, "query", path, number),
                    answer=text_of(row, "label", path, number),
                    closed=False,
                    groups={"half": half},
                )
            )
    return Benchmark(
        NAME,
        split,
        tuple(questions),
        subfolder(data, f"{split}/png", "png"),
        sha256_of(paths, data),
        prompt="{question}\nAnswer the question with a single word.",  # lmms-eval's
        family="chartqa",
        max_new_tokens=128,
    )
