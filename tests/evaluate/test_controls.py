from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.errors import InputError
from llavamed.evaluate import controls
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.records import Question


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


# ---------------------------------------------------------------- text alone, and the order of the options


def choice(id: str, options: tuple[str, ...], letter: str) -> Question:
    return Question(id, "a.png", "Which?", options[ord(letter) - 65], True, options, letter=letter)


def test_text_only_asks_the_same_without_any_image(colour_benchmark: Benchmark) -> None:
    blind = controls.asked(colour_benchmark, "text-only")
    assert blind.image_names == []
    assert [blind.ask(q) for q in blind.questions] == [colour_benchmark.ask(q) for q in colour_benchmark.questions]
    assert controls.asked(colour_benchmark, "noise") is colour_benchmark


def test_every_option_stands_once_at_every_letter() -> None:
    question = choice("q", ("liver", "spleen", "lung", "lung"), "C")
    turned = [question, *controls.rotations(question)]
    assert [q.id for q in turned] == ["q", "q@1", "q@2", "q@3"]
    for letter in "ABCD":
        assert sorted(q.lettered[letter] for q in turned) == ["liver", "lung", "lung", "spleen"]
    assert [q.letter for q in turned] == ["C", "B", "A", "D"]
    for shift, q in enumerate(turned):
        assert q.lettered[q.letter] == "lung"
        assert controls.unturned(question, shift, q.letter) == "C"
        found = {controls.unturned(question, shift, letter) for letter in "ABCD"}
        assert found == set("ABCD")
    assert controls.unturned(question, 1, None) is None


def test_a_letter_that_is_not_offered_keeps_its_place() -> None:
    (turned,) = controls.rotations(choice("q", ("yes", "", "no"), "C"))
    assert turned.options == ("no", "", "yes")
    assert turned.letter == "A"


@pytest.mark.parametrize(
    "option", ["All of the above", "Both A and B", "None of the above", "A, C", "a & b", "option B", "A or D"]
)
def test_options_that_speak_of_one_another_are_not_moved(option: str) -> None:
    assert controls.rotations(choice("q", ("liver", "spleen", option), "A")) == []


@pytest.mark.parametrize("option", ["hepatitis B", "a mass", "vitamin D", "and a lung", "A 3 cm mass"])
def test_options_that_only_hold_a_letter_are_moved(option: str) -> None:
    assert len(controls.rotations(choice("q", ("liver", "spleen", option), "A"))) == 2


def test_a_control_that_a_benchmark_cannot_have_is_left_out_with_the_reason(colour_benchmark: Benchmark) -> None:
    text = replace(colour_benchmark, questions=(choice("q", ("a b", "c d"), "A"),))
    text = replace(text, questions=tuple(replace(q, image="") for q in text.questions))
    assert set(controls.left_out(text, controls.CONTROLS)) == set(controls.OF_THE_IMAGE)
    assert set(controls.left_out(colour_benchmark, controls.CONTROLS)) == {"rotated"}
    one = replace(colour_benchmark, questions=colour_benchmark.questions[:3])
    assert set(controls.left_out(one, ["shuffled", "blank"])) == {"shuffled"}
