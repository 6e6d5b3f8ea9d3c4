"""The run as one HTML page: what each stage cost, and the curves that say whether it went well.

Beside a stage's metrics.jsonl two files are shown if they are there, one JSON object a line:

    validation.jsonl    {"step", "loss", "score", "score_name"}: on examples held out; drawn into the loss figure
    samples.jsonl       {"step", "id", "image", "question", "reference", "answer"}: the same few questions, answered
                        every so often; `image` is a data URL or the path of a file, from the stage's folder
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llavamed.imaging.thumbnail import thumbnail
from llavamed.progress import clock
from llavamed.recipe import Recipe
from llavamed.report import Page, new_figure
from llavamed.train.loop import METRICS
from llavamed.train.validate import SAMPLES, VALIDATION, read_rows

_COLUMNS = (
    "stage", "trains", "steps", "examples", "tokens", "supervised", "parameters", "first loss", "last loss",
)  # fmt: skip
_SPEED_COLUMNS = (
    "stage", "time", "tokens/s", "supervised/s", "examples/s", "TFLOP/s", "MFU", "fill", "memory, GiB",
)  # fmt: skip
_STAGES_TEXT = "Supervised: tokens that have loss. Parameters: those that are trained."
_SPEED_TEXT = (
    "TFLOP/s: useful work, without what is recomputed. Fill: how full the packs of a step are beside its fullest."
)
_LOSS_TEXT = (
    "Cross-entropy of the supervised tokens, in nats; the line is the mean over the last twentieth of the stage, of "
    "five steps at least."
)
_HELD_OUT_TEXT = " Dots: the loss on examples held out. Squares, on the right: the small score of a benchmark."
_SAMPLES_TEXT = "The same questions, answered by the model as it trains."
_SAMPLE_STEPS = 6  # answers shown to a question, the first and the last among them
_LABELS = {"tokens_per_second": "all", "supervised_tokens_per_second": "supervised"}
# title, text, the keys that are drawn, their factor
_OTHER_CURVES: tuple[tuple[str, str, tuple[str, ...], float], ...] = (
    ("learning rate", "One line per part.", ("learning_rates",), 1.0),
    ("gradient norm", "Before clipping.", ("grad_norm",), 1.0),
    (
        "throughput",
        "Thousand tokens per second, image tokens included.",
        ("tokens_per_second", "supervised_tokens_per_second"),
        1e-3,
    ),
    ("examples per second", "", ("examples_per_second",), 1.0),
    ("TFLOP per second", "Useful work.", ("tflops_per_second",), 1.0),
    ("fill", "The packs of a step beside its fullest, in percent.", ("fill",), 100.0),
    ("memory", "Peak so far, GiB.", ("peak_memory_mb",), 1 / 1024),
)


def write_page(out: Path, recipe: Recipe, finished: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `out`/report.html from the stages' manifests and metrics."""
    metrics = {name: read_rows(out / name / METRICS) for name in finished}
    validation = {name: read_rows(out / name / VALIDATION) for name in finished}
    samples = {name: read_rows(out / name / SAMPLES) for name in finished}
    tokens = sum(body["counts"]["tokens"] for body in finished.values())
    seconds = sum(body["seconds"] for body in finished.values())
    page = Page(
        f"Training of {recipe.name}" if recipe.name else "Training",
        recipe.about,
        facts={
            "stages": len(finished),
            "optimizer steps": f"{sum(body['counts']['steps'] for body in finished.values()):,}",
            "tokens": f"{tokens:,}",
            "time": clock(seconds),
            "tokens per second": f"{tokens / max(seconds, 1e-9):,.0f}",
        },
    )
    page.table("Stages", _COLUMNS, [_row(name, body) for name, body in finished.items()], _STAGES_TEXT)
    peaks = {row["peak"]: None for rows in metrics.values() for row in rows if row.get("peak")}
    speeds = [_speed(name, body, metrics[name]) for name, body in finished.items()]
    page.table("Speed", _SPEED_COLUMNS, speeds, " ".join([_SPEED_TEXT, *(f"MFU: the share of {p}." for p in peaks)]))
    losses = [_loss_figure(name, rows, validation[name]) for name, rows in metrics.items()]
    page.figures("Loss", losses, _LOSS_TEXT + (_HELD_OUT_TEXT if any(validation.values()) else "") + _kept(finished))
    for title, text, keys, scale in _OTHER_CURVES:
        drawn = {
            name: rows for name, rows in metrics.items() if rows and all(key in row for row in rows for key in keys)
        }
        figures = [_figure(name, rows, keys, title, scale) for name, rows in drawn.items()]
        if figures:
            page.figures(title[0].upper() + title[1:], figures, text)
    for name, rows in samples.items():
        if rows:
            page.cards(f"Answers while training: {name}", _cards(rows, out / name), _SAMPLES_TEXT)
    page.write(out / "report.html")


def _kept(finished: Mapping[str, Mapping[str, Any]]) -> str:
    steps = {name: body["extra"].get("model_of_step") for name, body in finished.items()}
    kept = [f"{name} that of step {step}" for name, step in steps.items() if step is not None]
    return (
        f" The models are the best that were kept, by the loss on examples held out: {', '.join(kept)}." if kept else ""
    )


