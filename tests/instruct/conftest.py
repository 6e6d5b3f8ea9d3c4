"""A corpus of phantom pairs in memory and on disk, with the written truth beside it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.corpus.store import CorpusWriter
from llavamed.demo.truth import Truth, sample
from llavamed.demo.wording import tell
from llavamed.manifest import Manifest
from llavamed.records import Mention, Pair


def phantom_pairs(count: int, seed: int) -> list[tuple[Truth, Pair]]:
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        truth = sample(rng)
        telling = tell(truth, "Figure 1", rng)
        key = f"pair-{number:04d}"
        mentions = tuple(Mention(s) for s in telling.sentences)
        pair = Pair(key, f"{key}.png", telling.caption, "Figure 1", mentions, licence="CC-BY-4.0", domain=truth.domain)
        pairs.append((truth, pair))
    return pairs


@pytest.fixture(scope="session")
def world() -> list[tuple[Truth, Pair]]:
    return phantom_pairs(1600, seed=5)


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Path]:
    """Write pairs as a corpus folder; each image is a small grey square."""

    def make(pairs: list[Pair], name: str = "corpus") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        grey = io.BytesIO()
        Image.new("L", (40, 30), 120).save(grey, format="PNG")
        with CorpusWriter(folder) as writer:
            for pair in pairs:
                writer.add(pair, grey.getvalue())
        Manifest("corpus", {"keys": [p.key for p in pairs], "captions": [p.caption for p in pairs]}).write(folder)
        return folder

    return make
