"""Runs beside each other on one benchmark, and beside what others published: which difference is real.

In: folders that `llavamed eval` or `llavamed score` made. Out: `compare.json` with every number and `report.html`.

The hard thing is to compare only what is comparable. Runs on another version of the data, another split or scored
by another version of a scorer are an error: their numbers differ for reasons that are no model's. Another prompt or
decoding is a choice of whoever ran it; it is allowed and said loudly. Questions are matched by id, and a pair of
runs is tested on the questions themselves (`significance.py`), not on whether two intervals overlap. A score that is no
mean (POPE's F1, MME's, BLEU) is counted again from the answers; what cannot be tested is said.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate import show
from llavamed.evaluate.benchmarks import Published
from llavamed.evaluate.controls import OF_THE_IMAGE
from llavamed.evaluate.families import Answered
from llavamed.evaluate.significance import holm, mcnemar, paired_bootstrap, paired_total
from llavamed.evaluate.statistics import bootstrap
from llavamed.records import Question, read_jsonl

LEAKAGE = "leakage.json"  # beside the scores, where `eval leakage` was asked
_ALL_PAIRS = 4  # runs; of more, each is tested against the first: many tests leave none of them any power
_GROUP_DRAWS = 1000
_SMALLEST_GROUP = 5  # questions; smaller ones are put together
_UNTESTED = "more of it is no merit, or it was scored by another version than this one"
_YES_NO = ("yes", "no")
_UNREADABLE = "not readable"

Item = Mapping[str, Any]  # a line of items.jsonl


@dataclass(frozen=True)
class Run:
    """One folder: its scores.json, and its items.jsonl by id."""

    name: str
    folder: Path
    scores: Mapping[str, Any]
    items: Mapping[str, Item]

    @property
    def provenance(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.scores.get("provenance", {})
        return found

    @property
    def leakage(self) -> Mapping[str, Any] | None:
        """What `eval leakage` found for these data; None where it was not asked or for other data."""
        file = self.folder / LEAKAGE
        if not file.is_file():
            return None
        body: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        about = [self.scores["benchmark"], self.scores["split"], self.provenance.get("data_sha256")]
        return body if [body.get(key) for key in ("benchmark", "split", "data_sha256")] == about else None


def load(arguments: Sequence[str]) -> dict[str, list[Run]]:
    """The runs by benchmark. An argument is a folder, or `NAME=FOLDER`; a folder without scores stands for the runs
    right below it. Raises InputError for a folder that holds none."""
    found: list[tuple[str, Path]] = []
    for argument in arguments:
        label, _, rest = argument.partition("=")
        path = Path(argument) if not rest or Path(argument).exists() else Path(rest)
        label = "" if path == Path(argument) else label
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; give one that `llavamed eval` or `llavamed score` made")
        inner = [path] if (path / "scores.json").is_file() else sorted(p.parent for p in path.glob("*/scores.json"))
        if not inner:
            raise InputError(f"{path}: holds no scores.json; `llavamed eval` or `llavamed score` makes one")
        found += [(label if len(inner) == 1 else f"{label}/{p.name}".strip("/") if label else "", p) for p in inner]
    names = _names(found)
    runs: dict[str, list[Run]] = {}
    for name, (_, path) in zip(names, found, strict=True):
        scores = show.read(path)
        runs.setdefault(str(scores["benchmark"]), []).append(Run(name, path, scores, _items(path, scores)))
    if len(arguments) > 1 and all(len(members) == 1 for members in runs.values()):
        told = ", ".join(f"{run.folder} of {name}" for name, (run,) in runs.items())
        raise InputError(f"nothing to compare: {told}; give runs of one benchmark")
    return runs


def check(runs: Sequence[Run]) -> list[str]:
    """What to know before comparing. Raises InputError for what must not be compared."""
    first = runs[0]
    for other in runs[1:]:
        both = f"{first.folder} and {other.folder}"
        if first.scores["split"] != other.scores["split"]:
            raise InputError(
                f"{both}: splits {first.scores['split']!r} and {other.scores['split']!r}; compare one split"
            )
        if first.provenance.get("data_sha256") != other.provenance.get("data_sha256"):
            raise InputError(f"{both}: made from different files of {first.scores['benchmark']}; score both on one")
        apart = [
            name
            for name, entry in first.scores["scores"].items()
            if name in other.scores["scores"] and other.scores["scores"][name]["scorer"] != entry["scorer"]
        ]
        if apart:
            raise InputError(f"{both}: {apart[0]} is by different scorers; score both again with one version")
        if first.items.keys() != other.items.keys():
            raise InputError(f"{both}: their items.jsonl are about different questions; score both again")
    told = []
    for key, what in (("prompt_hash", "prompts"), ("decoding", "decoding settings")):
        said = {json.dumps(run.provenance.get(key), sort_keys=True) for run in runs}
        unknown = [run.name for run in runs if not run.provenance.get(key)]
        if len(said) > 1 and not unknown:
            told.append(f"The runs were asked with different {what}: differences may be those of the {what}.")
        elif unknown and len(runs) > 1:
            told.append(f"The {what} of {', '.join(unknown)} are not known (answers made elsewhere).")
    for run in runs:
        verdict = show.verdict(run.scores)
        if not of_the_image(run.scores):
            told.append(f"{run.name}: {verdict[0].lower()}{verdict[1:]}")
        failed = run.provenance.get("n_failed", 0)
        if failed:
            told.append(f"{run.name}: {failed} requests failed and count as wrong.")
    return told


def compare(runs: Sequence[Run], draws: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """All numbers of one benchmark: runs, published rows, pairs, groups, confusion."""
    warnings = check(runs)
    metrics = headline(runs)
    if not metrics:
        raise InputError(f"{runs[0].folder}: no metric that all these runs have; answers for a judge have none")
    pairs = _pairs(runs, metrics, draws, seed)
    tested = {row["metric"] for row in pairs}
    if pairs and (untested := [name for name in metrics if name not in tested]):
        warnings.append(f"Not tested: {', '.join(untested)}: {_UNTESTED}.")
    return {
        "benchmark": runs[0].scores["benchmark"],
        "split": runs[0].scores["split"],
        "n": runs[0].scores["n"],
        "headline": metrics,
        "warnings": warnings,
        "runs": [_run(run) for run in runs],
        "published": [vars(row) for row in published(runs[0].scores["benchmark"], runs[0].scores["split"])],
        "pairs": pairs,
        "groups": _groups(runs, metrics, seed),
        "yes_no": [_yes_no(run) for run in runs],
        "letters": [row for run in runs for row in _letters(run)],
    }


def headline(runs: Sequence[Run]) -> list[str]:
    """The metrics that models are known by, of those that these runs have; else the strict ones, else all."""
    shared = [name for name in runs[0].scores["scores"] if all(name in run.scores["scores"] for run in runs)]
    known = [name for name, _ in show.family(runs[0].scores).headline if name in shared]
    strict = [name for name in shared if runs[0].scores["scores"][name].get("mode") == "strict"]
    return known or strict or shared


def published(benchmark: str, split: str) -> tuple[Published, ...]:
    """Rows that others reported on this split; () where there are none."""
    try:
        module = importlib.import_module(f"llavamed.evaluate.benchmarks.{benchmark.replace('-', '_')}")
    except ModuleNotFoundError:
        return ()
    rows: tuple[Published, ...] = getattr(module, "PUBLISHED", ()) if split == getattr(module, "SPLIT", "test") else ()
    return rows


def of_the_image(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The controls that take the image away, of a scores.json or of a run's entry in compare.json."""
    return {control: body for control, body in scores["controls"].items() if control in OF_THE_IMAGE}


