"""The same picture, saved again or altered; the whole measurement is `benchmarks/lookalike.py`."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from llavamed.imaging.decode import glance
from llavamed.imaging.lookalike import SIDE, Gallery, miniature, phash


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


def test_a_frame_and_a_negative_are_seen_through(radiographs: list[Image.Image]) -> None:
    gallery = Gallery(radiographs[:10])
    for number, image in enumerate(radiographs[:10]):
        for grey in (0, 255):
            framed = ImageOps.expand(image, (30, 10, 5, image.height // 10), grey)
            for copy in (framed, ImageOps.invert(image), ImageOps.invert(framed)):
                found = gallery.find(saved(copy, 50))
                assert found is not None, (number, grey)
                assert found[0] == number
    others = [*radiographs[10:], *map(ImageOps.invert, radiographs[10:])]
    assert [gallery.find(ImageOps.expand(image, 20, 255)) for image in others] == [None] * 60


def test_a_framed_original_is_found_by_its_picture_alone() -> None:
    gallery = Gallery([ImageOps.expand(picture(1), 40, 255), picture(2)])
    found = gallery.find(saved(picture(1).resize((200, 200))))
    assert found is not None
    assert found[0] == 0
    assert gallery.find(picture(3)) is None


def test_copies_of_other_sizes_have_the_same_miniature(radiographs: list[Image.Image]) -> None:
    """Also where a scaled decode rounds the sides up: 413 pixels are 52 at an eighth, the last of them five eighths."""
    rng = random.Random(0)
    for image in radiographs[:10]:
        miniatures = []
        for _ in range(6):
            factor = rng.uniform(0.4, 1.5)
            out = io.BytesIO()
            image.resize((round(image.width * factor), round(image.height * factor))).save(out, "JPEG", quality=70)
            miniatures.append(miniature(glance(out.getvalue())))
        assert np.corrcoef(miniatures).min() > 0.99


def test_an_empty_gallery_and_an_empty_picture_find_nothing() -> None:
    blank = Image.new("L", (300, 300), 255)
    assert Gallery([]).find(picture(1)) is None
    assert Gallery([picture(1), blank]).find(blank) is None
    assert Gallery([picture(1), blank]).find(picture(2)) is None
