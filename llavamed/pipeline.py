"""All stages that a recipe names, in order: what `llavamed run` and `llavamed demo` do.

    articles -> out/corpus -> out/instruct -> out/train -> out/eval/<benchmark>/<row> -> out/report.html

Each stage skips itself when its folder is complete and its inputs have not changed, so a run that was
interrupted at any moment goes on where it stopped. The rows of an evaluation are the paper's
ablation: the untrained projector, align only, align + instruct.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from llavamed import manifest, recipe
from llavamed.errors import InputError
from llavamed.evaluate.controls import CONTROLS
from llavamed.evaluate.families import FAMILIES
from llavamed.evaluate.show import cell
from llavamed.imaging.thumbnail import thumbnail
from llavamed.recipe import Recipe
from llavamed.report import Page, new_figure

_COLOURS = ("#0b6e8a", "#e08e45", "#7a9e7e")


@dataclass(frozen=True)
class Row:
    """One line of the final table: a model and a control with their scores, `scores.json` entries by name."""

    benchmark: str
    model: str
    image: str
    scores: dict[str, dict[str, Any]]
    family: str

    @property
    def headline(self) -> tuple[tuple[str, str], ...]:
        """(metric, title) of what is shown of it."""
        return FAMILIES[self.family].headline


@dataclass(frozen=True)
class Outcome:
    out: Path
    model: Path | None
    rows: tuple[Row, ...]
    seconds: dict[str, float]  # by stage, of this call: a skipped stage takes next to none

    def table(self) -> tuple[list[str], list[list[str]]]:
        """(columns, rows) of the final table; a score is "92.3 (90.1-94.2)" with its 95 % interval."""
        titles = self.titles()
        columns = ["benchmark", "model", "image", *titles.values(), "n"]
        table = []
        for row in self.rows:
            cells = [row.benchmark, row.model, row.image]
            cells += [cell(row.scores.get(name)) for name in titles]
            counts = [row.scores[name]["n"] for name in FAMILIES[row.family].decisive if name in row.scores]
            table.append([*cells, " / ".join(map(str, counts))])
        return columns, table

    def titles(self) -> dict[str, str]:
        """Metric -> title of every headline metric that some row has."""
        return {name: title for row in self.rows for name, title in row.headline if name in row.scores}


def run(settings: Recipe, out: Path) -> Outcome:
    """Do every stage of `settings` under `out`. Raises InputError if the recipe names no stage or lacks an input."""
    stages = [name for name in ("align", "instruct", "finetune") if getattr(settings.train, name)]
    if not (settings.corpus.articles or stages or settings.evaluate.benchmarks):
        raise InputError(f"recipe {settings.name}: names no stage; set corpus.articles, train or evaluate.benchmarks")
    _check(settings, stages)
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    if settings.corpus.articles:
        from llavamed.corpus.build import build
        from llavamed.instruct.generate import generate

        began = time.monotonic()
        build(Path(settings.corpus.articles), out / "corpus", settings.corpus)
        seconds["corpus build"] = time.monotonic() - began
        began = time.monotonic()
        generate(out / "corpus", out / "instruct", settings.instruct, settings.seed)
        seconds["instruct generate"] = time.monotonic() - began
        data = {"align": "align.jsonl", "instruct": "instruct.jsonl"}
        made = {
            f"train.{stage}.{key}": value
            for stage, file in data.items()
            if stage in stages and getattr(settings.train, stage).data is None
            for key, value in (("data", str(out / "instruct" / file)), ("images", str(out / "corpus")))
        }
        settings = recipe.changed(settings, made)

    model = None
    if stages:
        from llavamed.train.run import train

        began = time.monotonic()
        train(settings, out / "train")
        seconds["train"] = time.monotonic() - began
        model = out / "train" / stages[-1]

    rows: list[Row] = []
    for benchmark in settings.evaluate.benchmarks:
        began = time.monotonic()
        rows += _evaluate(settings, out, benchmark, stages)
        seconds[f"eval {benchmark}"] = time.monotonic() - began
    outcome = Outcome(out, model, tuple(rows), seconds)
    _report(settings, outcome)
    return outcome


def _check(settings: Recipe, stages: list[str]) -> None:
    """All that the later stages need and nobody will make: found before the first hour is spent, not after the last."""
    made = {"align", "instruct"} if settings.corpus.articles else set()
    for stage in stages:
        if stage not in made and getattr(settings.train, stage).data is None:
            raise InputError(f"recipe {settings.name}: set train.{stage}.data to a .jsonl of conversations")
    for benchmark in settings.evaluate.benchmarks:
        from llavamed.evaluate.run import check

        if not stages:
            raise InputError(f"recipe {settings.name}: trains nothing; use `llavamed eval MODEL {benchmark}`")
        if settings.evaluate.data is None:
            raise InputError(f"recipe {settings.name}: set evaluate.data to the folder of {benchmark}'s files")
        check(benchmark, Path(settings.evaluate.data))


def _evaluate(settings: Recipe, out: Path, benchmark: str, stages: list[str]) -> list[Row]:
    """The final model under every control, and the rows of the ablation with the real image."""
    from llavamed.evaluate.run import evaluate

    section = settings.evaluate
    assert section.data is not None, "_check has seen it"
    rows = []
    for name in (*(["untrained", *stages[:-1]] if section.ablation else []), stages[-1]):
        last = name == stages[-1]
        controls = section.controls if last else ("real",)
        folder = out / "eval" / benchmark / name
        evaluate(
            str(out / "train" / name),
            benchmark,
            Path(section.data),
            folder,
            section.model_copy(update={"controls": controls}),
            settings.seed,
        )
        body = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        found = {"real": body["scores"], **{c: control["scores"] for c, control in body["controls"].items()}}
        rows += [
            Row(benchmark, _label(settings, stages, name), control, found[control], body["provenance"]["family"])
            for control in CONTROLS
            if control in found
        ]
    return rows


def _label(settings: Recipe, stages: list[str], name: str) -> str:
    """What the paper's ablation calls the model after stage `name`."""
    if name == "untrained":
        return "untrained projector" if settings.model.init_from is None else "before training"
    done = stages[: stages.index(name) + 1]
    return " + ".join(done) if len(done) > 1 else f"{name} only"