def credits(run: Run, metric: str) -> dict[str, float]:
    """Per cent by question, of the questions that are in the metric; {} for a number of the whole, such as F1."""
    values = {id: item["scores"].get(metric) for id, item in run.items.items()}
    return {id: 100.0 * value for id, value in values.items() if value is not None}


def _items(folder: Path, scores: Mapping[str, Any]) -> dict[str, Item]:
    path = folder / "items.jsonl"
    items: dict[str, Item] = {}
    for number, row in enumerate(read_jsonl(path), 1):
        if not {"id", "image", "question", "reference", "prediction", "closed", "groups", "scores"} <= row.keys():
            raise InputError(f"{path}: row {number} is not an item of a score; score the predictions again")
        items[str(row["id"])] = row
    if len(items) != scores["n"]:
        raise InputError(f"{path}: {len(items)} items, but scores.json has n = {scores['n']}; score again")
    return items


def _names(found: Sequence[tuple[str, Path]]) -> list[str]:
    """The label, or as much of the end of the path as tells it from the others."""
    paths = [Path(os.path.abspath(path)) for _, path in found]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = [label or "/".join(path.parts[-depth:]) for (label, _), path in zip(found, paths, strict=True)]
        if len(set(names)) == len(names):
            return names
    repeated = Counter(label or str(path) for label, path in found).most_common(1)[0][0]
    raise InputError(f"{repeated}: given twice; give each run once, with names of their own")


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "model": run.provenance.get("model", ""),
        "scores": run.scores["scores"],
        "controls": run.scores["controls"],
        "verdict": show.verdict(run.scores),
        "n_failed": run.provenance.get("n_failed", 0),
        "leakage": run.leakage,
    }


