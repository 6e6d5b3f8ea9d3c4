from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.errors import InputError
from llavamed.evaluate import controls


def test_no_image_keeps_its_own_content_whatever_is_repeated() -> None:
    rng = random.Random(0)
    for seed in range(50):
        count = rng.randint(2, 30)
        contents = {f"image{i}": f"content{rng.randint(0, count // 2)}" for i in range(count)}
        if len(set(contents.values())) < 2:
            continue
        shown = controls.exchange(contents, seed)
        assert shown.keys() == contents.keys()
        assert all(contents[name] != contents[other] for name, other in shown.items())


def test_the_exchange_depends_on_seed_and_content_not_on_the_order_of_questions() -> None:
    contents = {f"image{i}": f"{i * 7919 % 101}" for i in range(40)}
    backwards = dict(reversed(contents.items()))
    assert controls.exchange(contents, 1) == controls.exchange(backwards, 1)
    assert controls.exchange(contents, 1) != controls.exchange(contents, 2)


def test_one_image_cannot_be_shuffled() -> None:
    with pytest.raises(InputError, match="at least two different images"):
        controls.exchange({"a": "same", "b": "same"}, 0)


def _png(colour: tuple[int, int, int], size: tuple[int, int] = (31, 17)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, format="PNG")
    return out.getvalue()


def test_each_control_shows_what_it_says() -> None:
    files = {"a": _png((255, 0, 0)), "b": _png((0, 255, 0), (20, 20)), "copy of a": _png((255, 0, 0))}
    show = {name: controls.pictures(name, list(files), files.__getitem__, seed=3) for name in controls.CONTROLS}
    assert show["real"]("a").getpixel((0, 0)) == (255, 0, 0)
    assert show["shuffled"]("a").getpixel((0, 0)) == show["shuffled"]("copy of a").getpixel((0, 0)) == (0, 255, 0)
    assert show["shuffled"]("b").getpixel((0, 0)) == (255, 0, 0)
    blank = show["blank"]("a")
    assert blank.size == (31, 17)
    assert blank.getcolors() == [(31 * 17, (128, 128, 128))]
    noise = np.asarray(show["noise"]("a"))
    assert noise.shape == (17, 31, 3)
    assert 110 < noise.mean() < 145
    assert noise.std() > 60
    assert np.array_equal(noise, np.asarray(show["noise"]("a")))  # seeded
    assert not np.array_equal(noise, np.asarray(show["noise"]("copy of a")))


def test_an_unknown_control_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(InputError, match="real, blank, shuffled, noise"):
        controls.pictures("blurred", [], lambda name: b"", 0)


def test_every_question_of_vqa_rad_gets_another_picture(shared_data: Path) -> None:
    folder = shared_data / "vqa_rad" / "images"
    names = sorted(path.name for path in folder.iterdir())[:60]
    show = controls.pictures("shuffled", names, lambda name: (folder / name).read_bytes(), seed=0)
    for name in names[:10]:
        own = np.asarray(Image.open(folder / name).convert("RGB"))
        other = np.asarray(show(name))
        assert own.shape != other.shape or not np.array_equal(own, other)
