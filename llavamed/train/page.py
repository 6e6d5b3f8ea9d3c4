"""The run as one HTML page: what each stage cost, and the curves that say whether it went well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llavamed.progress import clock
from llavamed.recipe import Recipe
from llavamed.report import Page, new_figure
from llavamed.train.loop import METRICS
from llavamed.train.validate import read_rows

_COLUMNS = (
    "stage", "trains", "steps", "examples", "tokens", "supervised", "parameters", "time",
    "tokens/s", "first loss", "last loss",
)  # fmt: skip
_STAGES_TEXT = "Supervised: tokens that have loss. Parameters: those that are trained."
_LOSS_TEXT = (
    "Cross-entropy of the supervised tokens, in nats; the line is the mean over the last twentieth of the stage."
)
_OTHER_CURVES = (
    ("learning rate", "One line per part.", "learning_rates", 1.0),
    ("gradient norm", "Before clipping.", "grad_norm", 1.0),
    ("throughput", "Thousand tokens per second, image tokens included.", "tokens_per_second", 1e-3),
    ("memory", "Peak so far, GB.", "peak_memory_mb", 1 / 1024),
)


def write_page(out: Path, recipe: Recipe, finished: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `out`/report.html from the stages' manifests and metrics."""
    metrics = {name: read_rows(out / name / METRICS) for name in finished}
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
    page.figures("Loss", [_loss_figure(name, rows) for name, rows in metrics.items()], _LOSS_TEXT)
    for title, text, key, scale in _OTHER_CURVES:
        page.figures(
            title.capitalize(), [_figure(name, rows, key, title, scale) for name, rows in metrics.items()], text
        )
    page.write(out / "report.html")


def _row(name: str, body: Mapping[str, Any]) -> list[str]:
    counts, seconds = body["counts"], body["seconds"]
    return [
        name,
        _trains(body["settings"]),
        *(f"{counts[key]:,}" for key in ("steps", "examples", "tokens", "supervised_tokens", "trainable_parameters")),
        clock(seconds),
        f"{counts['tokens'] / max(seconds, 1e-9):,.0f}",
        f"{body['extra']['first_loss']:.3f}",
        f"{body['extra']['last_loss']:.3f}",
    ]


def _trains(settings: Mapping[str, Any]) -> str:
    lora = settings.get("lora") or {"parts": ()}
    return ", ".join([*settings["trains"], *(f"LoRA on {part}" for part in lora["parts"])]).replace("_", " ")


def _loss_figure(name: str, rows: list[dict[str, Any]]) -> Any:
    figure, axes = new_figure(4.2, 3.0)
    steps, losses = _series(rows, "step"), _series(rows, "loss")
    axes.plot(steps, losses, alpha=0.35, linewidth=1)
    axes.plot(steps, _running_mean(losses, max(1, len(rows) // 20)), linewidth=2)
    axes.set(title=name, xlabel="step", ylabel="loss", ylim=(0, 1.05 * losses.max()))
    return figure


def _figure(name: str, rows: list[dict[str, Any]], key: str, label: str, scale: float) -> Any:
    figure, axes = new_figure(4.2, 2.4)
    steps = _series(rows, "step")
    if isinstance(rows[0][key], dict):
        for part in rows[0][key]:
            axes.plot(steps, [row[key][part] for row in rows], label=part.replace("_", " "))
        axes.legend()
    else:
        axes.plot(steps, _series(rows, key) * scale)
    axes.set(title=name, xlabel="step", ylabel=label)
    axes.set_ylim(0, 1.05 * axes.dataLim.ymax)
    return figure


def _series(rows: list[dict[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([row[key] for row in rows], dtype=np.float64)


def _running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Over the `width` values up to each one, fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    means: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means
