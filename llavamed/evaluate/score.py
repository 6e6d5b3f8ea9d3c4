"""From predictions to numbers: scores with intervals, and every item that made them.

In: a benchmark and one answer per question, ours or a file written by anyone (`predictions.py`). Out: `scores.json`,
one entry a metric with its n and bootstrap interval, and `items.jsonl`, one line a question with what was parsed and
credited, so that every number can be recomputed by hand. Which metrics there are is the benchmark's family's matter
(`families/`): both modes of each, always.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llavamed.evaluate import controls as conditions
from llavamed.evaluate import predictions as files
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.families import FAMILIES, Answered, Family, Metric
from llavamed.evaluate.predict import read_header
from llavamed.evaluate.predictions import Rows
from llavamed.evaluate.statistics import FEWEST, Interval, bootstrap, paired
from llavamed.manifest import write_atomic
from llavamed.records import Prediction, Question

MAX_ANSWER = 100_000  # characters of an answer that are scored; longer ones are cut, and counted


@dataclass(frozen=True)
class Item:
    """One question with its answer; `credits` maps each metric that it is in to 0-1."""

    question: Question
    prediction: Prediction
    parsed: str | None  # the choice that was read; None for parse failures and where there is nothing to parse
    credits: Mapping[str, float]
    family: Family
    cut: bool = False  # the answer was longer than MAX_ANSWER

    @property
    def drawn_with(self) -> str:
        """What is drawn for an interval: the image with all its questions, or the question where it has none."""
        return self.question.image or self.question.id

    @property
    def measure(self) -> str:
        """The credit by which this answer is called right or wrong; "" where nothing is counted."""
        return next((name for name, _ in self.family.measures if name in self.credits), "")

    @property
    def credit(self) -> float:
        """The strict headline of this item: closed accuracy, open recall, ..."""
        return self.credits.get(self.measure, 0.0)

    @property
    def correct(self) -> bool:
        """Right in full, where the measure gives credit for a part too."""
        return self.credits.get(self.family.exact, self.credit) == 1.0

    def to_json(self) -> dict[str, Any]:
        question = self.question
        return {
            "id": question.id,
            "image": question.image,
            **({"more_images": list(question.more_images)} if question.more_images else {}),
            "question": question.question,
            "reference": question.answer,
            **({"references": list(question.answers)} if question.answers else {}),
            "prediction": self.prediction.text,
            "failed": self.prediction.failed,
            "closed": question.closed,
            "options": list(question.options),
            **({"letter": question.letter} if question.letter else {}),
            "parsed": self.parsed,
            "correct": self.correct,
            "groups": question.groups,
            "scores": dict(self.credits),
        }


@dataclass(frozen=True)
class Rotated:
    """Multiple choice with the options in every order, over the questions whose options can be moved and of which no
    request failed; without any such question `scores` and `gaps` are empty.

    `accuracy` is the mean over orders, the file's own among them, `consistency` the share of questions for which every
    order gets the same option; the gap is the file's order less the mean over orders.
    """

    scores: Mapping[str, Interval]
    gaps: Mapping[str, Interval]
    n_failed: int
    scorer: str

    def to_json(self) -> dict[str, Any]:
        return {
            "scores": {
                name: {**_numbers(interval), "mode": "strict", "scorer": self.scorer}
                for name, interval in self.scores.items()
            },
            "gaps": {name: _numbers(gap) for name, gap in self.gaps.items()},
            "n_failed": self.n_failed,
        }


@dataclass(frozen=True)
class Scores:
    """Everything `scores.json` holds, and the items behind it. Values are per cent, 0-100, but for those that
    `provenance["at_most"]` names with what they can be at most."""

    benchmark: str
    split: str
    n: int
    family: Family
    scores: Mapping[str, Interval]
    controls: Mapping[str, Mapping[str, Interval]]  # control of the image -> metric -> score
    gaps: Mapping[str, Mapping[str, Interval]]  # control of the image -> metric -> real minus control
    rotated: Rotated | None
    provenance: Mapping[str, Any]
    items: Sequence[Item] = field(repr=False)
    control_items: Mapping[str, Sequence[Item]] = field(repr=False)

    @property
    def n_failed(self) -> dict[str, int]:
        """Requests without an answer, by condition: "real" and the controls."""
        shown = {"real": self.items, **self.control_items}
        counts = {name: sum(bool(item.prediction.failed) for item in items) for name, items in shown.items()}
        return counts if self.rotated is None else {**counts, "rotated": self.rotated.n_failed}

    def to_json(self) -> dict[str, Any]:
        failed = self.n_failed
        body = {
            control: {
                "scores": {name: self._entry(name, interval) for name, interval in scores.items()},
                "gaps": {
                    name: {
                        **_numbers(gap),
                        "uses_image": None if failed[control] or gap.images < FEWEST else gap.low > 0,
                    }
                    for name, gap in self.gaps[control].items()
                },
                "n_failed": failed[control],
            }
            for control, scores in self.controls.items()
        }
        return {
            "benchmark": self.benchmark,
            "split": self.split,
            "n": self.n,
            "scores": {name: self._entry(name, interval) for name, interval in self.scores.items()},
            "controls": {**body, **({"rotated": self.rotated.to_json()} if self.rotated else {})},
            "provenance": dict(self.provenance),
        }

    def _entry(self, name: str, interval: Interval) -> dict[str, Any]:
        metric = self.family.metrics[name]
        return {**_numbers(interval), "mode": metric.mode, "scorer": metric.scorer}

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
    family = FAMILIES[benchmark.family]
    items = judge(benchmark, predictions, by_order)
    shown = {name: rows for name, rows in (controls or {}).items() if name != "rotated"}
    of_image = {name: judge(benchmark, rows, by_order, name) for name, rows in shown.items()}
    turned = (controls or {}).get("rotated")
    also = family.also(_answered([item.question for item in items], [item.prediction for item in items]))
    scores = _summary(family, items, bootstrap, seed)
    result = Scores(
        benchmark=benchmark.name,
        split=benchmark.split,
        n=len(items),
        family=family,
        scores=scores,
        controls={name: _summary(family, rows, bootstrap, seed) for name, rows in of_image.items()},
        gaps={name: _gaps(family, items, rows, bootstrap, seed) for name, rows in of_image.items()},
        rotated=None if turned is None else _rotated(benchmark, family, items, turned, bootstrap, seed),
        provenance={
            **_provenance(benchmark, family, predictions, items, bootstrap, seed),
            "too_few_images": [name for name, interval in scores.items() if interval.images < FEWEST],
            **also,
        },
        items=items,
        control_items=of_image,
    )
    if out is not None:
        result.write(out)
    return result


def judge(benchmark: Benchmark, predictions: Path | Rows, by_order: bool = False, control: str = "real") -> list[Item]:
    """Every question with its answer, made under `control`, and credits, in the benchmark's order."""
    where = str(predictions) if isinstance(predictions, Path) else "predictions"
    rows = files.read(predictions) if isinstance(predictions, Path) else list(predictions)
    benchmark = files.with_options(benchmark, rows, where)
    given = files.match(benchmark, rows, where, by_order, control)
    kept = [replace(answer, text=answer.text[:MAX_ANSWER]) for answer in given]
    family = FAMILIES[benchmark.family]
    places = _places(rows)
    answered = [each._replace(row=places.get(each.question.id, 0)) for each in _answered(benchmark.questions, kept)]
    columns = {name: metric.credits(answered) for name, metric in family.metrics.items() if metric.credits}
    items = []
    for place, (question, prediction) in enumerate(zip(benchmark.questions, kept, strict=True)):
        found = {name: credit for name, column in columns.items() if (credit := column[place]) is not None}
        items.append(
            Item(
                question,
                prediction,
                _parsed(family, question, prediction),
                found,
                family,
                cut=len(given[place].text) > MAX_ANSWER,
            )
        )
    return items


