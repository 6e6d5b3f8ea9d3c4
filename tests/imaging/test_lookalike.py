"""The same picture, saved again or altered; the whole measurement is `benchmarks/lookalike.py`."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.imaging.decode import glance
from llavamed.imaging.lookalike import SIDE, Gallery, phash


def picture(seed: int, size: int = 256) -> Image.Image:
    """Soft blobs with fine structure on them, as tissue has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(rng.integers(0, 256, (60, 60), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    return Image.blend(coarse, fine, 0.3)


def saved(image: Image.Image, quality: int = 60) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return glance(out.getvalue(), side=SIDE).grey


@pytest.fixture(scope="module")
def radiographs(shared_data: Path) -> list[Image.Image]:
    files = sorted((shared_data / "vqa_rad/images").glob("*.jpg"))[:40]
    return [glance(file.read_bytes(), side=SIDE).grey for file in files]


def test_the_hash_is_that_of_the_imagehash_package(radiographs: list[Image.Image]) -> None:
    imagehash = pytest.importorskip("imagehash")
    for image in radiographs:
        assert f"{phash(image):016x}" == str(imagehash.phash(image))


def test_the_hash_survives_scaling_and_recompression_and_tells_pictures_apart() -> None:
    for seed in range(10):
        image = picture(seed)
        again = saved(image.resize((180, 200)), 40)
        assert (phash(image) ^ phash(again)).bit_count() <= 6
        assert (phash(image) ^ phash(picture(seed + 100))).bit_count() > 12


def test_a_gallery_finds_altered_copies_and_nothing_else(radiographs: list[Image.Image]) -> None:
    gallery = Gallery(radiographs[:20])
    rng = random.Random(0)
    for number, image in enumerate(radiographs[:20]):
        width, height = image.size
        left, top = rng.uniform(0, 0.05), rng.uniform(0, 0.05)
        cut = image.crop((int(width * left), int(height * top), int(width * (0.95 + left)), int(height * (0.95 + top))))
        small = cut.resize((int(width * 0.6), int(height * 0.6)))
        found = gallery.find(saved(small.point([int(255 * (i / 255) ** 0.7) for i in range(256)]), 40))
        assert found is not None, number
        assert found[0] == number
    assert [gallery.find(image) for image in radiographs[20:]] == [None] * 20


def test_an_empty_gallery_and_an_empty_picture_find_nothing() -> None:
    blank = Image.new("L", (300, 300), 255)
    assert Gallery([]).find(picture(1)) is None
    assert Gallery([picture(1), blank]).find(blank) is None
    assert Gallery([picture(1), blank]).find(picture(2)) is None
