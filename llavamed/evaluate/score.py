"""From predictions to numbers: scores with intervals, and every item that made them.

In: a benchmark and one answer per question, ours or a file written by anyone (JSON lines with
`id`/`question_id`/`qid` and `text`/`prediction`/`answer`). Out: `scores.json`, one entry a metric with
its n and bootstrap interval, and `items.jsonl`, one line a question with what was parsed and credited,
so that every number can be recomputed by hand.

The denominator is the benchmark's, always: an answer that failed is wrong, not absent; missing,
repeated or unknown ids are errors. (LLaVA-Med's script as released dropped wrong answers from it;
that metric is here too, under its own name and with its own n.)

Given the predictions of the controls as well, each metric's gap (real minus control) has an interval
over the same questions. A gap whose interval reaches zero is no evidence that the model looks. Nor is a
request that failed without the picture: such a question is left out of the gap, and where a control has
failures no verdict is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.metrics import llava_med as metrics
from llavamed.evaluate.predict import read_header
from llavamed.evaluate.statistics import Interval, bootstrap, paired
from llavamed.manifest import file_sha256, write_atomic
from llavamed.records import Prediction, Question, read_jsonl

Rows = Iterable[Mapping[str, Any] | Prediction]

_ID_KEYS = ("id", "question_id", "qid")
_TEXT_KEYS = ("text", "prediction", "answer")


@dataclass(frozen=True)
class Metric:
    """`credit` gives 0-1 for one answer, or None to leave the item out (one official bug does)."""

    closed: bool  # over closed questions, else over open ones
    mode: Literal["official", "strict"]
    credit: Callable[[str, Question], float | None]

    @property
    def scorer(self) -> str:
        return metrics.STRICT if self.mode == "strict" else metrics.OFFICIAL


def _pair(function: Callable[[str, str], float | None]) -> Callable[[str, Question], float | None]:
    return lambda text, question: function(text, question.answer)


METRICS: dict[str, Metric] = {
    "closed_accuracy": Metric(True, "strict", lambda text, q: metrics.strict_closed(text, q.answer, q.options)),
    "open_recall": Metric(False, "strict", lambda text, q: metrics.strict_overlap(text, q.answer).recall),
    "open_precision": Metric(False, "strict", lambda text, q: metrics.strict_overlap(text, q.answer).precision),
    "open_f1": Metric(False, "strict", lambda text, q: metrics.strict_overlap(text, q.answer).f1),
    "open_exact": Metric(False, "strict", _pair(metrics.strict_exact)),
    "closed_accuracy_official": Metric(True, "official", _pair(metrics.official_contains)),
    "open_recall_official": Metric(False, "official", lambda text, q: metrics.official_overlap(text, q.answer).recall),
    "open_precision_official": Metric(
        False, "official", lambda text, q: metrics.official_overlap(text, q.answer).precision
    ),
    "open_f1_official": Metric(False, "official", lambda text, q: metrics.official_overlap(text, q.answer).f1),
    "open_exact_official": Metric(False, "official", _pair(metrics.official_exact)),
    "open_accuracy_official": Metric(False, "official", _pair(metrics.official_contains)),
    "closed_recall_official": Metric(True, "official", lambda text, q: metrics.official_overlap(text, q.answer).recall),
    "closed_accuracy_run_eval": Metric(True, "official", _pair(metrics.official_closed_run_eval)),
    "closed_accuracy_run_eval_release": Metric(True, "official", _pair(metrics.official_closed_run_eval_release)),
}


@dataclass(frozen=True)
class Item:
    """One question with its answer; `credits` maps each metric that applies to 0-1 (or None: left out)."""

    question: Question
    prediction: Prediction
    parsed: str | None  # the choice read from a closed answer; None for open ones and parse failures
    credits: Mapping[str, float | None]

    @property
    def credit(self) -> float:
        """The strict headline of this item: closed accuracy or open recall."""
        return self.credits["closed_accuracy" if self.question.closed else "open_recall"] or 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.question.id,
            "image": self.question.image,
            "question": self.question.question,
            "reference": self.question.answer,
            "prediction": self.prediction.text,
            "failed": self.prediction.failed,
            "closed": self.question.closed,
            "options": list(self.question.options),
            "parsed": self.parsed,
            "correct": self.credits["closed_accuracy" if self.question.closed else "open_exact"] == 1.0,
            "groups": self.question.groups,
            "scores": dict(self.credits),
        }


@dataclass(frozen=True)
class Scores:
    """Everything `scores.json` holds, and the items behind it. Values are per cent, 0-100."""

    benchmark: str
    split: str
    n: int
    scores: Mapping[str, Interval]
    controls: Mapping[str, Mapping[str, Interval]]  # control -> metric -> score
    gaps: Mapping[str, Mapping[str, Interval]]  # control -> metric -> real minus control
    provenance: Mapping[str, Any]
    items: Sequence[Item] = field(repr=False)
    control_items: Mapping[str, Sequence[Item]] = field(repr=False)

    @property
    def n_failed(self) -> dict[str, int]:
        """Requests without an answer, by condition: "real" and the controls."""
        conditions = {"real": self.items, **self.control_items}
        return {name: sum(bool(item.prediction.failed) for item in items) for name, items in conditions.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "split": self.split,
            "n": self.n,
            "scores": {name: _entry(name, interval) for name, interval in self.scores.items()},
            "controls": {
                control: {
                    "scores": {name: _entry(name, interval) for name, interval in scores.items()},
                    "gaps": {
                        name: {**_numbers(gap), "uses_image": None if self.n_failed[control] else gap.low > 0}
                        for name, gap in self.gaps[control].items()
                    },
                    "n_failed": self.n_failed[control],
                }
                for control, scores in self.controls.items()
            },
            "provenance": dict(self.provenance),
        }

    def write(self, out: Path) -> None:
        """`out/items.jsonl` and `out/scores.json`."""
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(
            out / "items.jsonl",
            "".join(json.dumps(item.to_json(), ensure_ascii=False) + "\n" for item in self.items),
        )
        write_atomic(out / "scores.json", json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")


def score(
    benchmark: Benchmark,
    predictions: Path | Rows,
    by_order: bool = False,
    bootstrap: int = 1000,
    seed: int = 0,
    controls: Mapping[str, Path | Rows] | None = None,
    out: Path | None = None,
) -> Scores:
    """Score one answer per question; with `out`, also write `scores.json` and `items.jsonl` there.

    `by_order` pairs the n-th row with the n-th question and ignores ids. `controls` maps a control's
    name to the predictions made under it. Raises InputError for missing, repeated or unknown ids.
    """
    items = judge(benchmark, predictions, by_order)
    scores = _summary(items, bootstrap, seed)
    control_items = {name: judge(benchmark, rows, by_order) for name, rows in (controls or {}).items()}
    result = Scores(
        benchmark=benchmark.name,
        split=benchmark.split,
        n=len(items),
        scores=scores,
        controls={name: _summary(rows, bootstrap, seed) for name, rows in control_items.items()},
        gaps={name: _gaps(items, rows, bootstrap, seed) for name, rows in control_items.items()},
        provenance=_provenance(benchmark, predictions, items, bootstrap, seed),
        items=items,
        control_items=control_items,
    )
    if out is not None:
        result.write(out)
    return result


def judge(benchmark: Benchmark, predictions: Path | Rows, by_order: bool = False) -> list[Item]:
    """Every question with its answer and credits, in the benchmark's order."""
    where = str(predictions) if isinstance(predictions, Path) else "predictions"
    rows = read_jsonl(predictions) if isinstance(predictions, Path) else predictions
    answers = [_prediction(row, where, number, by_order) for number, row in enumerate(rows, 1)]
    matched = _by_order(benchmark, answers, where) if by_order else _by_id(benchmark, answers, where)
    return [_item(question, prediction) for question, prediction in zip(benchmark.questions, matched, strict=True)]


