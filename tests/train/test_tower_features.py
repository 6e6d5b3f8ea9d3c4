from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llavamed.manifest import Manifest
from llavamed.model.parts import Assembled, build
from llavamed.recipe import ModelSection, StageSection, TrainSection
from llavamed.train import features
from llavamed.train.data import Pixels, read_examples
from llavamed.train.features import Features, fit
from llavamed.train.forward import image_features
from llavamed.train.loop import run_stage
from llavamed.train.validate import read_rows


def test_features_of_a_picture_are_what_the_tower_says_of_it(assembled: Assembled, data: Path, images: Path) -> None:
    pixels = Pixels(images, assembled.processor)
    examples = read_examples(data, pixels, assembled.processor, max_tokens=128)
    kept = Features(assembled.model, examples, pixels)
    for key in ("red.png", "purple.png"):
        again, anew = (torch.from_numpy(source.load(key))[None] for source in (kept, pixels))
        with torch.no_grad():
            expected = image_features(assembled.model, anew)
            assert torch.allclose(image_features(assembled.model, again), expected, atol=1e-6)


def test_a_stage_that_keeps_features_learns_what_one_that_does_not_learns(
    parts: ModelSection, data: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves: list[list[float]] = []
    asked: list[int] = []
    looked = features.tower_features
    monkeypatch.setattr(features, "tower_features", lambda *given: asked.append(len(given[1])) or looked(*given))
    for limit in (features.FEATURE_CACHE_BYTES, 0):
        monkeypatch.setattr(features, "FEATURE_CACHE_BYTES", limit)
        assembled = build(parts, 0)
        pixels = Pixels(images, assembled.processor)
        examples = read_examples(data, pixels, assembled.processor, max_tokens=128)
        assert fit(assembled.model, examples) == (limit > 0)
        stage: Any = StageSection(trains=("projector", "language_model"), epochs=3, batch_size=4)
        train, out = TrainSection(max_tokens=128, tokens_per_pack=64), tmp_path / str(limit)
        run_stage(assembled, examples, pixels, "instruct", stage, train, out, 0, Manifest("stage"))
        curves.append([row["loss"] for row in read_rows(out / "metrics.jsonl")])
    assert sum(asked) == 7  # each picture once, in one of the two
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


@pytest.mark.parametrize("changed", [{"epochs": 1}, {"trains": ("projector", "vision_tower"), "epochs": 3}])
def test_nothing_is_kept_of_a_tower_that_trains_or_for_one_look(
    changed: dict[str, Any],
    assembled: Assembled,
    data: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llavamed.train.loop.Features", None)  # may not be called
    pixels = Pixels(images, assembled.processor)
    examples = read_examples(data, pixels, assembled.processor, max_tokens=128)
    stage = StageSection(batch_size=4, **changed)
    run_stage(assembled, examples, pixels, "align", stage, TrainSection(), tmp_path, 0, Manifest("stage"))