def _row(name: str, body: Mapping[str, Any]) -> list[str]:
    counts = body["counts"]
    return [
        name,
        _trains(body["settings"]),
        *(f"{counts[key]:,}" for key in ("steps", "examples", "tokens", "supervised_tokens", "trainable_parameters")),
        f"{body['extra']['first_loss']:.3f}",
        f"{body['extra']['last_loss']:.3f}",
    ]


def _trains(settings: Mapping[str, Any]) -> str:
    lora = settings.get("lora") or {"parts": ()}
    return ", ".join([*settings["trains"], *(f"LoRA on {part}" for part in lora["parts"])]).replace("_", " ")


def _speed(name: str, body: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    counts, seconds = body["counts"], body["seconds"]
    memory = max((row["peak_memory_mb"] for row in rows if "peak_memory_mb" in row), default=None)
    return [
        name,
        clock(seconds),
        *(f"{counts[key] / max(seconds, 1e-9):,.0f}" for key in ("tokens", "supervised_tokens")),
        f"{counts['examples'] / max(seconds, 1e-9):,.1f}",
        _mean(rows, "tflops_per_second", "{:.3g}"),
        _mean(rows, "mfu", "{:.1%}"),
        _mean(rows, "fill", "{:.1%}"),
        "-" if memory is None else f"{memory / 1024:.1f}",
    ]


def _mean(rows: list[dict[str, Any]], key: str, how: str) -> str:
    """Over the stage's seconds, as tokens per second are."""
    known = [(row[key], row["seconds"]) for row in rows if row.get(key) is not None]
    seconds = sum(took for _, took in known)
    return how.format(sum(value * took for value, took in known) / seconds) if seconds else "-"


def _loss_figure(name: str, rows: list[dict[str, Any]], validation: list[dict[str, Any]]) -> Any:
    figure, axes = new_figure(4.2, 3.0)
    steps, losses = _series(rows, "step"), _series(rows, "loss")
    axes.plot(steps, losses, alpha=0.35, linewidth=1)
    axes.plot(steps, _running_mean(losses, max(5, len(rows) // 20)), linewidth=2)
    held_out = [row for row in validation if row.get("loss") is not None]
    highest = max(losses.max(), *(row["loss"] for row in held_out)) if held_out else losses.max()
    axes.set(title=name, xlabel="step", ylabel="loss", ylim=(0, 1.05 * highest))
    if held_out:
        axes.plot(_series(held_out, "step"), _series(held_out, "loss"), "o-", color="#c0392b", label="held out")
        axes.legend(loc="center right")  # a loss falls, a score rises: what is free is between them
    scored = [row for row in validation if row.get("score") is not None]
    if scored:
        right = axes.twinx()
        right.plot(_series(scored, "step"), _series(scored, "score"), "s--", color="#6c757d", markersize=4)
        right.set(ylabel=f"{scored[-1]['score_name']}, %")
        right.set_ylim(0, 1.05 * max(right.dataLim.ymax, 1e-9))
    return figure


def _figure(name: str, rows: list[dict[str, Any]], keys: tuple[str, ...], label: str, scale: float) -> Any:
    figure, axes = new_figure(4.2, 2.4)
    steps = _series(rows, "step")
    for key in keys:
        if isinstance(rows[0][key], dict):
            for part in rows[0][key]:
                axes.plot(steps, [row[key][part] for row in rows], label=part.replace("_", " "))
        else:
            axes.plot(steps, _series(rows, key) * scale, label=_LABELS.get(key))
    axes.set(title=name, xlabel="step", ylabel=label)
    several = len(keys) > 1 or isinstance(rows[0][keys[0]], dict)
    axes.set_ylim(0, (1.3 if several else 1.05) * axes.dataLim.ymax)
    if several:
        axes.legend(loc="upper center", ncols=2)  # in the room left above
    return figure


def _cards(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """One card a question, its answers in the order of the steps."""
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_id.setdefault(row["id"], []).append(row)
    cards = []
    for name, answers in by_id.items():
        shown = answers if len(answers) <= _SAMPLE_STEPS else _spread(answers)
        lines = [("question", answers[0]["question"]), *((f"step {row['step']}", row["answer"]) for row in shown)]
        lines.append(("reference", answers[0]["reference"]))
        cards.append({"image": _picture(answers[0]["image"], folder), "title": name, "lines": lines})
    return cards


def _spread(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    chosen = np.linspace(0, len(answers) - 1, _SAMPLE_STEPS).round().astype(int)
    return [answers[index] for index in chosen]


def _picture(image: str, folder: Path) -> str:
    """A data URL, or "" where there is no such file."""
    if not image or image.startswith("data:image/"):
        return image
    path = folder / image
    return thumbnail(path.read_bytes(), image) if path.is_file() else ""


def _series(rows: list[dict[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([row[key] for row in rows], dtype=np.float64)


def _running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Over the `width` values up to each one, fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    means: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means