def _pairs(runs: Sequence[Run], metrics: Sequence[str], draws: int, seed: int) -> list[dict[str, Any]]:
    """Each pair of runs, or of many runs each with the first, by each metric; p-values adjusted together, by Holm."""
    rows = []
    pairs = itertools.combinations(runs, 2) if len(runs) <= _ALL_PAIRS else ((runs[0], other) for other in runs[1:])
    for first, second in pairs:
        for metric in metrics:
            ours, theirs = credits(first, metric), credits(second, metric)
            ids = [id for id in ours if id in theirs]
            if not ids:
                rows += _total_pair(first, second, metric, draws, seed)
                continue
            a, b = [ours[id] for id in ids], [theirs[id] for id in ids]
            found = paired_bootstrap(a, b, [_image(first, id) for id in ids], draws, seed, show.most(metric))
            row = {"first": first.name, "second": second.name, "metric": metric, **vars(found)}
            if {*a, *b} <= {0.0, 100.0}:
                only = [sum(x > y for x, y in zip(a, b, strict=True)), sum(x < y for x, y in zip(a, b, strict=True))]
                row |= {"first_only": only[0], "second_only": only[1], "mcnemar": mcnemar(*only)}
            rows.append(row)
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    return rows


def _total_pair(first: Run, second: Run, name: str, draws: int, seed: int) -> list[dict[str, Any]]:
    """The row of a pair by a score that is no mean; none where it cannot be tested."""
    metric = show.family(first.scores).metrics.get(name)
    if metric is None or metric.total is None or not metric.pairs:
        return []
    if metric.scorer != first.scores["scores"][name]["scorer"]:
        return []  # its rows are counted by this version
    ids = [id for id, item in first.items.items() if metric.over(_answered(item).question)]
    ours, theirs = (metric.total.rows([_answered(run.items[id]) for id in ids]) for run in (first, second))
    images = [_image(first, id) for id in ids]
    found = paired_total(ours, theirs, metric.total.value, images, draws, seed, metric.most)
    return [{"first": first.name, "second": second.name, "metric": name, **vars(found)}]