def _prediction(row: Mapping[str, Any] | Prediction, where: str, number: int, by_order: bool) -> Prediction:
    if isinstance(row, Prediction):
        return row
    id_key = next((key for key in _ID_KEYS if row.get(key) is not None), None)
    text_key = next((key for key in _TEXT_KEYS if row.get(key) is not None), None)
    if id_key is None and not by_order:
        raise InputError(f"{where}: row {number} has no id ({', '.join(_ID_KEYS)}); add it, or match with --by-order")
    if text_key is None:
        raise InputError(f"{where}: row {number} has no answer; put it under one of {', '.join(_TEXT_KEYS)}")
    return Prediction(
        id=str(row[id_key]) if id_key else str(number),
        text=str(row[text_key]),
        failed=str(row.get("failed") or ""),
        control=str(row.get("control") or "real"),
    )


def _by_order(benchmark: Benchmark, answers: Sequence[Prediction], where: str) -> list[Prediction]:
    if len(answers) != len(benchmark.questions):
        raise InputError(
            f"{where}: {len(answers)} rows, but {benchmark.name} {benchmark.split} has {len(benchmark.questions)} "
            "questions; by order there must be one row for each"
        )
    return list(answers)


def _by_id(benchmark: Benchmark, answers: Sequence[Prediction], where: str) -> list[Prediction]:
    by_id: dict[str, Prediction] = {}
    repeated: list[str] = []
    for answer in answers:
        if answer.id in by_id:
            repeated.append(answer.id)
        by_id[answer.id] = answer
    known = {question.id for question in benchmark.questions}
    problems = {
        "missing": [question.id for question in benchmark.questions if question.id not in by_id],
        "repeated": repeated,
        "unknown": [id for id in by_id if id not in known],
    }
    found = [
        f"{len(ids)} {kind} ids (first: {', '.join(ids[:5])})"
        for kind, ids in problems.items()
        if ids  # each kind is a different mistake, and all are told at once
    ]
    if found:
        raise InputError(
            f"{where}: {'; '.join(found)}; {benchmark.name} {benchmark.split} needs exactly one answer for each of its "
            f"{len(known)} questions (check the split, or match by position with --by-order)"
        )
    return [by_id[question.id] for question in benchmark.questions]


