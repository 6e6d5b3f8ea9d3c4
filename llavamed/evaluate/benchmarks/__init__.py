"""Benchmarks by name: `load("vqa-rad", Path("data/vqa_rad"))` gives the questions and how to ask them.

One module a benchmark says where its files come from, how they lie, how its questions are asked and what others
got; nothing is downloaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks import (
    chartqa,
    gmai_mmbench,
    gqa,
    llava_med_chat,
    medmcqa,
    medmcqa_likelihood,
    mimic_cxr,
    mme,
    mmmu,
    mmmu_med,
    omnimed_vqa,
    path_vqa,
    phantom,
    pmc_vqa,
    pope,
    slake,
    slake_zh,
    textvqa,
    vqa_rad,
    vqa_v2,
)
from llavamed.evaluate.benchmarks.benchmark import Benchmark, Published
from llavamed.evaluate.benchmarks.overlap import overlap
from llavamed.evaluate.benchmarks.recognise import looks_like

__all__ = ["NAMES", "Benchmark", "Published", "load", "load_all", "overlap", "table"]

_MODULES = (
    vqa_rad,
    slake,
    slake_zh,
    path_vqa,
    llava_med_chat,
    pmc_vqa,
    omnimed_vqa,
    gmai_mmbench,
    mmmu,
    mmmu_med,
    medmcqa,
    medmcqa_likelihood,
    mimic_cxr,
    vqa_v2,
    gqa,
    pope,
    mme,
    textvqa,
    chartqa,
    phantom,
)
_READERS = {module.NAME: module for module in _MODULES}
NAMES = tuple(_READERS)


def load(name: str, data: Path, split: str | None = None) -> Benchmark:
    """The benchmark in folder `data`; without `split` the one that the field reports.

    Raises InputError for an unknown name or split (with the nearest), or a missing or foreign file (with what is
    expected there, where it comes from, and which benchmark the folder looks like).
    """
    reader = _READERS.get(name.lower().replace("_", "-"))
    if reader is None:
        raise InputError(f"benchmark {name!r}: unknown{_nearest(name, NAMES)}; give one of {', '.join(NAMES)}")
    split = split or reader.SPLIT
    if split not in reader.SPLITS:
        known = ", ".join(reader.SPLITS)
        raise InputError(f"{reader.NAME}: no split {split!r}{_nearest(split, reader.SPLITS)}; give one of {known}")
    try:
        return reader.read(Path(data), split)
    except InputError as error:
        found = looks_like(Path(data), _MODULES)
        if not found or reader.NAME in found:
            raise
        raise InputError(f"{error} (the folder looks like {' or '.join(found)})") from None


def load_all(name: str, data: Path) -> list[Benchmark]:
    """Every split whose files are in the folder. Raises InputError if none is, or for an unknown name."""
    first = load(name, data)
    found = [first]
    for split in dict.fromkeys(_READERS[first.name].SPLITS):
        if split != first.split:
            with suppress(InputError):  # not everybody has all of them; the caller says which were there
                found.append(load(name, data, split))
    return found


def table() -> list[list[str]]:
    """Name, splits with the default first, and origin of each."""
    return [
        [reader.NAME, ", ".join(dict.fromkeys((reader.SPLIT, *reader.SPLITS))), reader.ORIGIN] for reader in _MODULES
    ]


def _nearest(word: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(word.lower().replace("_", "-"), valid, n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else ""
