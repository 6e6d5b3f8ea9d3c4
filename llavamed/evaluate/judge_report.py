"""From grades to numbers, and the page that shows them.

The score is the paper's: the mean over the questions of the answer's grade in per cent of the reference's, by type of
question, by domain of the image, and overall (a mean of ratios; LLaVA's own script has a ratio of means). Its interval
is a bootstrap over images, since several questions share one (`statistics.py`).

Where the protocol shows the answers in both orders, two more things are counted: who is better (a preference that
turns with the order is a tie), and how much the judge favours what it reads first.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llavamed import manifest
from llavamed.corpus.store import open_images
from llavamed.errors import InputError
from llavamed.evaluate import chat_questions, results, show
from llavamed.evaluate.judge import Graded, Judge, Plan
from llavamed.evaluate.significance import paired_bootstrap
from llavamed.evaluate.statistics import FEWEST, bootstrap
from llavamed.imaging.thumbnail import thumbnail
from llavamed.manifest import file_sha256, write_atomic
from llavamed.report import Page

RESULT, ITEMS = "judge.json", "items.jsonl"
_CARDS = 24
_LEAST, _MOST = 10.0, 1000.0  # what a score could be: a grade of 1 beside one of 10, and the reverse
_KINDS = ("conversation", "detailed_description")
_TITLES = {"detailed_description": "description", "chest_xray": "chest X-ray", "mri": "MRI", "ct_scan": "CT"}

# Li et al. 2023, visual chat, by the judge gpt-4-0314
_COLUMNS = ("conversation", "detailed_description", "chest_xray", "mri", "histology", "gross", "ct_scan", "overall")
PUBLISHED = {
    "LLaVA": (39.4, 26.2, 41.6, 33.4, 38.4, 32.9, 33.4, 36.1),
    "LLaVA-Med stage 1": (22.6, 25.2, 25.8, 19.0, 24.8, 24.7, 22.2, 23.3),
    "LLaVA-Med 10K": (42.4, 32.5, 46.1, 36.7, 43.5, 34.7, 37.5, 39.9),
    "LLaVA-Med 60K": (53.7, 36.9, 57.3, 39.8, 49.8, 47.4, 52.4, 49.4),
    "LLaVA-Med 60K-IM": (55.1, 36.4, 56.2, 40.4, 52.7, 51.8, 50.1, 50.2),
}
_NOT_COMPARABLE = (
    "Published rows (Li et al. 2023) were graded by gpt-4-0314, which is retired, and another judge grades otherwise. "
    "Compare what models gain over one baseline that the same judge graded, never these rows with those."
)


def evaluate_chat(
    questions_file: Path,
    predictions: Path,
    out: Path,
    judge: Judge,
    approve: Callable[[Plan], None],
    baseline: Path | None = None,
    images: Path | None = None,
    draws: int = 10_000,
) -> dict[str, Any]:
    """Grade `predictions` and `baseline`, write `out/judge.json`, `items.jsonl` and `report.html`; returns the first.

    `approve` is told what there is to ask before anything is asked, and raises to stop. Raises InputError for files
    that do not fit, or if there is no verdict at all.
    """
    began = time.monotonic()
    questions = chat_questions.read(questions_file)
    ids = [question.id for question in questions]
    files = {"answers": predictions} | ({} if baseline is None else {"baseline": baseline})
    answers = {name: results.by_id(path, ids) for name, path in files.items()}
    if images is not None:
        open_images(images)  # a folder that is not there is told before anything is paid
    approve(judge.plan(questions, list(answers.values())))
    made = manifest.Manifest(
        stage="judge",
        settings={"judge": judge.engine.name, "protocol": judge.protocol.name, "prompt_hash": judge.protocol.hash},
        inputs={name: file_sha256(path) for name, path in {"questions": questions_file, **files}.items()},
    )
    manifest.begin(out, made.stage)
    judge.ask(questions, list(answers.values()))
    graded = {name: judge.grade(questions, rows) for name, rows in answers.items()}
    body = {
        **made.settings,
        "sha256": made.inputs,
        "n": len(questions),
        **{name: _part(rows, draws) for name, rows in graded.items()},
        "difference": _differences(graded, draws),
        "tokens": dict(zip(("in", "out"), judge.tokens(questions, list(answers.values())), strict=True)),
    }
    body["cost_usd"] = None if judge.price is None else round(judge.price.cost(*body["tokens"].values()), 4)
    if "overall" not in body["answers"]["groups"]:
        (kind, failure), *_ = body["answers"]["failures"].items()
        raise InputError(
            f"{judge.engine.name}: not one verdict ({kind}: {failure['example']}); mend that and run again"
        )
    write_atomic(out / ITEMS, "".join(_item(row) for row in graded["answers"]))
    write_atomic(out / RESULT, json.dumps(body, indent=1, ensure_ascii=False) + "\n")
    page(body, graded["answers"], images).write(out / "report.html")
    made.counts = {"questions": len(questions), "excluded": body["answers"]["excluded"]}
    made.funnel = {kind: failure["count"] for kind, failure in body["answers"]["failures"].items()}
    made.seconds = time.monotonic() - began
    made.write(out)
    return body


def table(body: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Score by group, beside the baseline's where there is one."""
    has_baseline = "baseline" in body
    columns = ["group", "n", "score, % (95 % interval)", "grade", "reference's grade"]
    rows = []
    for group, row in body["answers"]["groups"].items():
        cells = [_title(group), str(row["n"]), show.cell(row), f"{row['grade']:.2f}", f"{row['reference']:.2f}"]
        if has_baseline:
            gain = body["difference"].get(group)
            p = f"{gain['p']:.4f}" if gain and gain["images"] >= FEWEST else "-"
            cells += [show.cell(body["baseline"]["groups"].get(group)), show.gap(gain), p]
        rows.append(cells)
    return columns + (["baseline", "gain over it, points", "p"] if has_baseline else []), rows