def _answered(item: Item) -> Answered:
    renamed = {"answer": item["reference"], "answers": item.get("references", ())}
    failed = bool(item["failed"])
    return Answered(Question.from_json({**item, **renamed}), "" if failed else str(item["prediction"]), failed)


def _image(run: Run, id: str) -> str:
    return str(run.items[id]["image"] or id)


def _groups(runs: Sequence[Run], metrics: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Each metric within each group of questions (organ, modality, type ...), largest groups first."""
    members: dict[str, dict[str, list[str]]] = {}
    for id, item in runs[0].items.items():
        for kind, value in item["groups"].items():
            members.setdefault(kind, {}).setdefault(value or "(none)", []).append(id)
    earned = {(run.name, metric): credits(run, metric) for run in runs for metric in metrics}
    rows = []
    for kind, groups in members.items():
        small = [value for value in groups if len(groups[value]) < _SMALLEST_GROUP]
        kept = {value: ids for value, ids in groups.items() if value not in small}
        if small:
            kept[f"{len(small)} smaller groups"] = [id for value in small for id in groups[value]]
        if len(kept) < 2:
            continue
        for value in sorted(kept, key=lambda value: (value.endswith("smaller groups"), -len(kept[value]), value)):
            for run in runs:
                scores = {metric: _mean(run, metric, earned[run.name, metric], kept[value], seed) for metric in metrics}
                rows.append({"kind": kind, "value": value, "run": run.name, "n": len(kept[value]), "scores": scores})
    return rows


def _mean(run: Run, metric: str, earned: Mapping[str, float], ids: Sequence[str], seed: int) -> dict[str, Any] | None:
    asked = [id for id in ids if id in earned]
    if not asked:
        return None
    values, images = [earned[id] for id in asked], [_image(run, id) for id in asked]
    return vars(bootstrap(values, _GROUP_DRAWS, seed, images=images, most=show.most(metric)))


def _closed(run: Run) -> list[Item]:
    return [item for item in run.items.values() if item["closed"]]


def _said(item: Item) -> str:
    return _UNREADABLE if item.get("failed") or item.get("parsed") is None else str(item["parsed"])


def _yes_no(run: Run) -> dict[str, Any]:
    """Yes/no questions: what was so, by what was answered."""
    counts: Counter[tuple[str, str]] = Counter()
    for item in _closed(run):
        options = {str(option).casefold() for option in item.get("options", ())}
        truth = str(item["reference"]).casefold().rstrip(".")
        if options == set(_YES_NO) and truth in _YES_NO:
            counts[truth, _said(item).casefold()] += 1
    table = {truth: {said: counts[truth, said] for said in (*_YES_NO, _UNREADABLE)} for truth in _YES_NO}
    return {"run": run.name, "counts": table}


def _letters(run: Run) -> list[dict[str, Any]]:
    """Other questions with options: how often each place of the list was right, and was chosen. A model that likes the
    first option shows here."""
    right: Counter[int | None] = Counter()
    chosen: Counter[int | None] = Counter()
    places = 0
    for item in _closed(run):
        options = [str(option).casefold() for option in item.get("options", ())]
        if len(options) < 2 or set(options) == set(_YES_NO):
            continue
        places = max(places, len(options))
        right[_place(str(item.get("letter") or item["reference"]), options)] += 1
        chosen[_place(_said(item), options)] += 1
    if not places:
        return []
    rows = [
        {"run": run.name, "place": chr(ord("A") + place), "right": right[place], "chosen": chosen[place]}
        for place in range(places)
    ]
    return [*rows, {"run": run.name, "place": _UNREADABLE, "right": right[None], "chosen": chosen[None]}]


def _place(text: str, options: Sequence[str]) -> int | None:
    """Which option a text is, by its words or by its letter."""
    if text.casefold() in options:
        return options.index(text.casefold())
    place = ord(text.upper()) - ord("A") if len(text) == 1 else -1
    return place if 0 <= place < len(options) else None
