"""Scores as tables of text: what the command line prints and what the report shows.

Every function takes the content of a `scores.json` (or the folder it lies in) and returns
`(columns, rows)` of strings. A number is never shown without its interval and n, nor a headline without what
remains of it when the picture is taken away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate.controls import OF_THE_IMAGE
from llavamed.evaluate.families import FAMILIES, Family
from llavamed.evaluate.metrics import radiology
from llavamed.evaluate.statistics import FEWEST

Table = tuple[list[str], list[list[str]]]
# by name: it means the same in every family
_METRICS = {name: metric for family in FAMILIES.values() for name, metric in family.metrics.items()}
TOO_FEW = "too few images"


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


def family(scores: Mapping[str, Any]) -> Family:
    """The family that the scores are of; of files written before families were named, LLaVA-Med's."""
    return FAMILIES[scores.get("provenance", {}).get("family", "llava_med")]


def unit(metric: str) -> str:
    """'%', or what it could be at most: 'of 2,000'; '%' for a metric of another version."""
    return _METRICS[metric].unit if metric in _METRICS else "%"


def most(metric: str) -> int:
    return _METRICS[metric].most if metric in _METRICS else 100


def cell(entry: Mapping[str, Any] | None) -> str:
    """'92.3 (90.1-94.2)', the score with its 95 % interval; '-' where there is no score. An entry that knows its
    `images` has none where they are too few."""
    if entry is None:
        return "-"
    interval = f"{entry['low']:.1f}-{entry['high']:.1f}"
    return f"{entry['value']:.1f} ({TOO_FEW if entry.get('images', FEWEST) < FEWEST else interval})"


def gap(entry: Mapping[str, Any] | None) -> str:
    """'+4.2 (+0.3 to +7.9)', a difference with its 95 % interval; as `cell`."""
    if entry is None:
        return "-"
    value, low, high = (round(entry[key], 1) + 0.0 for key in ("value", "low", "high"))  # + 0.0: no "-0.0"
    interval = f"{low:+.1f} to {high:+.1f}"  # "to": a minus beside a dash misleads
    return f"{value:+.1f} ({TOO_FEW if entry.get('images', FEWEST) < FEWEST else interval})"


def headline(scores: Mapping[str, Any]) -> Table:
    """Metric by control, with n, and the least gap: what of the score the picture accounts for."""
    controls = _of_the_image(scores)
    rows = []
    for name, title in family(scores).headline:
        real = scores["scores"].get(name)
        if real is None:
            continue
        shown = [cell(control["scores"].get(name)) for control in controls.values()]
        rows.append([_with_unit(title, name), str(real["n"]), cell(real), *shown, _least_gap(name, controls)])
    return ["metric (95 % interval)", "n", "real", *controls, "the image is worth"], rows


def gaps(scores: Mapping[str, Any]) -> Table:
    """What the picture is worth: real minus control over the same questions, with a verdict for each."""
    rows = [
        [title, control, gap(found), str(found["n"]), _uses(found, body["n_failed"])]
        for name, title in family(scores).headline
        for control, body in _of_the_image(scores).items()
        if (found := body["gaps"].get(name)) is not None
    ]
    return ["metric", "control", "real minus control, points", "n", "verdict"], rows


def orders(scores: Mapping[str, Any]) -> Table:
    """Multiple choice with the options in every order; no rows where that was not asked."""
    columns = ["options in every order, % (95 % interval)", "value", "n"]
    rotated = scores["controls"].get("rotated")
    if rotated is None or not rotated["scores"]:
        return columns, []
    found = rotated["scores"]
    return columns, [
        ["accuracy, mean over orders", cell(found["accuracy"]), str(found["accuracy"]["n"])],
        ["the file's order less that", gap(rotated["gaps"]["accuracy"]), str(found["accuracy"]["n"])],
        ["same option in every order", cell(found["consistency"]), str(found["consistency"]["n"])],
    ]


def rules(scores: Mapping[str, Any]) -> Table:
    """Strict beside official, for the same answers."""
    found = scores["scores"]
    rows = [
        [_with_unit(title, official), cell(found.get(strict)), cell(found[official]), str(found[official]["n"])]
        for title, strict, official in family(scores).rules
        if official in found
    ]
    return ["metric (95 % interval)", "strict", "official", "n (official)"], rows