def _item(question: Question, prediction: Prediction) -> Item:
    credits: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        if metric.closed == question.closed:
            credits[name] = 0.0 if prediction.failed else metric.credit(prediction.text, question)
    parsed = None
    if question.closed and not prediction.failed:
        parsed = metrics.parse_closed(prediction.text, question.answer, question.options)
    return Item(question, prediction, parsed, credits)


def _percent(items: Sequence[Item], name: str) -> list[float]:
    values = (item.credits.get(name) for item in items)
    return [100.0 * value for value in values if value is not None]


def _summary(items: Sequence[Item], draws: int, seed: int) -> dict[str, Interval]:
    columns = {name: _percent(items, name) for name in METRICS}
    return {name: bootstrap(values, draws, seed) for name, values in columns.items() if values}


def _gaps(real: Sequence[Item], control: Sequence[Item], draws: int, seed: int) -> dict[str, Interval]:
    """Real minus control per metric, over the questions answered under both; a metric that leaves items out has
    no pairs and no gap."""
    answered = [
        (ours, theirs)
        for ours, theirs in zip(real, control, strict=True)
        if not ours.prediction.failed and not theirs.prediction.failed
    ]
    gaps = {}
    for name in METRICS:
        ours, theirs = (_percent(side, name) for side in ([a for a, _ in answered], [b for _, b in answered]))
        if ours and name != "closed_accuracy_run_eval_release":
            gaps[name] = paired(ours, theirs, draws, seed)
    return gaps


def _provenance(
    benchmark: Benchmark, predictions: Path | Rows, items: Sequence[Item], draws: int, seed: int
) -> dict[str, Any]:
    closed = [item for item in items if item.question.closed]
    unparsed = sum(item.parsed is None for item in closed)
    header = read_header(predictions) if isinstance(predictions, Path) else None
    return {
        "model": header["model"] if header else "unknown (predictions made elsewhere)",
        "model_fingerprint": header["model_fingerprint"] if header else "",
        "data_sha256": dict(benchmark.sha256),
        "prompt": header["prompt"] if header else "unknown",
        "prompt_hash": header["prompt_hash"] if header else "",
        "decoding": header["decoding"] if header else {},
        "predictions_sha256": file_sha256(predictions) if isinstance(predictions, Path) else "",
        "scorers": [metrics.STRICT, metrics.OFFICIAL],
        "bootstrap": {"draws": draws, "seed": seed, "interval": "95 % percentile"},
        "n_closed": len(closed),
        "n_open": len(items) - len(closed),
        "n_failed": sum(bool(item.prediction.failed) for item in items),
        "closed_parse_failure_percent": round(100 * unparsed / len(closed), 4) if closed else None,
        "questions_left_out": dict(benchmark.dropped),
    }


def _numbers(interval: Interval) -> dict[str, float | int]:
    return {
        "value": round(interval.value, 4),
        "n": interval.n,
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
    }


def _entry(name: str, interval: Interval) -> dict[str, Any]:
    return {**_numbers(interval), "mode": METRICS[name].mode, "scorer": METRICS[name].scorer}
