"""POPE and MME: yes or no, with totals that are not means.

POPE's F1 is of the class yes, and over several splits the mean of each split's. MME's score of a subtask is its
accuracy plus the share of pictures with both questions right, and perception and cognition add subtasks up, so the
unit that is drawn again for an interval is a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llavamed.evaluate.families.family import Answered, Array, Family, Metric, Mode, Total, mean
from llavamed.evaluate.metrics import mme, pope
from llavamed.records import Question

# ---------------------------------------------------------------- POPE

_CATEGORIES = ("random", "popular", "adversarial")
_HIT, _SAID, _THERE, _ASKED = _COLUMNS = range(4)  # yes and right; answered yes; labelled yes; all

Parse = Callable[[str], str | None]
Accuracy = Callable[[str, str], float]


def _pope_rows(parse: Parse) -> Callable[[Sequence[Answered]], Array]:
    """Four counts an answer, in the columns of its category. A failed request is the wrong answer."""

    def rows(items: Sequence[Answered]) -> Array:
        table = np.zeros((len(items), len(_CATEGORIES), len(_COLUMNS)))
        for row, item in zip(table, items, strict=True):
            there = item.question.answer == "yes"
            said = parse(item.text)
            if item.failed:
                said = "no" if there else "yes"
            yes = said == "yes"
            row[_CATEGORIES.index(item.question.groups["category"])] = (yes and there, yes, there, 1)
        return table.reshape(len(items), -1)

    return rows


def _over_categories(ratio: Callable[[Array], tuple[Array, Array]]) -> Callable[[Array], Array]:
    """100 times the mean over the categories present of `ratio`'s (above, below) the line; a ratio of nothing is 0."""

    def value(sums: Array) -> Array:
        counts = sums.reshape(*sums.shape[:-1], len(_CATEGORIES), len(_COLUMNS))
        above, below = ratio(counts)
        ratios = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        present = counts[..., _ASKED] > 0
        result: Array = 100 * (ratios * present).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
        return result

    return value


_POPE_RATIOS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "f1": lambda c: (2 * c[..., _HIT], c[..., _SAID] + c[..., _THERE]),
    "precision": lambda c: (c[..., _HIT], c[..., _SAID]),
    "recall": lambda c: (c[..., _HIT], c[..., _THERE]),
    "yes_ratio": lambda c: (c[..., _SAID], c[..., _ASKED]),
}


def _pope(suffix: str, mode: Mode, scorer: str, parse: Parse, accuracy: Accuracy) -> dict[str, Metric]:
    rows = _pope_rows(parse)
    totals = {
        f"{name}{suffix}": Metric(mode, scorer, total=Total(rows, _over_categories(ratio)), pairs=name != "yes_ratio")
        for name, ratio in _POPE_RATIOS.items()
    }
    return {f"accuracy{suffix}": mean(mode, scorer, lambda text, q: accuracy(text, q.answer)), **totals}


POPE = Family(
    name="pope",
    metrics={
        **_pope("", "strict", pope.STRICT, pope.parse_strict, pope.strict_accuracy),
        **_pope("_official", "official", pope.OFFICIAL, pope.parse_official, pope.official_accuracy),
    },
    headline=(("f1", "F1"), ("accuracy", "accuracy"), ("yes_ratio", "share of yes")),
    rules=tuple((name.replace("_", " "), name, f"{name}_official") for name in ("accuracy", *_POPE_RATIOS)),
    why_they_differ=pope.WHY_THEY_DIFFER,
    measures=(("accuracy", "accuracy"),),
    decisive=("accuracy",),
    parse=lambda text, _: pope.parse_strict(text),
)

# ---------------------------------------------------------------- MME

_MME_SCORES = {
    "perception": mme.PERCEPTION,
    "cognition": mme.COGNITION,
    **{subtask: (subtask,) for subtask in (*mme.PERCEPTION, *mme.COGNITION)},
}


def _mme_rows(accuracy: Accuracy, subtasks: Sequence[str]) -> Callable[[Sequence[Answered]], Array]:
    """A picture's questions, right ones, itself, and itself if both are right, in the columns of its subtask; in the
    row of its first question. The other row is zero."""

    def rows(items: Sequence[Answered]) -> Array:
        pictures: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for place, item in enumerate(items):
            right = 0.0 if item.failed else accuracy(item.text, item.question.answer)
            pictures.setdefault((item.question.groups["subtask"], item.question.image), []).append((place, right))
        table = np.zeros((len(items), len(subtasks), 4))
        for (subtask, _), found in pictures.items():
            right_ones = [right for _, right in found]
            place = found[0][0]
            table[place, subtasks.index(subtask)] = (len(found), sum(right_ones), 1, all(right_ones))
        return table.reshape(len(items), -1)

    return rows


def _mme_score(sums: Array) -> Array:
    """The sum over subtasks of accuracy and accuracy+, in per cent."""
    counts = sums.reshape(*sums.shape[:-1], -1, 4)
    accuracy = counts[..., 1] / np.maximum(counts[..., 0], 1)
    both = counts[..., 3] / np.maximum(counts[..., 2], 1)
    result: Array = 100 * (accuracy + both).sum(axis=-1)
    return result


def _of(subtasks: Sequence[str]) -> Callable[[Question], bool]:
    return lambda question: question.groups["subtask"] in subtasks


def _mme(suffix: str, mode: Mode, scorer: str, accuracy: Accuracy) -> dict[str, Metric]:
    scores = {
        f"{name}{suffix}": Metric(
            mode,
            scorer,
            total=Total(_mme_rows(accuracy, subtasks), _mme_score),
            over=_of(subtasks),
            most=200 * len(subtasks),
        )
        for name, subtasks in _MME_SCORES.items()
    }
    return {f"accuracy{suffix}": mean(mode, scorer, lambda text, q: accuracy(text, q.answer)), **scores}


MME = Family(
    name="mme",
    metrics={
        **_mme("", "strict", mme.STRICT, mme.strict_accuracy),
        **_mme("_official", "official", mme.OFFICIAL, mme.official_accuracy),
    },
    headline=(("perception", "perception"), ("cognition", "cognition"), ("accuracy", "accuracy")),
    rules=tuple((name.replace("_", " "), name, f"{name}_official") for name in ("accuracy", *_MME_SCORES)),
    why_they_differ=mme.WHY_THEY_DIFFER,
    measures=(("accuracy", "accuracy"),),
    decisive=("accuracy",),
    parse=lambda text, _: mme.parse_strict(text),
)
