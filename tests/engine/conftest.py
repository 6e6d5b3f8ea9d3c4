"""A model with opinions: the shipped tiny parts with weights drawn wide enough that answers differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llavamed.engine.local import LocalEngine
from llavamed.engine.request import Request
from llavamed.manifest import Manifest
from llavamed.model import folder
from llavamed.model.parts import build
from llavamed.recipe import ModelSection
from llavamed.records import user


def _picture(seed: int, width: int = 90, height: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def picture() -> Callable[[int], Image.Image]:
    """An image of noise, by number."""
    return _picture


@pytest.fixture(scope="session")
def asked() -> Callable[..., Request]:
    """A question about image `number`, the longer the higher the number: `(number, tokens=12, **sampling)`."""

    def make(number: int, tokens: int = 12, **sampling: Any) -> Request:
        question = user("What is shown" + " in this image" * number + "?", images=1)
        return Request((question,), (_picture(number),), max_new_tokens=tokens, **sampling)

    return make


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = build(ModelSection(), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if parameter.ndim >= 2 and "vision_tower" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    path = tmp_path_factory.mktemp("runs") / "wild"
    folder.save(made, path / "instruct" / "model")
    Manifest("stage").write(path / "instruct")
    (path / "recipe.yaml").write_text("train: {instruct: {}}\n")
    return path


@pytest.fixture(scope="session")
def engine(run_folder: Path) -> LocalEngine:
    return LocalEngine(run_folder)