def notes(body: Mapping[str, Any]) -> list[str]:
    """What must be said beside the numbers."""
    part = body["answers"]
    told = [f"judge {body['judge']}, protocol {body['protocol']} (prompt {body['prompt_hash']})"]
    for name in ("answers", "baseline"):
        for kind, failure in body.get(name, {}).get("failures", {}).items():
            example = failure["example"][:160]
            told.append(f"{name}: {failure['count']} of {body['n']} questions excluded, {kind} (e.g. {example})")
        if body.get(name, {}).get("unanswered"):
            told.append(f"{name}: {body[name]['unanswered']} questions without an answer, graded as an empty one")
    if part["preference"]:
        won = part["preference"]
        told.append(
            f"better than the reference in {won['better']}, worse in {won['worse']}, a tie in {won['tie']} "
            f"({won['turned']} of these because the judge's preference turned with the order)"
        )
        told.append(f"the answer shown first is graded {part['first_shown_gains']:+.2f} higher, on average")
    if "baseline" not in body:
        told.append("no baseline: this score compares with nothing that another judge or prompt graded")
    tokens, cost = body["tokens"], body["cost_usd"]
    paid = "at a price that is not known" if cost is None else f"${cost:.2f}"
    told.append(f"{tokens['in']:,} tokens read and {tokens['out']:,} written by the judge, {paid}")
    return told


def page(body: Mapping[str, Any], graded: Sequence[Graded], images: Path | None) -> Page:
    overall = body["answers"]["groups"]["overall"]
    facts = {
        "of the reference's grade, %": f"{overall['value']:.1f}",
        "with its 95 % interval": show.cell(overall),
        "questions graded": f"{overall['n']} of {body['n']}",
    }
    if "overall" in body["difference"]:
        facts["gain over the baseline"] = f"{body['difference']['overall']['value']:+.1f}"
    made = Page("Open answers, graded by a judge", subtitle=". ".join(notes(body)[:1]), facts=facts)
    made.table("Score", *table(body), text="The answer's grade in per cent of the reference's, mean over questions.")
    made.table("What to know about these numbers", ["note"], [[note] for note in notes(body)[1:]])
    if body["protocol"].startswith("llava_med"):
        groups = body["answers"]["groups"]
        ours = [f"{groups[group]['value']:.1f}" if group in groups else "-" for group in _COLUMNS]
        rows = [[name, *(f"{value:.1f}" for value in values), "published"] for name, values in PUBLISHED.items()]
        columns = ["model", *map(_title, _COLUMNS), "source"]
        made.table(
            "Beside the published rows", columns, [["these answers", *ours, "measured here"], *rows], _NOT_COMPARABLE
        )
    counted = sorted((row for row in graded if row.counts), key=lambda row: row.relative)
    shown = [*[row for row in graded if not row.counts], *counted[:_CARDS]]
    made.cards(
        "Single answers", [_card(row, images) for row in shown[:_CARDS]], "Those without a verdict, then the worst."
    )
    return made


