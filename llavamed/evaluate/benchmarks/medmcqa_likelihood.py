"""MedMCQA by likelihood: the letter that the model holds likeliest, as lm-evaluation-harness counts.

The same questions in the same prompt as `medmcqa.py`, which lets the model answer in words; here it cannot say
anything but one of the letters, so no answer is unreadable, and a model that knows and chats is not worse than one
that knows and is brief. The harness asks base models without a chat template; here the question is a user's turn, as
everywhere. It needs the model in this process: an endpoint does not give the likelihoods of what it did not say.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llavamed.evaluate.benchmarks import medmcqa
from llavamed.evaluate.benchmarks.benchmark import Benchmark

NAME = "medmcqa-likelihood"
SPLITS, SPLIT, ORIGIN = medmcqa.SPLITS, medmcqa.SPLIT, medmcqa.ORIGIN
SIGNS = ()  # the files are MedMCQA's


def read(data: Path, split: str) -> Benchmark:
    asked = medmcqa.read(data, split)
    return replace(asked, name=NAME, family="medmcqa_likelihood", max_new_tokens=1, by_likelihood=True)
