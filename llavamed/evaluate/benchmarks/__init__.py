"""Benchmarks by name: `load("vqa-rad", Path("data/vqa_rad"))` gives the questions and how to ask them."""

from __future__ import annotations

import difflib
from pathlib import Path

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks import phantom, slake, vqa_rad
from llavamed.evaluate.benchmarks.benchmark import Benchmark, Published
from llavamed.evaluate.benchmarks.overlap import overlap

__all__ = ["NAMES", "Benchmark", "Published", "load", "overlap"]

_READERS = {module.NAME: module for module in (vqa_rad, slake, phantom)}
NAMES = tuple(_READERS)


def load(name: str, data: Path, split: str = "test") -> Benchmark:
    """The benchmark in folder `data`. Raises InputError for an unknown name or split (with the nearest), or a
    missing file (with what is expected there and where it comes from)."""
    reader = _READERS.get(name.lower().replace("_", "-"))
    if reader is None:
        raise InputError(f"benchmark {name!r}: unknown{_nearest(name, NAMES)}; give one of {', '.join(NAMES)}")
    if split not in reader.SPLITS:
        known = ", ".join(reader.SPLITS)
        raise InputError(f"{reader.NAME}: no split {split!r}{_nearest(split, reader.SPLITS)}; give one of {known}")
    return reader.read(Path(data), split)


def _nearest(word: str, valid: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word.lower().replace("_", "-"), valid, n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else ""
