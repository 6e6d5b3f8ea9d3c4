"""VQA-RAD, SLAKE, PathVQA and the phantom world: closed questions by accuracy, open ones by the words they share."""

from __future__ import annotations

from collections.abc import Callable

from llavamed.evaluate.families.family import Family, Metric, mean
from llavamed.evaluate.metrics import llava_med as metrics
from llavamed.evaluate.metrics.strict import Overlap
from llavamed.records import Question


def _closed(question: Question) -> bool:
    return question.closed


def _open(question: Question) -> bool:
    return not question.closed


def _official(credit: Callable[[str, str], float | None], closed: bool, pairs: bool = True) -> Metric:
    over = _closed if closed else _open
    return mean("official", metrics.OFFICIAL, lambda text, q: credit(text, q.answer), over, pairs)


def _strict(credit: Callable[[str, Question], float], closed: bool) -> Metric:
    return mean("strict", metrics.STRICT, credit, _closed if closed else _open)


def _bleu(*weights: float) -> Metric:
    return _official(lambda text, answer: metrics.official_bleu(text, answer, weights), closed=False)


def _overlap(field: str) -> tuple[Metric, Metric]:
    """Strict and official precision, recall or F1 of open answers."""

    def part(overlap: Overlap) -> float:
        value: float = getattr(overlap, field)
        return value

    return (
        _strict(lambda text, q: part(metrics.strict_overlap(text, q.answer)), closed=False),
        _official(lambda text, answer: part(metrics.official_overlap(text, answer)), closed=False),
    )


_RECALL, _PRECISION, _F1 = _overlap("recall"), _overlap("precision"), _overlap("f1")

LLAVA_MED = Family(
    name="llava_med",
    metrics={
        "closed_accuracy": _strict(lambda text, q: metrics.strict_closed(text, q.answer, q.options), closed=True),
        "open_recall": _RECALL[0],
        "open_precision": _PRECISION[0],
        "open_f1": _F1[0],
        "open_exact": _strict(lambda text, q: metrics.strict_exact(text, q.answer), closed=False),
        "closed_accuracy_official": _official(metrics.official_contains, closed=True),
        "open_recall_official": _RECALL[1],
        "open_precision_official": _PRECISION[1],
        "open_f1_official": _F1[1],
        "open_exact_official": _official(metrics.official_exact, closed=False),
        "open_accuracy_official": _official(metrics.official_contains, closed=False),
        "closed_recall_official": _official(
            lambda text, answer: metrics.official_overlap(text, answer).recall, closed=True
        ),
        "open_bleu_official": _bleu(0.25, 0.25, 0.25, 0.25),
        "open_bleu_1_official": _bleu(1, 0, 0, 0),
        "open_bleu_2_official": _bleu(0, 1, 0, 0),
        "open_bleu_3_official": _bleu(0, 0, 1, 0),
        "closed_accuracy_run_eval": _official(metrics.official_closed_run_eval, closed=True),
        "closed_accuracy_run_eval_release": _official(
            metrics.official_closed_run_eval_release, closed=True, pairs=False
        ),
    },
    headline=(("closed_accuracy", "closed accuracy"), ("open_recall", "open recall"), ("open_f1", "open F1")),
    rules=(
        ("closed accuracy", "closed_accuracy", "closed_accuracy_official"),
        ("open recall", "open_recall", "open_recall_official"),
        ("open precision", "open_precision", "open_precision_official"),
        ("open F1", "open_f1", "open_f1_official"),
        ("open exact match", "open_exact", "open_exact_official"),
        ("closed accuracy, run_eval.py", "closed_accuracy", "closed_accuracy_run_eval"),
        ("closed accuracy, run_eval.py as released", "closed_accuracy", "closed_accuracy_run_eval_release"),
    ),
    why_they_differ=metrics.WHY_THEY_DIFFER,
    measures=(("closed_accuracy", "closed accuracy"), ("open_recall", "open recall")),
    exact="open_exact",
    decisive=("closed_accuracy", "open_recall"),
    parse=lambda text, q: metrics.parse_closed(text, q.answer, q.options),
    is_parsed=_closed,
)
