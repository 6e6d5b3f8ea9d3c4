"""The comparison as tables and as a page: what one looks at to choose a model, and to see where it fails.

First the scores with their intervals beside the published rows, then which differences are real, then where they
come from (kinds of questions, organs, modalities), then how closed questions go wrong, and at last fifty failures
with their pictures.

Which fifty is the hard thing: the first fifty would be one organ and one question. Informative is a question that
some models answer and others do not (it tells them apart), first where the best of them is the one that fails; then one
that all miss; and among these, one from every group in turn, a question worded like one already shown coming last.
The choice depends on nothing random.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llavamed import manifest
from llavamed.errors import InputError
from llavamed.evaluate import benchmarks, show
from llavamed.evaluate.compare import Item, Run, compare, of_the_image
from llavamed.evaluate.families import FAMILIES
from llavamed.evaluate.statistics import FEWEST
from llavamed.imaging.thumbnail import thumbnail
from llavamed.manifest import file_sha256, write_atomic
from llavamed.report import Page, new_figure

CARDS = 50
RESULT = "compare.json"
_LEVEL = 0.05
_HOW_TESTED = (
    "Both runs answered the same questions, so each pair is tested question by question. The interval comes from "
    "drawing images, since questions about one image stand or fall together, and so does p, which Holm's rule raises "
    "for the number of comparisons in this table; the verdict goes by it. McNemar's exact test counts the questions "
    "that one run alone has right, as if all were independent. Of more than four runs each is tested against the first."
)
_INTERVALS = "Strict rules. Whiskers are 95 % intervals; two that overlap may yet differ, see below."
_SENSITIVITY = "Sensitivity: of the questions whose answer is yes, those answered yes. Specificity: the same of no."
_PLACES = "How often each place in the list of options was right, and was chosen."
_TITLES = {name: title for family in FAMILIES.values() for name, title in family.headline}
Table = tuple[list[str], list[list[str]]]


def write(runs: Sequence[Run], out: Path, data: Path | None = None, draws: int = 10_000) -> dict[str, Any]:
    """Compare `runs` and write `out/compare.json` and `report.html`; returns the first. `data` is the benchmark's
    folder, for the pictures. Raises InputError for runs that must not be compared, or data that are not theirs."""
    body = compare(runs, draws)
    picture = _pictures(runs[0], data)
    made = manifest.Manifest(
        stage="compare",
        settings={"benchmark": body["benchmark"], "split": body["split"], "draws": draws},
        inputs={run.name: file_sha256(run.folder / "scores.json") for run in runs},
        counts={"runs": len(runs), "questions": body["n"]},
    )
    manifest.begin(out, made.stage)
    write_atomic(out / RESULT, json.dumps(body, indent=1, ensure_ascii=False) + "\n")
    page(body, runs, picture).write(out / "report.html")
    made.write(out)
    return body


def tables(body: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    """What the command line prints: titles and tables, without those that would be empty."""
    for title, found in (
        (f"{body['benchmark']}, {body['split']}: strict scores", scores_table(body)),
        ("what the image is worth, points", gaps_table(body)),
        ("beside published results, official arithmetic", published_table(body)),
        ("which differences are real", pairs_table(body)),
    ):
        if found[1] and (body["published"] or found[0][-1] != "source"):
            yield title, found


def scores_table(body: Mapping[str, Any]) -> Table:
    """A row a run: the headline metrics."""
    rows = [
        [run["name"], *(show.cell(run["scores"].get(metric)) for metric in body["headline"])] for run in body["runs"]
    ]
    return ["run", *(_titled(body, metric) for metric in body["headline"])], rows


def gaps_table(body: Mapping[str, Any]) -> Table:
    """What the image is worth to each run: real minus control, in points. No rows where no control was run."""
    controls = list(dict.fromkeys(name for run in body["runs"] for name in of_the_image(run)))
    rows = []
    for run in body["runs"] if controls else ():
        for metric in body["headline"][:2]:
            gaps = [run["controls"].get(control, {}).get("gaps", {}).get(metric) for control in controls]
            rows.append([run["name"], _title(metric), *map(show.gap, gaps)])
    return ["run", "metric", *(f"real minus {control}" for control in controls)], rows


def published_table(body: Mapping[str, Any]) -> Table:
    """Our runs by the official arithmetic, then the rows that others published."""
    metrics = list(dict.fromkeys(name for row in body["published"] for name in row["scores"]))
    rows = [
        [run["name"], *(show.cell(run["scores"].get(metric)) for metric in metrics), run["model"], "measured here"]
        for run in body["runs"]
    ]
    for row in body["published"]:
        values = [_number(row["scores"].get(metric)) for metric in metrics]
        rows.append([row["model"], *values, row["how"], f"published: {row['source']}"])
    return ["model", *map(_title, metrics), "what", "source"], rows


def pairs_table(body: Mapping[str, Any]) -> Table:
    columns = [
        "pair",
        "metric",
        "difference, points",
        "verdict",
        "p, raised by Holm",
        "right alone",
        "McNemar p",
        "n (images)",
    ]
    rows = [
        [
            f"{row['first']} − {row['second']}",
            _title(row["metric"]),
            show.gap(row),
            _verdict(row),
            "-" if row["images"] < FEWEST else f"{_p(row['p'])}, {_p(row['p_holm'])}",
            f"{row['first_only']} : {row['second_only']}" if "mcnemar" in row else "-",
            _p(row["mcnemar"]) if "mcnemar" in row else "-",
            f"{row['n']} ({row['images']})",
        ]
        for row in body["pairs"]
    ]
    return columns, rows


def groups_tables(body: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    """A table for each kind of group and metric: a row a value, the runs side by side."""
    names = [run["name"] for run in body["runs"]]
    for kind in dict.fromkeys(row["kind"] for row in body["groups"]):
        found = {(row["value"], row["run"]): row["scores"] for row in body["groups"] if row["kind"] == kind}
        for metric in body["headline"][:2]:
            rows = []
            for value in dict.fromkeys(value for value, _ in found):
                entries = [found[value, name][metric] for name in names]
                if entries[0]:
                    rows.append([value, str(entries[0]["n"]), *map(show.cell, entries)])
            if rows:
                yield f"By {kind}: {_title(metric)}", ([kind, "n", *(f"{name}, %" for name in names)], rows)


def yes_no_table(body: Mapping[str, Any]) -> Table:
    """Two rows a run: what was so, by what was answered."""
    rows = []
    for entry in body["yes_no"]:
        for truth, rate in (("yes", "sensitivity"), ("no", "specificity")):
            counts = entry["counts"][truth]
            if total := sum(counts.values()):
                right = f"{rate} {100 * counts[truth] / total:.1f} %"
                rows.append([entry["run"], truth, *map(str, counts.values()), right])
    return ["run", "the truth", "answered yes", "answered no", "not readable", ""], rows


def letters_table(body: Mapping[str, Any]) -> Table:
    names = list(dict.fromkeys(row["run"] for row in body["letters"]))
    found = {(row["place"], row["run"]): row for row in body["letters"]}
    rows = []
    for place in dict.fromkeys(row["place"] for row in body["letters"]):
        right = next(found[place, name]["right"] for name in names if (place, name) in found)
        rows.append([place, str(right), *(str(found[place, name]["chosen"]) for name in names)])
    return ["option", "right", *(f"chosen by {name}" for name in names)], rows


def page(body: Mapping[str, Any], runs: Sequence[Run], picture: Callable[[str], str] | None) -> Page:
    """`picture` gives a question's image as a data URL."""
    chosen = informative(runs)
    names = ", ".join(run.name for run in runs)
    made = Page(f"Comparison on {body['benchmark']} ({body['split']})", names, _facts(body, runs))
    if body["warnings"]:
        made.table("Read this first", ["warning"], [[warning] for warning in body["warnings"]])
    made.figures(
        "Scores",
        [_forest(body)],
        _INTERVALS,
    )
    made.table("Scores in numbers", *scores_table(body))
    if gaps_table(body)[1]:
        made.table(
            "What the image is worth", *gaps_table(body), text="The score lost without the right image, in points."
        )
    if body["pairs"]:
        made.table("Which differences are real", *pairs_table(body), text=_HOW_TESTED)
    if body["published"]:
        made.table(
            "Beside published results",
            *published_table(body),
            text="Official arithmetic on both sides. Rows marked published are copied from their source.",
        )
    for title, found in groups_tables(body):
        made.table(title, *found)
    for title, (columns, rows), text in (
        ("Yes/no questions", yes_no_table(body), _SENSITIVITY),
        ("Choices by place", letters_table(body), _PLACES),
    ):
        if rows:
            made.table(title, columns, rows, text)
    leaks = [[run["name"], run["leakage"]["told"]] for run in body["runs"] if run["leakage"]]
    if leaks:
        made.table("Seen in training", ["run", "what `eval leakage` found"], leaks)
    made.cards(
        f"{len(chosen)} failures",
        [_card(runs, id, picture) for id in chosen],
        "First questions that tell the runs apart, those that the best run misses before others, then questions that "
        "all miss; from every group of questions in turn."
        if len(runs) > 1
        else "From every group of questions in turn.",
    )
    made.table("How it was made", ["run", "what", "value"], list(_provenance(runs)))
    return made


