"""MMMU-Med: the five Health and Medicine subjects of MMMU, 150 validation questions.

What people report as MMMU (H&M) or MMMU-Med. The same files as MMMU (`mmmu.py`); of the hub's Parquet only these five
subjects need be there, and of a file of answers to all of MMMU only these are scored. Scored alone, the official rule
draws its random letters anew, so where answers are not parsed the number may differ from the medical part of a whole
MMMU run, which `llavamed score mmmu` prints too.
"""

from __future__ import annotations

from pathlib import Path

from llavamed.evaluate.benchmarks import mmmu
from llavamed.evaluate.benchmarks.benchmark import Benchmark

NAME = "mmmu-med"
SPLITS, SPLIT, ORIGIN = mmmu.SPLITS, mmmu.SPLIT, mmmu.ORIGIN
SIGNS = ()  # the files are MMMU's

SUBJECTS = mmmu.DISCIPLINES["Health and Medicine"]


def read(data: Path, split: str) -> Benchmark:
    return mmmu.read_subjects(data, split, NAME, SUBJECTS)