def _report(settings: Recipe, outcome: Outcome) -> None:
    out = outcome.out
    page = Page(f"Run: {settings.name}", settings.about)
    final = [row for row in outcome.rows if row.image == "real"]
    if final:
        last = final[-1]
        page.facts = {
            title: f"{last.scores[name]['value']:.1f} {last.scores[name].get('unit', '%')}"
            for name, title in last.headline
            if name in last.scores
        }
    page.facts = {**page.facts, **_counts(out)}
    if outcome.rows:
        columns, table = outcome.table()
        page.table(
            "What the model knows, and whether it looks",
            columns,
            table,
            "Per cent, with 95 % bootstrap intervals; strict scoring. The controls ask the same questions with a "
            "blank, exchanged or noise image: what remains there was never read from the picture.",
        )
        page.figures("The same as a picture", [_chart(outcome)])
        page.cards("Answers, drawn evenly from the benchmark", _examples(settings, out, outcome))
    funnel = (manifest.read(out / "corpus") or {}).get("funnel", {})
    if funnel:
        page.table("From articles to pairs: what was dropped and why", ["reason", "figures"], list(funnel.items()))
    found = [p.relative_to(out) for p in sorted(out.rglob("report.html")) if p.parent != out]
    page.links("Each stage's own report", [(str(p.parent), str(p)) for p in found])
    page.write(out / "report.html")


def _counts(out: Path) -> dict[str, str]:
    counts = {}
    for stage, key in (("corpus", "articles"), ("corpus", "pairs"), ("instruct", "conversations")):
        body = manifest.read(out / stage)
        if body and key in body["counts"]:
            counts[key] = f"{body['counts'][key]:,}"
    return counts


def _chart(outcome: Outcome) -> Any:
    """One group of bars a row of the table, with the intervals, of what is counted in per cent."""
    figure, axes = new_figure(9.0, 3.4)
    titles = {
        name: title
        for name, title in outcome.titles().items()
        if not any("unit" in row.scores.get(name, {}) for row in outcome.rows)
    }
    width = 0.78 / max(1, len(titles))
    for offset, ((name, title), colour) in enumerate(zip(titles.items(), cycle(_COLOURS), strict=False)):
        shown = [(position, row.scores[name]) for position, row in enumerate(outcome.rows) if name in row.scores]
        axes.bar(
            [position + (offset - (len(titles) - 1) / 2) * width for position, _ in shown],
            [score["value"] for _, score in shown],
            width,
            yerr=[
                [score["value"] - score["low"] for _, score in shown],
                [score["high"] - score["value"] for _, score in shown],
            ],
            color=colour,
            label=title,
            error_kw={"lw": 0.8},
        )
    labels = [f"{row.model}\n{row.image}" for row in outcome.rows]
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_ylabel("%")
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.16), frameon=False)
    return figure


def _examples(settings: Recipe, out: Path, outcome: Outcome, count: int = 12) -> list[dict[str, Any]]:
    """Questions of each benchmark as cards, with what the final model answered."""
    from llavamed.evaluate import benchmarks
    from llavamed.records import read_jsonl

    assert outcome.model is not None
    cards: list[dict[str, Any]] = []
    for name in settings.evaluate.benchmarks:
        benchmark = benchmarks.load(name, Path(settings.evaluate.data or ""))
        items = list(read_jsonl(out / "eval" / name / outcome.model.name / "items.jsonl"))
        for item in items[:: max(1, len(items) // count)][:count]:
            image = item["image"]
            cards.append(
                {
                    "image": thumbnail(benchmark.read_image(image), image) if image else "",
                    "title": item["question"],
                    "lines": [("answer", item["prediction"]), ("truth", item["reference"])],
                }
            )
    return cards