def _places(rows: Sequence[Mapping[str, Any] | Prediction]) -> dict[str, int]:
    """The rows by id of MMMU's `output.json`, known by the kind of question in each: its order is part of the score."""
    return {
        str(row.get("id")): place
        for place, row in enumerate(rows)
        if not isinstance(row, Prediction) and "question_type" in row
    }


def _answered(questions: Sequence[Question], predictions: Sequence[Prediction]) -> list[Answered]:
    pairs = zip(questions, predictions, strict=True)
    return [Answered(q, "" if p.failed else p.text, bool(p.failed)) for q, p in pairs]


def _parsed(family: Family, question: Question, prediction: Prediction) -> str | None:
    if family.parse is None or prediction.failed or not family.is_parsed(question):
        return None
    return family.parse(prediction.text, question)


def _rows(metric: Metric, items: Sequence[Item]) -> Any:
    assert metric.total is not None
    return metric.total.rows(_answered([item.question for item in items], [item.prediction for item in items]))


def _summary(family: Family, items: Sequence[Item], draws: int, seed: int) -> dict[str, Interval]:
    found = {}
    for name, metric in family.metrics.items():
        if metric.total is not None:
            chosen = [item for item in items if metric.over(item.question)]
            values = _rows(metric, chosen) if chosen else []
        else:
            chosen = [item for item in items if name in item.credits]
            values = [100.0 * item.credits[name] for item in chosen]
        if chosen:
            of = metric.total.value if metric.total else None
            found[name] = bootstrap(values, draws, seed, of, [item.drawn_with for item in chosen], metric.most)
    return found


