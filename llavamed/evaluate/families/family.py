"""What a family of benchmarks counts: its metrics, both modes of each, as data.

A `Metric` turns answered questions into a number. Most are a mean: each answer has a credit from 0 to 1, and the number
is the mean in per cent. Some are not the mean of anything (F1, MME's score, BLEU of a corpus), but a function of sums:
each question contributes a row of counts (MME's picture with its two questions one, in the first question's place),
the rows are added up, and the number is made of the sums. Both can be drawn again for an interval (`statistics.py`)
without going back to the texts.

A request that failed has the credit 0 and adds what a wrong answer would: it stays in the denominator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llavamed.records import Question

Mode = Literal["official", "strict"]
Array = NDArray[np.float64]


class Answered(NamedTuple):
    """A question and what was answered; `text` is "" where the request failed.

    `row` is its place in a file whose order is part of the official score (MMMU's `output.json`); 0 elsewhere.
    """

    question: Question
    text: str
    failed: bool = False
    row: int = 0


Credits = list[float | None]  # one an item, 0-1; None: the item is not in this metric


@dataclass(frozen=True)
class Total:
    """A number made of sums."""

    rows: Callable[[Sequence[Answered]], Array]  # -> (items, columns)
    value: Callable[[Array], Array]  # the rows' sums (..., columns) -> (...)


@dataclass(frozen=True)
class Metric:
    """Either `credits`, whose mean in per cent is the number, or a `total`; the number is 0 to `most`."""

    mode: Mode
    scorer: str  # id and version, written beside every number
    credits: Callable[[Sequence[Answered]], Credits] | None = None
    total: Total | None = None
    over: Callable[[Question], bool] = lambda _: True  # the questions that a total is over
    most: int = 100
    # False: between two conditions it cannot be compared (which items are in it depends on the answers), or a
    # difference is no merit (the share of answers that are yes)
    pairs: bool = True

    @property
    def unit(self) -> str:
        return "%" if self.most == 100 else f"of {self.most:,}"


@dataclass(frozen=True)
class Family:
    """The metrics of one kind of benchmark and how they are shown.

    `measures` are the credits by which a single answer is called right or wrong, strict: every item has one of them.
    `decisive` are the metrics whose gaps to the controls say whether the model looks.
    """

    name: str
    metrics: Mapping[str, Metric]
    headline: tuple[tuple[str, str], ...] = ()  # what a model is known by: strict metric, its title
    rules: tuple[tuple[str, str, str], ...] = ()  # title, strict metric, official metric
    why_they_differ: str = ""
    measures: tuple[tuple[str, str], ...] = ()  # metric, its title
    exact: str = ""  # where a measure gives credit for a part: the metric that asks for the whole
    decisive: tuple[str, ...] = ()
    parse: Callable[[str, Question], str | None] | None = None  # the choice that was read; None: none could be
    is_parsed: Callable[[Question], bool] = lambda _: True  # whether `parse` is for this question
    also: Callable[[Sequence[Answered]], Mapping[str, Any]] = lambda _: {}  # numbers that no interval can be given for

    @property
    def scorers(self) -> list[str]:
        return sorted({metric.scorer for metric in self.metrics.values()})


def mean(
    mode: Mode,
    scorer: str,
    credit: Callable[[str, Question], float | None],
    over: Callable[[Question], bool] = lambda _: True,
    pairs: bool = True,
) -> Metric:
    """The mean over the questions that `over` picks of what `credit` gives for a text and its question."""

    def credits(items: Sequence[Answered]) -> Credits:
        return [
            None if not over(item.question) else 0.0 if item.failed else credit(item.text, item.question)
            for item in items
        ]

    return Metric(mode, scorer, credits, pairs=pairs)
