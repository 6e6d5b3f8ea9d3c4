"""The report of an evaluation: what a person looks at before believing the number.

First the scores with and without the picture, then the verdict on whether the model looks at all,
then the two scoring rules side by side, what others published, where the score comes from (groups of
questions, overlap with the training split), and twenty-four single answers with their pictures,
failures first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate import show
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.controls import OF_THE_IMAGE
from llavamed.evaluate.families import Family
from llavamed.evaluate.score import MAX_ANSWER, Item, Scores
from llavamed.evaluate.statistics import bootstrap
from llavamed.imaging.thumbnail import thumbnail
from llavamed.report import Page, new_figure

CARDS = 24
_FAILURES = 16  # of the cards, where there are that many
_GROUPS_SHOWN = 32  # of a kind; MMMU has 30 subjects
_SHOWN = 2000  # characters of a text on a card

ReadImage = Callable[[str], bytes]

_OVERLAP = {
    "test_images": "images in this split",
    "images_by_name": "of them in the training split, by file name",
    "images_by_sha256": "of them in the training split, by content (sha256)",
    "test_questions": "questions in this split",
    "same_image_and_question": "of them asked in training on the same image in the same words",
    "unreadable_images": "images that could not be read, compared by name alone",
}


def build(benchmark: Benchmark, scores: Scores, read_image: ReadImage | None, shared: Mapping[str, int] | None) -> Page:
    """The page. `read_image` gives the pictures of the cards; `shared` is `benchmarks.overlap` with training."""
    body = scores.to_json()
    provenance = body["provenance"]
    page = Page(
        f"Evaluation: {benchmark.name} ({benchmark.split})",
        subtitle=f"{provenance['model']}. {show.verdict(body)}",
        facts=_facts(body),
    )
    if not scores.family.metrics:
        page.cards("Answers, drawn evenly", _cards(scores, read_image), text=show.verdict(body))
        page.table("How it was made", ["what", "value"], [[key, str(value)] for key, value in provenance.items()])
        return page
    page.table("Scores", *show.headline(body), text="Strict rules; the interval is a bootstrap over images.")
    if scores.controls:
        page.figures("With and without the picture", [_bars(body)])
        page.table(
            "What the picture is worth",
            *show.gaps(body),
            text=f"{show.verdict(body)} A gap counts only if its whole interval is above zero.",
        )
    columns, rows = show.orders(body)
    if rows:
        page.table(
            "The order of the options",
            columns,
            rows,
            text="Each option has stood at each letter. What is right in one order only is a preference for a letter.",
        )
    columns, rows = show.rules(body)
    if rows:
        page.table("Official and strict", columns, rows, text=" ".join(show.notes(body)))
    if benchmark.published:
        page.table(
            "Published results",
            *_published(benchmark, body),
            text="Rows marked published are copied from their source, not reproduced here.",
        )
    groups = _groups(scores.items, scores.family)
    if groups:
        measures = [cell for _, title in scores.family.measures for cell in (f"{title}, %", "n")]
        page.table("By group", ["group", *measures], groups)
    if shared is not None:
        page.table(
            "Seen in training",
            ["what", "count"],
            [[_OVERLAP[key], count] for key, count in shared.items()],
            text="A model fine-tuned on the benchmark's training split has seen these images.",
        )
    page.cards("Single answers", _cards(scores, read_image), text="Failures first, then answers that were right.")
    page.table("How it was made", ["what", "value"], [[key, str(value)] for key, value in provenance.items()])
    return page


def _facts(body: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"questions": f"{body['n']:,}"}
    family = show.family(body)
    for name, title in family.headline[:2]:
        entry = body["scores"].get(name)
        if entry is not None:
            facts[f"{title}, strict"] = f"{entry['value']:.1f} {show.unit(name)}"
    for name in family.decisive[:1]:
        blank = body["controls"].get("blank", {}).get("scores", {}).get(name)
        if blank:
            facts[f"{name.replace('_', ' ')}, blank image"] = f"{blank['value']:.1f} %"
    provenance = body["provenance"]
    facts["failed requests"] = provenance["n_failed"] + sum(c["n_failed"] for c in body["controls"].values())
    if provenance["parse_failure_percent"] is not None:
        facts["answers not readable"] = f"{provenance['parse_failure_percent']:.1f} %"
    if provenance["n_cut"]:
        facts[f"answers cut at {MAX_ANSWER:,} characters"] = provenance["n_cut"]
    return facts


def _bars(body: Mapping[str, Any]) -> Any:
    """Scores in per cent under each condition; what is counted in points has a scale of its own and is in the table."""
    images = {name: control["scores"] for name, control in body["controls"].items() if name in OF_THE_IMAGE}
    conditions = {"real": body["scores"], **images}
    shown = [
        (name, title) for name, title in show.family(body).headline if name in body["scores"] and show.unit(name) == "%"
    ]
    names = [name for name, _ in shown]
    figure, axes = new_figure(7.0, 3.0)
    width = 0.8 / len(conditions)
    for index, (condition, entries) in enumerate(conditions.items()):
        at = [position + (index - (len(conditions) - 1) / 2) * width for position in range(len(names))]
        values = [entries[name]["value"] for name in names]
        errors = [
            [max(0.0, entries[name]["value"] - entries[name]["low"]) for name in names],
            [max(0.0, entries[name]["high"] - entries[name]["value"]) for name in names],
        ]
        axes.bar(at, values, width=width * 0.92, yerr=errors, capsize=2, label=condition)
    axes.set_xticks(range(len(names)), [title for _, title in shown])
    axes.set_ylim(0, 100)
    axes.set_ylabel("%")
    axes.legend(frameon=False, ncols=len(conditions), loc="lower right", bbox_to_anchor=(1, 1), fontsize=8)
    return figure


def _published(benchmark: Benchmark, body: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: ours first, then what others reported under the same names."""
    names = list(dict.fromkeys(name for row in benchmark.published for name in row.scores))
    ours = ["this model", *(show.cell(body["scores"].get(name)) for name in names), "", "measured here"]
    rows = [
        [
            row.model,
            *(f"{row.scores[name]:.2f}" if name in row.scores else "-" for name in names),
            row.how,
            f"published: {row.source}",
        ]
        for row in benchmark.published
    ]
    titles = [name.replace("_official", ", official").replace("_", " ") for name in names]
    return ["model", *titles, "how", "source"], [ours, *rows]