def _gaps(family: Family, real: Sequence[Item], control: Sequence[Item], draws: int, seed: int) -> dict[str, Interval]:
    """Real minus control per metric, over the questions answered under both; a metric without `pairs` has no gap. Of
    what is counted together (MME's pictures) all must be answered."""
    pairs = list(zip(real, control, strict=True))
    answered = [pair for pair in pairs if not any(item.prediction.failed for item in pair)]
    torn = {pair[0].question.image for pair in pairs if any(item.prediction.failed for item in pair)}
    gaps = {}
    for name, metric in family.metrics.items():
        if not metric.pairs:
            continue
        if metric.total is not None:
            chosen = [pair for pair in answered if metric.over(pair[0].question) and pair[0].question.image not in torn]
            ours, theirs = (_rows(metric, [pair[side] for pair in chosen]) if chosen else [] for side in (0, 1))
        else:
            chosen = [pair for pair in answered if name in pair[0].credits]
            ours, theirs = ([100.0 * pair[side].credits[name] for pair in chosen] for side in (0, 1))
        if chosen:
            of = metric.total.value if metric.total else None
            gaps[name] = paired(ours, theirs, draws, seed, of, [item.drawn_with for item, _ in chosen], metric.most)
    return gaps


def _rotated(
    benchmark: Benchmark, family: Family, items: Sequence[Item], turned: Path | Rows, draws: int, seed: int
) -> Rotated:
    measure = family.measures[0][0]
    orders: dict[str, list[tuple[int, Item]]] = {}
    for item in judge(conditions.asked(benchmark, "rotated"), turned, control="rotated"):
        id, _, shift = item.question.id.rpartition("@")
        orders.setdefault(id, []).append((int(shift), item))
    accuracies, own, agree, images = [], [], [], []
    failed = 0
    for item in items:
        others = orders.get(item.question.id, [])
        lost = sum(bool(other.prediction.failed) for _, other in others)
        failed += lost
        if not others or lost or item.prediction.failed:
            continue
        credits = [item.credit, *(other.credit for _, other in others)]
        named = item.question.lettered
        read = {named.get(conditions.unturned(item.question, shift, other.parsed) or "") for shift, other in others}
        read.add(named.get(item.parsed or ""))  # by its text: two options may be the same
        images.append(item.drawn_with)
        accuracies.append(100 * sum(credits) / len(credits))
        own.append(100 * item.credit)
        agree.append(100.0 * (len(read) == 1 and None not in read))
    scorer = family.metrics[measure].scorer
    if not accuracies:
        return Rotated({}, {}, failed, scorer)
    scores = {
        name: bootstrap(values, draws, seed, images=images)
        for name, values in (("accuracy", accuracies), ("consistency", agree))
    }
    return Rotated(scores, {"accuracy": paired(own, accuracies, draws, seed, images=images)}, failed, scorer)


def _provenance(
    benchmark: Benchmark, family: Family, predictions: Path | Rows, items: Sequence[Item], draws: int, seed: int
) -> dict[str, Any]:
    closed = sum(item.question.closed for item in items)
    to_parse = [item for item in items if family.parse is not None and family.is_parsed(item.question)]
    unparsed = sum(item.parsed is None for item in to_parse)
    header = read_header(predictions) if isinstance(predictions, Path) else None
    return {
        "model": header["model"] if header else "unknown (predictions made elsewhere)",
        "model_fingerprint": header["model_fingerprint"] if header else "",
        "data_sha256": dict(benchmark.sha256),
        "prompt": header["prompt"] if header else "unknown",
        "prompt_hash": header["prompt_hash"] if header else "",
        "decoding": header["decoding"] if header else {},
        "predictions_sha256": files.sha256(predictions) if isinstance(predictions, Path) else "",
        "family": family.name,
        "scorers": family.scorers,
        "at_most": {name: metric.most for name, metric in family.metrics.items() if metric.most != 100},
        "bootstrap": {"draws": draws, "seed": seed, "interval": "95 % percentile", "drawn": "images"},
        "n_closed": closed,
        "n_open": len(items) - closed,
        "n_failed": sum(bool(item.prediction.failed) for item in items),
        "n_cut": sum(item.cut for item in items),
        "parse_failure_percent": round(100 * unparsed / len(to_parse), 4) if to_parse else None,
        "questions_left_out": dict(benchmark.dropped),
        "questions_noted": dict(benchmark.noted),
        "controls_left_out": conditions.left_out(benchmark, conditions.CONTROLS),
    }


def _numbers(interval: Interval) -> dict[str, float | int]:
    return {
        "value": round(interval.value, 4),
        "n": interval.n,
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
    }
