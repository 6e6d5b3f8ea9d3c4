"""Scores as tables of text: what the command line prints and what the report shows.

Every function takes the content of a `scores.json` (or the folder it lies in) and returns
`(columns, rows)` of strings. A number is never shown without its interval and n.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate.controls import CONTROLS

__all__ = ["CONTROLS", "HEADLINE", "Table", "cell", "gaps", "headline", "read", "rules", "verdict"]

Table = tuple[list[str], list[list[str]]]

# what a model is known by: the strict metric and its title
HEADLINE = (("closed_accuracy", "closed accuracy"), ("open_recall", "open recall"), ("open_f1", "open F1"))

# the same quantity by the strict and by the official rule
_RULES = (
    ("closed accuracy", "closed_accuracy", "closed_accuracy_official"),
    ("open recall", "open_recall", "open_recall_official"),
    ("open precision", "open_precision", "open_precision_official"),
    ("open F1", "open_f1", "open_f1_official"),
    ("open exact match", "open_exact", "open_exact_official"),
    ("closed accuracy, run_eval.py", "closed_accuracy", "closed_accuracy_run_eval"),
    ("closed accuracy, run_eval.py as released", "closed_accuracy", "closed_accuracy_run_eval_release"),
)
WHY_THEY_DIFFER = (
    "Strict judges a closed answer by its first whole word yes or no (or by the one option it names) and counts a "
    "word of an open answer as often as both sides have it. Official is LLaVA-Med's run_eval_batch.py, bug for bug: "
    'it looks for the reference as a substring, so "no" is found in "normal", and its open recall counts repeats in '
    "the prediction, so long answers gain. Compare official with the published rows, and judge a model by strict."
)


def read(path: Path) -> dict[str, Any]:
    """The content of a scores.json, given the file or its folder. Raises InputError if it is not there."""
    file = path / "scores.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such file; `llavamed eval` or `llavamed score` makes one")
    try:
        scores: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: not JSON ({error.msg}); score the predictions again") from None
    if not isinstance(scores, dict) or not {"benchmark", "scores", "controls"} <= scores.keys():
        raise InputError(f"{file}: not a scores.json (it has no benchmark, scores and controls)")
    return scores


def cell(entry: Mapping[str, Any] | None) -> str:
    """'92.3 (90.1-94.2)', in per cent with the 95 % interval; '-' where there is no score."""
    return "-" if entry is None else f"{entry['value']:.1f} ({entry['low']:.1f}-{entry['high']:.1f})"


def headline(scores: Mapping[str, Any]) -> Table:
    """Metric by control, with n."""
    controls = scores["controls"]
    rows = []
    for name, _ in HEADLINE:
        real = scores["scores"].get(name)
        if real is not None:
            shown = [cell(control["scores"].get(name)) for control in controls.values()]
            rows.append([name, str(real["n"]), cell(real), *shown])
    return ["metric, % (95 % interval)", "n", "real", *controls], rows


def gaps(scores: Mapping[str, Any]) -> Table:
    """What the picture is worth: real minus control over the same questions, with a verdict for each."""
    rows = [
        [
            name,
            control,
            f"{gap['value']:+.1f} ({gap['low']:+.1f} to {gap['high']:+.1f})",  # "to": a minus beside a dash misleads
            str(gap["n"]),
            _uses(gap, body["n_failed"]),
        ]
        for name, _ in HEADLINE
        for control, body in scores["controls"].items()
        if (gap := body["gaps"].get(name)) is not None
    ]
    return ["metric", "control", "real minus control, points", "n", "verdict"], rows


def _uses(gap: Mapping[str, Any], n_failed: int) -> str:
    if gap["uses_image"] is None:
        return f"withheld: {n_failed} requests failed"
    return "uses the image" if gap["uses_image"] else "does not use the image"


def verdict(scores: Mapping[str, Any]) -> str:
    """Whether the model looks, in a sentence or two, from closed accuracy and open recall against every control."""
    failed = {control: body["n_failed"] for control, body in scores["controls"].items() if body["n_failed"]}
    withheld = ", ".join(f"{control} ({count})" for control, count in failed.items())
    told = f"No verdict against {withheld}: requests failed; run the evaluation again." if failed else ""
    found = [
        (name, control, body["gaps"][name])
        for name in ("closed_accuracy", "open_recall")
        for control, body in scores["controls"].items()
        if name in body["gaps"] and control not in failed
    ]
    if found:
        return f"{_judgement(found)} {told}".strip()
    return told or "No control was run: nothing here shows that the model uses the image."


def _judgement(found: list[tuple[str, str, Mapping[str, Any]]]) -> str:
    blind: dict[str, list[str]] = {}
    for name, control, gap in found:
        if not gap["uses_image"]:
            blind.setdefault(name.replace("_", " "), []).append(control)
    if not blind:
        return "The model uses the image: every score falls beyond noise when the picture is taken away."
    whole = sum(map(len, blind.values())) == len(found)
    told = "; ".join(f"{name} against {', '.join(controls)}" for name, controls in blind.items())
    start = "The model does not use the image" if whole else "In part the model does not use the image"
    return f"{start}: no gap beyond noise in {told}."


def rules(scores: Mapping[str, Any]) -> Table:
    """Strict beside official, for the same answers."""
    found = scores["scores"]
    rows = [
        [title, cell(found.get(strict)), cell(found.get(official)), str(found[official]["n"])]
        for title, strict, official in _RULES
        if official in found
    ]
    return ["metric, % (95 % interval)", "strict", "official", "n (official)"], rows
