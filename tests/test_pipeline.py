"""The stages in order: what the later ones need is checked before the first one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llavamed import pipeline, recipe
from llavamed.errors import InputError


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"evaluate.data": None}, "set evaluate.data"),
        ({"evaluate.benchmarks": ["vqarad"]}, "vqa-rad"),
        ({"evaluate.data": "absent"}, "absent"),
        ({"train.finetune": {"trains": ["projector"]}}, r"train\.finetune\.data"),
    ],
)
def test_a_slip_in_a_late_stage_is_found_before_the_first(values: dict[str, Any], told: str, tmp_path: Path) -> None:
    from llavamed.demo.benchmark import write_benchmark

    write_benchmark(tmp_path / "questions", 3, seed=0, image_size=32)
    base = {"corpus.articles": str(tmp_path / "articles"), "evaluate.data": str(tmp_path / "questions")}
    settings = recipe.changed(recipe.load("tiny"), {**base, **values})
    with pytest.raises(InputError, match=told):
        pipeline.run(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_a_stage_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("name: empty\n")
    with pytest.raises(InputError, match="names no stage"):
        pipeline.run(recipe.load(str(tmp_path / "empty.yaml")), tmp_path / "out")


def test_rows_are_called_as_in_the_papers_ablation() -> None:
    tiny = recipe.load("tiny")
    stages = ["align", "instruct"]
    labels = [pipeline._label(tiny, stages, name) for name in ("untrained", *stages)]
    assert labels == ["untrained projector", "align only", "align + instruct"]
    more = recipe.changed(tiny, {"model.init_from": "elsewhere"})
    assert pipeline._label(more, ["finetune"], "untrained") == "before training"
    assert pipeline._label(more, ["finetune"], "finetune") == "finetune only"