def informative(runs: Sequence[Run], count: int = CARDS) -> list[str]:
    """Ids of the failures that teach most (see the module's docstring). Requests that failed are none: they say nothing
    about the model, and are counted elsewhere."""
    answered = [id for id in runs[0].items if not any(run.items[id].get("failed") for run in runs)]
    right = {id: sum(_right(run.items[id]) for run in runs) for id in answered}
    best = max(runs, key=lambda run: sum(_right(run.items[id]) for id in answered))
    told = [id for id in answered if 0 < right[id] < len(runs)]
    apart = _in_turn([id for id in told if not _right(best.items[id])], best)
    apart += _in_turn([id for id in told if _right(best.items[id])], best)
    missed = _in_turn([id for id in answered if right[id] == 0], runs[0])
    share = max(count - len(missed), round(count * 0.6))  # of those that tell the runs apart, where there are enough
    first = apart[:share]
    return first + missed[: count - len(first)]


def _in_turn(ids: Sequence[str], run: Run) -> list[str]:
    """One of each group in turn; a wording that came before is put off."""
    seen: Counter[str] = Counter()
    queues: dict[tuple[Any, ...], list[tuple[int, int, str]]] = {}
    for place, id in enumerate(ids):
        item = run.items[id]
        words = " ".join(str(item["question"]).casefold().split())
        group = (item["closed"], *item["groups"].values())
        queues.setdefault(group, []).append((seen[words], place, id))
        seen[words] += 1
    ranked = [(repeat, turn, place, id) for queue in queues.values()
              for turn, (repeat, place, id) in enumerate(sorted(queue))]  # fmt: skip
    return [id for *_, id in sorted(ranked)]


