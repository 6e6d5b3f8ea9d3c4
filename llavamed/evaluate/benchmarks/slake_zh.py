"""The Chinese questions of SLAKE 1.0 (Liu et al., ISBI 2021): 1,033 in the test split, 420 of them closed.

A closed question here is answered by a word and its denial (包含 / 不包含, 有 / 没有), and the word is a part of
its denial: a rule that looks for the reference inside the answer, as LLaVA-Med's does, takes every "no"
for "yes". The pairs below are the option sets of the strict rule. LLaVA-Med did not use these questions;
nothing published is comparable.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llavamed.evaluate.benchmarks import slake
from llavamed.evaluate.benchmarks.benchmark import Benchmark

NAME = "slake-zh"
SPLITS, SPLIT, ORIGIN = slake.SPLITS, slake.SPLIT, slake.ORIGIN
SIGNS = ()  # the files are SLAKE's

_PAIRS = (
    ("包含", "不包含"),
    ("是的", "不是"),
    ("是", "不是"),
    ("是", "否"),
    ("有", "没有"),
    ("可以", "不可以"),
    ("正常", "不正常"),
    ("存在", "不存在"),
    ("健康", "不健康"),
)


def read(data: Path, split: str) -> Benchmark:
    benchmark = slake.read_language(data, split, NAME, "zh")
    questions = tuple(
        replace(question, options=next((pair for pair in _PAIRS if question.answer in pair), ()))
        if question.closed
        else question
        for question in benchmark.questions
    )
    return replace(benchmark, questions=questions)
