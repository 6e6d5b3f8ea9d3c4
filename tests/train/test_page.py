from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llavamed.recipe import Recipe
from llavamed.train.page import write_page

PEAK = "989 TFLOP/s, the datasheet's for h200 in bfloat16"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(steps: int, mfu: float | None) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "loss": 4 / step**0.5,
            "grad_norm": 1.0,
            "learning_rates": {"projector": 1e-3 / step, "language_model": 2e-5 / step},
            "examples": 8,
            "tokens": 5728,
            "supervised_tokens": 968,
            "packs": 2,
            "fill": 0.99,
            "seconds": 0.5,
            "tokens_per_second": 11456.0 + 100 * (step % 5),
            "supervised_tokens_per_second": 1936.0,
            "examples_per_second": 16.0,
            "tflops_per_second": 400.0,
            "mfu": mfu,
            "peak": None if mfu is None else PEAK,
            "peak_memory_mb": 70_000.0,
            "seconds_left": 1.0,
        }
        for step in range(1, steps + 1)
    ]


def finished(steps: int) -> dict[str, Any]:
    counts = {"steps": steps, "examples": 8 * steps, "tokens": 5728 * steps, "supervised_tokens": 968 * steps}
    return {
        "counts": {**counts, "trainable_parameters": 20_979_712},
        "seconds": 0.5 * steps,
        "settings": {"trains": ["projector", "language_model"]},
        "extra": {"first_loss": 4.0, "last_loss": 0.6},
    }


def page(out: Path, mfu: float | None = 0.404) -> str:
    stages = {name: finished(40) for name in ("align", "instruct")}
    for name in stages:
        write_rows(out / name / "metrics.jsonl", metrics(40, mfu))
    write_page(out, Recipe(name="small"), stages)
    return (out / "report.html").read_text()


def headings(html: str) -> dict[str, int]:
    """Figures under each heading."""
    sections = re.findall(r"<h2>(.*?)</h2>(.*?)</section>", html, re.DOTALL)
    return {title: body.count("<img") for title, body in sections}


def test_every_curve_is_drawn_for_every_stage(tmp_path: Path) -> None:
    html = page(tmp_path)
    titles = (
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Throughput",
        "Examples per second",
        "TFLOP per second",
        "Fill",
        "Memory",
    )
    assert headings(html) == {"Stages": 0, "Speed": 0, **{title: 2 for title in titles}}
    assert "MFU: the share of 989 TFLOP/s, the datasheet&#39;s for h200 in bfloat16." in html
    for cell in ("400", "40.4%", "99.0%"):
        assert f"<td>{cell}</td>" in html


def test_without_a_peak_no_share_is_shown(tmp_path: Path) -> None:
    html = page(tmp_path, mfu=None)
    assert "MFU: the share" not in html
    assert "<td>400</td><td>-</td>" in html


def test_a_stage_of_an_earlier_version_is_shown_by_what_it_has(tmp_path: Path) -> None:
    old = [{k: row[k] for k in ("step", "loss", "grad_norm", "learning_rates", "seconds")} for row in metrics(3, None)]
    write_rows(tmp_path / "align" / "metrics.jsonl", old)
    write_page(tmp_path, Recipe(name="small"), {"align": finished(3)})
    found = headings((tmp_path / "report.html").read_text())
    assert found == {"Stages": 0, "Speed": 0, "Loss": 1, "Learning rate": 1, "Gradient norm": 1}


@pytest.mark.parametrize("rows", [[{"step": 20, "loss": 1.1}], [{"step": 20, "score": 61.0, "score_name": "accuracy"}]])
def test_validation_changes_the_figure_of_its_stage_alone(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    def figures(html: str) -> list[str]:
        return re.findall(r'<img src="([^"]+)" alt="Loss"', html)

    before = figures(page(tmp_path))
    write_rows(tmp_path / "instruct" / "validation.jsonl", rows)
    html = page(tmp_path)
    assert [a == b for a, b in zip(before, figures(html), strict=True)] == [True, False]
    assert "held out" in html


def test_the_step_whose_model_is_left_is_told(tmp_path: Path) -> None:
    write_rows(tmp_path / "align" / "metrics.jsonl", metrics(9, None))
    body = finished(9)
    body["extra"]["model_of_step"] = 6
    write_page(tmp_path, Recipe(name="small"), {"align": body})
    assert "by the loss on examples held out: align that of step 6." in (tmp_path / "report.html").read_text()
    assert "lowest loss" not in page(tmp_path)


def test_answers_over_time_are_shown_with_their_image(tmp_path: Path, images: Path) -> None:
    common = {"question": "What colour is <b>this</b>?", "reference": "It is red."}
    rows = [
        {**common, "step": step, "id": name, "image": image, "answer": f"answer {step}"}
        for step in range(0, 100, 10)
        for name, image in (("a", str(images / "red.png")), ("b", "data:image/png;base64,AAAA"), ("c", "gone.png"))
    ]
    write_rows(tmp_path / "instruct" / "samples.jsonl", rows)
    html = page(tmp_path)
    cards = re.findall(r'<article class="card">(.*?)</article>', html, re.DOTALL)
    assert [("data:image/jpeg" in c, "base64,AAAA" in c, "<img" in c) for c in cards] == [
        (True, False, True),
        (False, True, True),
        (False, False, False),
    ]
    assert re.findall(r"<b>step (\d+)</b> answer \1<", cards[0]) == ["0", "20", "40", "50", "70", "90"]
    assert "What colour is &lt;b&gt;this&lt;/b&gt;?" in cards[0]
    assert "It is red." in cards[0]
    assert "Answers while training: instruct" in html
    assert "Answers while training: align" not in html
