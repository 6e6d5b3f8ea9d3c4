"""What VQA-RAD, SLAKE and PathVQA have in common: LLaVA-Med's split into open and closed questions, its own file
format, and the form of its published rows.

The paper's numbers are `run_eval_batch.py`'s: recall of open answers, substring accuracy of closed ones. Its question
files, which people who fine-tuned with its code have, are JSON lists of

    {"id", "image", "answer_type": "OPEN" | "CLOSED",
     "conversations": [{"from": "human", "value": "question\\n<image>"}, {"from": "gpt", "value": "answer"}]}

and in some releases the key is misspelt `conversatons`, which its scorer reads. Both are read here wherever
the benchmark's own file is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import Published
from llavamed.evaluate.benchmarks.files import text_of
from llavamed.evaluate.benchmarks.offered import closed_options
from llavamed.records import Question

PAPER = "Li et al. 2023, fine-tuning table"
NOTEBOOK = "LLaVA-Med v1.0.0, run_eval_metrics.ipynb"

_TURNS = ("conversations", "conversatons")

Row = Mapping[str, Any]


def published_rows(rows: Iterable[tuple[str, float, float, str, str]]) -> tuple[Published, ...]:
    """Rows of (model, open recall, closed accuracy, how, source), both by the official scorer, run_eval_batch.py."""
    return tuple(
        Published(model, {"open_recall_official": recall, "closed_accuracy_official": closed}, how, source)
        for model, recall, closed, how, source in rows
    )


def read_questions(rows: Sequence[Row], path: Path, own: Callable[[Row, Path, int], Question]) -> tuple[Question, ...]:
    """The questions of `rows`, each by `own` or, where it has turns, by LLaVA-Med's format."""
    return tuple(
        (_gold if any(key in row for key in _TURNS) else own)(row, path, number) for number, row in enumerate(rows)
    )


def is_closed(row: Row, path: Path, number: int) -> bool:
    """LLaVA-Med's split of the questions; VQA-RAD has "CLOSED " with a space in two rows."""
    kind = text_of(row, "answer_type", path, number).upper()
    if kind not in {"OPEN", "CLOSED"}:
        raise InputError(f"{path}: row {number} has answer_type {kind!r}; it must be OPEN or CLOSED")
    return kind == "CLOSED"


def _gold(row: Row, path: Path, number: int) -> Question:
    key = next(key for key in _TURNS if key in row)
    turns = row[key]
    spoken = (
        [turn.get("from") for turn in turns]
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
        else []
    )
    if spoken != ["human", "gpt"]:
        raise InputError(f"{path}: row {number}: {key} must be one human turn and the gpt turn that answers it")
    closed = is_closed(row, path, number)
    answer = text_of(turns[1], "value", path, number)
    asked = text_of(turns[0], "value", path, number).replace("<image>", "").strip()
    return Question(
        id=text_of(row, "id", path, number),
        image=text_of(row, "image", path, number),
        question=asked,
        answer=answer,
        closed=closed,
        options=closed_options(asked, answer, closed),
    )
