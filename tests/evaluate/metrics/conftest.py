"""Other people's scorers to compare with, run from where they are installed, never copied."""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="session")
def golden(shared_data: Path) -> Callable[[str], Any]:
    """Inputs to an official scorer and its answers, by name."""
    return lambda name: json.loads((shared_data / "golden" / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def definitions() -> Callable[[str, str], Any]:
    """`definitions("lm_eval", "tasks/mmmu/utils.py")`: a harness file's functions and classes.

    The harnesses bring 50 to 70 dependencies each, which the functions of interest do not need: only definitions
    are run, with the standard modules they use. Skips where the package is absent (`pip install --no-deps lm-eval
    lmms-eval` is enough).
    """

    def load(package: str, path: str) -> Any:
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            pytest.skip(f"{package} is not installed: its scorer is the one to compare with")
        source = Path(found.submodule_search_locations[0]) / path
        tree = ast.parse(source.read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        names: dict[str, Any] = {"re": re, "string": string, "random": random.Random(), "np": _Numpy}
        exec(compile(tree, str(source), "exec", dont_inherit=True), names)
        return SimpleNamespace(**names)

    return load


class _Numpy:
    @staticmethod
    def argmax(values: list[int]) -> int:
        return values.index(max(values))


SAMPLE = """
the a none two dont wouldntve couldn't've 10,000 1.5 3.5cm yes no not Answer is so = (A) A B. (C) left kidney liver
x-ray - T2-weighted , .. 1e5 -7 $5 10% 0.05 2019 could be final results it's 's Levi's 1,00 12,345,678 1.2.3 5e e5 C:
D) **B** NO
"""
WORDS = (*SAMPLE.split(), "\n", "\t", " ")
CHARACTERS = "abcde ABC ....,,,--'' \n\t12345 e+$%()[]?!_/\"the yes no answer is so = "


@pytest.fixture
def texts() -> Callable[[int, int], list[str]]:
    """`texts(count, seed)`: answers such as models give and such as break parsers."""

    def make(count: int, seed: int) -> list[str]:
        rng = random.Random(seed)
        return [
            "".join(rng.choices(CHARACTERS, k=rng.randint(0, 30)))
            if rng.random() < 0.3
            else rng.choice((" ", " ", "")).join(rng.choices(WORDS, k=rng.randint(0, 9)))
            for _ in range(count)
        ]

    return make
