"""A benchmark of plain colours, and engines that look at them, guess, or break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llavamed.evaluate import benchmarks
from llavamed.evaluate.metrics.mme import COGNITION, PERCEPTION

COLOURS = {
    "red": (200, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 200),
    "white": (250, 250, 250),
    "black": (5, 5, 5),
    "yellow": (220, 220, 20),
}


def nearest_colour(image: Image.Image) -> str | None:
    pixel = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    for name, colour in COLOURS.items():
        if all(abs(a - b) < 12 for a, b in zip(pixel, colour, strict=True)):
            return name
    return None


class Looker:
    """Answers from the picture, and "no" or "grey" when it sees none of its colours."""

    name = "looker"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.batches: list[int] = []

    def generate(self, requests: list[Any]) -> list[str]:
        self.batches.append(len(requests))
        return [self.answer(request) for request in requests]

    def close(self) -> None:
        self.closed = True

    def answer(self, request: Any) -> str:
        question = request.messages[-1].text
        self.asked.append(question)
        colour = nearest_colour(request.images[0]) if request.images else None
        if question.startswith("Is it"):
            return "Yes." if colour and colour in question else "No."
        return f"It is {colour or 'grey'}"


class Guesser(Looker):
    """Answers without looking."""

    name = "guesser"

    def answer(self, request: Any) -> str:
        question = request.messages[-1].text
        self.asked.append(question)
        return "Yes." if question.startswith("Is it") else "It is red"


@pytest.fixture
def looker() -> Looker:
    return Looker()


@pytest.fixture
def guesser() -> Guesser:
    return Guesser()


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder in the phantom format: 18 images (each colour in three equal files), 54 questions."""
    folder = tmp_path / "colours"
    (folder / "images").mkdir(parents=True)
    names = list(COLOURS)
    rows = []
    for index in range(18):
        colour = names[index % 6]
        other = names[(index + 1) % 6]
        Image.new("RGB", (20, 16), COLOURS[colour]).save(folder / "images" / f"{index}.png")
        common = {"image": f"{index}.png", "groups": {"colour": colour}}
        yes_no = {**common, "closed": True, "options": ["yes", "no"]}
        rows.append({"id": f"{index}a", "question": f"Is it {colour} here?", "answer": "yes", **yes_no})
        rows.append({"id": f"{index}b", "question": f"Is it {other}?", "answer": "no", **yes_no})
        rows.append({"id": f"{index}c", "question": "Which colour?", "answer": colour, "closed": False, **common})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def colour_benchmark(colours: Path) -> benchmarks.Benchmark:
    return benchmarks.load("phantom", colours)


@pytest.fixture
def mme_folder(tmp_path: Path) -> Path:
    """MME's release with two pictures a subtask: half of the subtasks have pictures and texts together, half apart."""
    root = tmp_path / "mme" / "MME_Benchmark_release_version"
    for number, subtask in enumerate((*PERCEPTION, *COGNITION)):
        texts = root / subtask / ("questions_answers_YN" if number % 2 else "")
        images = root / subtask / ("images" if number % 2 else "")
        texts.mkdir(parents=True, exist_ok=True)
        images.mkdir(parents=True, exist_ok=True)
        for picture in range(2):
            Image.new("RGB", (4, 4)).save(images / f"{picture:04d}.png")
            (texts / f"{picture:04d}.txt").write_text(
                f"Is there a {subtask} {picture}? Please answer yes or no.\tYes\n"
                f"Is there no {subtask} {picture}? Please answer yes or no.\tNo\n"
            )
    return tmp_path / "mme"