def _right(item: Item) -> bool:
    """Wholly right by the strict rule: the first credit of an item is its strict one."""
    values = [value for value in item["scores"].values() if value is not None]
    return bool(item.get("correct")) or (bool(values) and values[0] == 1)


def _card(runs: Sequence[Run], id: str, picture: Callable[[str], str] | None) -> dict[str, Any]:
    item = runs[0].items[id]
    lines = [("question", item["question"]), ("reference", item["reference"])]
    for run in runs:
        answer = run.items[id]
        mark = "✓" if _right(answer) else "✗"
        read = answer.get("parsed")
        as_what = f" (read as {read})" if answer["closed"] and read and read != answer["prediction"] else ""
        lines.append((f"{mark} {run.name}", f"{answer['prediction'][:500] or '(empty)'}{as_what}"))
    groups = ", ".join(value for value in item["groups"].values() if value)
    return {"image": picture(item["image"]) if picture else "", "title": f"{id} · {groups}".strip(" ·"), "lines": lines}


def _pictures(run: Run, data: Path | None) -> Callable[[str], str] | None:
    if data is None:
        return None
    benchmark = benchmarks.load(run.scores["benchmark"], data, run.scores["split"])
    if dict(benchmark.sha256) != run.provenance.get("data_sha256"):
        raise InputError(f"{data}: not the files that {run.folder} was scored on; give the folder of those")
    if not benchmark.has_images:
        raise InputError(f"{data}: the images are not there; leave --data out for a report without pictures")

    def picture(name: str) -> str:
        try:
            return thumbnail(benchmark.read_image(name), name) if name else ""
        except InputError:
            return ""  # answers made elsewhere are compared without their images

    return picture


