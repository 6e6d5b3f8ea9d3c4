"""The phantom world: who sees is far above its controls, and who reads only the question is exposed by them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llavamed.demo.benchmark import write_benchmark
from llavamed.evaluate import benchmarks, run, show
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.recipe import EvaluateSection
from llavamed.records import Question

SECTION = EvaluateSection(bootstrap=300)
COUNT = 104


class Reader:
    """The best that can be done without looking: of each kind of question the answer that is right most often, learned
    from the benchmark itself. A text-only model can have no more from its training."""

    name = "reader"

    def __init__(self, benchmark: Benchmark) -> None:
        kinds: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
        for question in benchmark.questions:
            kinds[self.kind(question)][question.answer] += 1
        self.usual = {kind: answers.most_common(1)[0][0] for kind, answers in kinds.items()}
        self.asked = {benchmark.ask(question): question for question in benchmark.questions}

    @staticmethod
    def kind(question: Question) -> tuple[str, bool]:
        return question.groups["kind"], question.closed

    def generate(self, requests: list[Any]) -> list[str]:
        return [self.answer(self.asked[request.messages[-1].text], request.images) for request in requests]

    def answer(self, question: Question, images: tuple[Image.Image, ...]) -> str:
        return f"It is {self.usual[self.kind(question)]}."

    def close(self) -> None: ...


class Seer(Reader):
    """Knows every picture of the world when it sees it, and reads where it sees none of them."""

    name = "seer"

    def __init__(self, benchmark: Benchmark) -> None:
        super().__init__(benchmark)
        self.pictured = {
            self.look(Image.open(benchmark.images / question.image)): question for question in benchmark.questions
        }

    @staticmethod
    def look(image: Image.Image) -> str:
        return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).hexdigest()

    def answer(self, question: Question, images: tuple[Image.Image, ...]) -> str:
        seen = self.pictured.get(self.look(images[0])) if images else None
        # of the wrong picture it says what is there, if the world has told it
        known = seen is not None and self.kind(seen) == self.kind(question)
        return f"It is {seen.answer}." if known and seen is not None else super().answer(question, images)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_benchmark(folder, COUNT, seed=11, image_size=64)
    return folder


def scores_of(engine: Any, world: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(run, "connect", lambda _: engine)
    run.evaluate(engine.name, "phantom", world, out, SECTION)
    return show.read(out)


def test_a_model_that_sees_is_far_above_its_controls(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = scores_of(Seer(benchmarks.load("phantom", world)), world, tmp_path / "seer", monkeypatch)
    assert body["scores"]["closed_accuracy"]["value"] == body["scores"]["open_recall"]["value"] == 100
    for control in ("blank", "shuffled", "noise", "text-only"):
        for metric in ("closed_accuracy", "open_recall"):
            gap = body["controls"][control]["gaps"][metric]
            assert gap["uses_image"] is True
            assert gap["low"] > 15, (control, metric)
    assert show.verdict(body).startswith("The model uses the image")


def test_a_text_only_model_has_a_respectable_score_and_is_exposed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = scores_of(Reader(benchmarks.load("phantom", world)), world, tmp_path / "reader", monkeypatch)
    assert body["scores"]["closed_accuracy"]["value"] > 50
    assert body["scores"]["open_recall"]["value"] > 40  # one would take it for something
    for control in ("blank", "shuffled", "noise", "text-only"):
        gaps = body["controls"][control]["gaps"]
        assert {gaps[metric]["uses_image"] for metric in ("closed_accuracy", "open_recall")} == {False}
    assert show.verdict(body).startswith("The model does not use the image")
    assert "does not use the image" in (tmp_path / "reader" / "report.html").read_text()