def _part(graded: Sequence[Graded], draws: int) -> dict[str, Any]:
    counted = [row for row in graded if row.counts]
    failures: dict[str, dict[str, Any]] = {}
    for row in graded:
        if not row.counts:
            told = next(iter(row.failures.values()))
            kind = "the judge's reply was not readable" if told.startswith("unreadable") else "the judge did not answer"
            failures.setdefault(kind, {"count": 0, "example": told})["count"] += 1
    both = [row for row in counted if len(row.verdicts) > 1]
    return {
        "groups": {group: _score(rows, draws) for group, rows in _grouped(counted).items()},
        "excluded": len(graded) - len(counted),
        "failures": failures,
        "unanswered": sum(not row.answer.text.strip() for row in graded),
        "preference": _preference(both),
        "first_shown_gains": round(sum(map(_first_gains, both)) / len(both), 4) if both else None,
    }


def _grouped(graded: Sequence[Graded]) -> dict[str, list[Graded]]:
    """Kinds, then domains, then all; the empty ones are left out."""
    groups: dict[str, list[Graded]] = {name: [] for name in (*_KINDS, *chat_questions.DOMAINS)}
    for row in graded:
        groups.setdefault(row.question.kind, []).append(row)
        groups.setdefault(row.question.domain, []).append(row)
    return {name: rows for name, rows in (groups | {"overall": list(graded)}).items() if rows}


def _score(rows: Sequence[Graded], draws: int) -> dict[str, Any]:
    values, images = [row.relative for row in rows], [_image(row) for row in rows]
    found = bootstrap(values, draws, images=images, most=_MOST, least=_LEAST)
    return {
        "value": round(found.value, 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
        "n": found.n,
        "images": found.images,
        "grade": round(sum(row.candidate for row in rows) / len(rows), 4),
        "reference": round(sum(row.reference for row in rows) / len(rows), 4),
    }


def _differences(graded: Mapping[str, Sequence[Graded]], draws: int) -> dict[str, Any]:
    """Answers minus baseline over the questions that both have a verdict on."""
    if "baseline" not in graded:
        return {}
    base = {row.question.id: row for row in graded["baseline"] if row.counts}
    both = [row for row in graded["answers"] if row.counts and row.question.id in base]
    found = {}
    for group, rows in _grouped(both).items():
        theirs = [base[row.question.id].relative for row in rows]
        ours, images = [row.relative for row in rows], [_image(row) for row in rows]
        gain = paired_bootstrap(ours, theirs, images, draws, most=_MOST - _LEAST)
        found[group] = {name: round(value, 6) for name, value in vars(gain).items()}
    return found


def _preference(both: Sequence[Graded]) -> dict[str, int] | None:
    if not both or any(verdict.better is None for row in both for verdict in row.verdicts.values()):
        return None
    said = Counter(row.better for row in both)
    turned = sum({"reference", "candidate"} <= {v.better for v in row.verdicts.values()} for row in both)
    return {"better": said["candidate"], "worse": said["reference"], "tie": said["tie"], "turned": turned}


def _first_gains(row: Graded) -> float:
    """How much higher an answer is graded for standing first: half of what the difference moves with the order."""
    apart = {order: verdict.reference - verdict.candidate for order, verdict in row.verdicts.items()}
    return (apart["reference_first"] - apart["candidate_first"]) / 2


def _image(row: Graded) -> str:
    return row.question.image or row.question.id


def _item(row: Graded) -> str:
    grades = {order: {"answer": v.candidate, "reference": v.reference, "better": v.better}
              for order, v in row.verdicts.items()}  # fmt: skip
    line = {
        "id": row.question.id,
        "type": row.question.kind,
        "domain": row.question.domain,
        "question": row.question.question,
        "reference": row.question.reference,
        "answer": row.answer.text,
        "failed": row.answer.failed,
        "grades": grades,
        "relative": round(row.relative, 4) if row.counts else None,
        "excluded": next(iter(row.failures.values()), ""),
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


def _card(row: Graded, images: Path | None) -> dict[str, Any]:
    question = row.question
    lines = [("question", question.question), ("reference", question.reference)]
    lines.append(("answer", row.answer.text or f"none ({row.answer.failed or 'empty'})"))
    lines += [
        (f"judge, {order.replace('_', ' ')}", f"answer {v.candidate:g}, reference {v.reference:g}. {v.reason[:400]}")
        for order, v in row.verdicts.items()
    ]
    lines += [("excluded", reason) for reason in row.failures.values()]
    title = f"{question.id}: {f'{row.relative:.0f} %' if row.counts else 'no verdict'}"
    return {"image": _picture(question.image, images), "title": title, "lines": lines}


def _picture(name: str, images: Path | None) -> str:
    """A thumbnail, or nothing where the picture is not at hand."""
    if images is None or not name:
        return ""
    try:
        return thumbnail(open_images(images)(name), name)
    except InputError:
        return ""


def _title(group: str) -> str:
    return _TITLES.get(group, group)