def _facts(body: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    facts: dict[str, Any] = {"questions": f"{body['n']:,}", "runs": len(runs)}
    for metric in body["headline"][:2]:
        best = max(body["runs"], key=lambda run: run["scores"][metric]["value"])
        entry = best["scores"][metric]
        facts[f"best {_title(metric)}: {best['name']}"] = f"{entry['value']:.1f} {show.unit(metric)}"
    real = [row for row in body["pairs"] if row["p_holm"] < _LEVEL]
    if body["pairs"]:
        facts["differences beyond chance"] = f"{len(real)} of {len(body['pairs'])}"
    return facts


def _forest(body: Mapping[str, Any]) -> Any:
    """One panel a metric, one line a run."""
    metrics = body["headline"]
    height = 0.8 + 0.34 * len(body["runs"])
    figure, axes = new_figure(9.0, height * len(metrics) + 0.2)
    axes.remove()
    for index, metric in enumerate(metrics):
        panel = figure.add_subplot(len(metrics), 1, index + 1)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.grid(axis="x", alpha=0.25)
        for line, run in enumerate(reversed(body["runs"])):
            entry = run["scores"][metric]
            whiskers = [[entry["value"] - entry["low"]], [entry["high"] - entry["value"]]]
            panel.errorbar(entry["value"], line, xerr=whiskers, fmt="o", capsize=3, color="#0b6e8a")
            for control in of_the_image(run).values():
                if metric in control["scores"]:
                    panel.plot(control["scores"][metric]["value"], line, "|", color="#a33", markersize=9)
        panel.set_yticks(range(len(body["runs"])), [run["name"] for run in reversed(body["runs"])])
        panel.set_ylim(-0.6, len(body["runs"]) - 0.4)
        if show.unit(metric) == "%":
            panel.set_xlim(0, 100)
        panel.set_title(_titled(body, metric), loc="left", fontsize=10)
    if any(of_the_image(run) for run in body["runs"]):
        panel.set_xlabel("red marks: the same run without the right image")
    figure.tight_layout()
    return figure


def _provenance(runs: Sequence[Run]) -> Iterator[list[str]]:
    for run in runs:
        for key in ("model", "model_fingerprint", "prompt", "prompt_hash", "decoding", "data_sha256", "scorers"):
            yield [run.name, key, str(run.provenance.get(key, ""))]


def _verdict(row: Mapping[str, Any]) -> str:
    if row["images"] < FEWEST:
        return show.TOO_FEW
    if row["p_holm"] >= _LEVEL:
        return "no difference shown"
    return f"{row['first'] if row['value'] > 0 else row['second']} is better"


def _title(metric: str) -> str:
    return _TITLES.get(metric, metric.replace("_official", ", official").replace("_", " "))


def _titled(body: Mapping[str, Any], metric: str) -> str:
    n = {run["scores"][metric]["n"] for run in body["runs"]}
    return f"{_title(metric)}, {show.unit(metric)} (n {', '.join(map(str, sorted(n)))})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