def _groups(items: Sequence[Item], family: Family) -> list[list[str]]:
    """Strict scores by each kind of group that the benchmark states; the smallest groups of a kind are one row."""
    kinds: dict[str, dict[str, list[Item]]] = {}
    for item in items:
        for kind, value in item.question.groups.items():
            kinds.setdefault(kind, {}).setdefault(value or "(none)", []).append(item)
    rows = []
    for kind, groups in kinds.items():
        largest = sorted(groups, key=lambda value: (-len(groups[value]), value))
        shown = {value: groups[value] for value in largest[:_GROUPS_SHOWN]}
        rest = largest[_GROUPS_SHOWN:]
        if rest:
            shown[f"{len(rest)} smaller groups"] = [item for value in rest for item in groups[value]]
        for value, members in shown.items():
            row = [f"{kind}: {value}"]
            for measure, _ in family.measures:
                row += _mean([item for item in members if item.measure == measure])
            rows.append(row)
    return rows


def _mean(items: Sequence[Item]) -> tuple[str, str]:
    if not items:
        return "-", "0"
    drawn = bootstrap([100 * item.credit for item in items], images=[item.drawn_with for item in items])
    return show.cell(vars(drawn)), str(len(items))


def choose(items: Sequence[Item], count: int = CARDS) -> list[Item]:
    """The cards: requests that failed, answers without credit and partly right ones, spread over the
    benchmark; then right ones. Two thirds are failures where there are enough."""
    wrong = sorted(
        (item for item in items if item.credit < 1), key=lambda item: (not item.prediction.failed, item.credit)
    )
    right = [item for item in items if item.credit == 1]
    quota = round(count * _FAILURES / CARDS)
    failures = min(len(wrong), max(quota, count - len(right)))
    asked = [item for item in wrong if item.prediction.failed][:failures]
    others = [item for item in wrong if not item.prediction.failed]
    chosen = asked + _spread(others, failures - len(asked))
    return chosen + _spread(right, count - len(chosen))


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of `items` at even distances."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _cards(scores: Scores, read_image: ReadImage | None) -> list[dict[str, Any]]:
    elsewhere = {
        control: {item.question.id: item.prediction for item in items}
        for control, items in scores.control_items.items()
    }
    family = scores.family
    cards = []
    for item in choose(scores.items):
        question = item.question
        reference = f"{question.letter}. {question.answer}" if question.letter else question.answer
        lines = [("question", question.question or "(not in the answer key)"), ("reference", reference)]
        lines.append(("failed", item.prediction.failed) if item.prediction.failed else ("answer", item.prediction.text))
        if question.letter:
            lines.insert(1, ("options", "; ".join(f"{letter}. {text}" for letter, text in question.lettered.items())))
        if family.parse is not None and family.is_parsed(question):
            lines.append(("read as", item.parsed or "not readable"))
        lines += [
            (control, f"failed: {answer.failed}" if answer.failed else answer.text)
            for control, answers in elsewhere.items()
            for answer in [answers[question.id]]
        ]
        title = question.id
        if item.measure:
            title = f"{'right' if item.credit == 1 else 'wrong' if item.credit == 0 else 'partly right'}: {question.id}"
            lines.append((dict(family.measures)[item.measure], f"{100 * item.credit:.0f} %"))
        shown = [(name, text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ...") for name, text in lines]
        cards.append({"image": _thumbnail(question.image, read_image), "title": title, "lines": shown})
    return cards


def _thumbnail(name: str, read_image: ReadImage | None) -> str:
    """A small copy as a data URL; empty where there is no image to read (answers made elsewhere)."""
    if read_image is None or not name:
        return ""
    try:
        return thumbnail(read_image(name), name)
    except InputError:
        return ""