def notes(scores: Mapping[str, Any]) -> list[str]:
    """What stands under the tables: why the two rules differ, what the scores lack, METEOR or why there is none."""
    kind = family(scores)
    told = [f"Strict and official: {kind.why_they_differ}"] if kind.rules else []
    told += scores.get("provenance", {}).get("notes", [])
    found = scores.get("provenance", {}).get("meteor_official")
    if isinstance(found, dict):
        told.append(f"METEOR: {found['value']:.1f} (n = {found['n']}, official, no interval; {found['scorer']})")
    elif found:
        told.append(found)
    if shared := scores.get("provenance", {}).get("seen_in_training"):
        told.append(_seen_in_training(shared))
    told += radiology.lines(scores.get("provenance", {}).get("radiology", {}))
    if few := scores.get("provenance", {}).get("too_few_images"):
        names = "every score" if len(few) == len(scores["scores"]) else ", ".join(few)
        told.append(
            f"Fewer than {FEWEST} images say nothing of chance: the interval of {names} is all that the score can be."
        )
    return told


def _seen_in_training(shared: Mapping[str, int]) -> str:
    ways = {"by name": shared.get("images_by_name"), "by content": shared.get("images_by_sha256")}
    images = " and ".join(f"{count:,} {way}" for way, count in ways.items() if count is not None) or "an unknown number"
    return (
        f"Seen in training: of {shared['test_images']:,} images {images} are in the benchmark's own training split, "
        f"of {shared['test_questions']:,} questions {shared['same_image_and_question']:,} are asked there on the same "
        "image in the same words."
    )


def readable(scores: Mapping[str, Any]) -> str:
    """How many of the answers could not be used, in one line; "" where nothing is known of it."""
    known = scores.get("provenance", {})
    if "n_failed" not in known:
        return ""
    share = known.get("parse_failure_percent")
    unread = "" if share is None else f"{share:.1f} % not readable (counted as wrong), "
    return f"Answers: {unread}{known['n_failed']} requests failed, {known.get('n_cut', 0)} cut for their length"


def verdict(scores: Mapping[str, Any]) -> str:
    """Whether the model looks, in a sentence or two, from the decisive metrics against every control of the image."""
    kind = family(scores)
    if not kind.metrics:
        return "Nothing is counted here: these answers are for a judge."
    controls = _of_the_image(scores)
    failed = {control: body["n_failed"] for control, body in controls.items() if body["n_failed"]}
    withheld = ", ".join(f"{control} ({count})" for control, count in failed.items())
    told = f"No verdict against {withheld}: requests failed; run the evaluation again." if failed else ""
    found = [
        (name, control, body["gaps"][name])
        for name in kind.decisive
        for control, body in controls.items()
        if name in body["gaps"] and body["gaps"][name]["uses_image"] is not None
    ]
    if not found and not told and any(body["gaps"] for body in controls.values()):
        return f"No verdict: fewer than {FEWEST} images say nothing of chance."
    if found:
        return f"{_judgement(found)} {told}".strip()
    if not told and scores.get("provenance", {}).get("controls_left_out", {}).keys() >= set(OF_THE_IMAGE):
        return "The questions have no images: there is nothing that a control could take away."
    return told or "No control was run: nothing here shows that the model uses the image."


def _of_the_image(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {control: body for control, body in scores["controls"].items() if control in OF_THE_IMAGE}


def _with_unit(title: str, name: str) -> str:
    return f"{title}, {unit(name)}"


def _least_gap(name: str, controls: Mapping[str, Any]) -> str:
    """The gap to the control that leaves most of the score."""
    found = [(body["gaps"][name], control) for control, body in controls.items() if name in body["gaps"]]
    if not found:
        return "-" if controls else "not known: no control"  # of some scores a difference is no merit
    least, control = min(found, key=lambda pair: pair[0]["value"])
    if least["uses_image"] is None:
        return f"withheld: requests failed ({control})" if controls[control]["n_failed"] else TOO_FEW
    return gap(least) if least["uses_image"] else f"{gap(least)}: does not use the image"


def _uses(found: Mapping[str, Any], n_failed: int) -> str:
    if found["uses_image"] is None:
        return f"withheld: {n_failed} requests failed" if n_failed else TOO_FEW
    return "uses the image" if found["uses_image"] else "does not use the image"


def _judgement(found: list[tuple[str, str, Mapping[str, Any]]]) -> str:
    blind: dict[str, list[str]] = {}
    for name, control, entry in found:
        if not entry["uses_image"]:
            blind.setdefault(name.replace("_", " "), []).append(control)
    if not blind:
        return "The model uses the image: every score falls beyond noise when the picture is taken away."
    whole = sum(map(len, blind.values())) == len(found)
    told = "; ".join(f"{name} against {', '.join(controls)}" for name, controls in blind.items())
    start = "The model does not use the image" if whole else "In part the model does not use the image"
    return f"{start}: no gap beyond noise in {told}."
