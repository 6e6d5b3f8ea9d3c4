"""MMMU-Med: the five Health and Medicine subjects of MMMU, 150 validation questions.

What people report as MMMU (H&M) or MMMU-Med. The same files as MMMU (`mmmu.py`); of the hub's Parquet only these five
subjects need be there, and of a file of answers to all of MMMU only these are scored. Scored alone, the official rule
draws its random letters anew, so where answers are not parsed the number may differ from the medical part of a whole
MMMU run, which `llavamed score mmmu` prints too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llavamed.evaluate.benchmarks import mmmu
from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.evaluate.metrics.mmmu import MEDICAL

NAME = "mmmu-med"
SPLITS, SPLIT, ORIGIN = mmmu.SPLITS, mmmu.SPLIT, mmmu.ORIGIN
SIGNS = ()  # the files are MMMU's


def read(data: Path, split: str) -> Benchmark:
    return replace(mmmu.read_subjects(data, split, NAME, MEDICAL), family="mmmu_med")
