"""Multiple choice, whole: a model that looks, one that reads the text alone, and one that likes a letter."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llavamed.engine.local import LocalEngine
from llavamed.errors import InputError
from llavamed.evaluate import benchmarks, run, show
from llavamed.evaluate.metrics import choice, mmmu
from llavamed.evaluate.score import score
from llavamed.model.parts import build
from llavamed.recipe import EvaluateSection, ModelSection

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}
SECTION = EvaluateSection(bootstrap=200)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """OmniMedVQA's form: 24 pictures of three colours; the right letter goes round."""
    rows = []
    for number in range(24):
        colour = list(COLOURS)[number % 3]
        image = tmp_path / "data" / "Images" / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10 + number), COLOURS[colour]).save(image)
        names = list(COLOURS)[number % 2 :] + list(COLOURS)[: number % 2]
        rows.append(
            {
                "question_id": f"q{number}",
                "question": "Which colour is it?",
                "gt_answer": colour,
                "image_path": f"Images/{number}.png",
                "modality_type": "drawing",
                **{f"option_{letter}": name for letter, name in zip("ABC", names, strict=True)},
                "option_D": None,
            }
        )
    file = tmp_path / "data" / "QA_information" / "Open-access" / "colours.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(rows))
    return tmp_path / "data"


class Engine:
    name = "fake"

    def __init__(self, answer: Callable[[Any], str]) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    def generate(self, requests: list[Any]) -> list[str]:
        self.asked += requests
        return [self.answer(request) for request in requests]

    def close(self) -> None:
        pass


def letter_of(request: Any, name: str) -> str:
    return next(line[0] for line in request.messages[-1].text.splitlines() if line[1:] == f". {name}")


def looks(request: Any) -> str:
    pixel = request.images[0].getpixel((0, 0)) if request.images else None
    name = next((name for name, colour in COLOURS.items() if colour == pixel), None)
    return letter_of(request, name) if name else "I cannot see it."


def evaluate(monkeypatch: pytest.MonkeyPatch, engine: Engine, folder: Path, out: Path) -> dict[str, Any]:
    monkeypatch.setattr(run, "connect", lambda model: engine)
    run.evaluate("fake", "omnimed-vqa", folder, out, SECTION)
    return show.read(out)


def test_a_model_that_looks_gets_the_same_option_in_every_order(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    engine = Engine(looks)
    body = evaluate(monkeypatch, engine, folder, tmp_path / "out")
    assert body["scores"]["accuracy"]["value"] == 100.0
    assert set(body["controls"]) == {"blank", "shuffled", "noise", "text-only", "rotated"}
    rotated = body["controls"]["rotated"]
    assert rotated["scores"]["accuracy"] == {
        "value": 100.0,
        "n": 24,
        "low": 100.0,
        "high": 100.0,
        "mode": "strict",
        "scorer": choice.STRICT,
    }
    assert rotated["scores"]["consistency"]["value"] == 100.0
    assert show.verdict(body).startswith("The model uses the image")
    assert len(engine.asked) == 5 * 24 + 2 * 24
    blind = [request for request in engine.asked if not request.images]
    assert len(blind) == 24
    assert all(request.messages[0].num_images == 0 for request in blind)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "The order of the options" in report
    assert "A. red; B. green; C. blue" in report


@pytest.mark.parametrize(
    ("answer", "accuracy", "every_order", "consistency"),
    [
        (lambda request: letter_of(request, "red"), 100 / 3, 100 / 3, 100.0),  # reads the text, prefers an option
        (lambda request: "A", 100 / 3, 100 / 3, 0.0),  # prefers a letter
    ],
)
def test_a_model_that_does_not_look_is_exposed(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    tmp_path: Path,
    answer: Callable[[Any], str],
    accuracy: float,
    every_order: float,
    consistency: float,
) -> None:
    body = evaluate(monkeypatch, Engine(answer), folder, tmp_path / "out")
    assert body["scores"]["accuracy"]["value"] == pytest.approx(accuracy, abs=1e-3)
    assert body["controls"]["rotated"]["scores"]["accuracy"]["value"] == pytest.approx(every_order, abs=1e-3)
    assert body["controls"]["rotated"]["scores"]["consistency"]["value"] == consistency
    assert show.verdict(body).startswith("The model does not use the image")
    assert show.headline(body)[1][0][-1] == "+0.0 (+0.0 to +0.0): does not use the image"


def test_luck_with_the_files_order_does_not_outlast_the_others(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    """A benchmark whose right option stands first more often than not, and a model that always says A."""
    file = folder / "QA_information" / "Open-access" / "colours.json"
    rows = json.loads(file.read_text())
    for row in rows:
        right = next(key for key in ("option_A", "option_B", "option_C") if row[key] == row["gt_answer"])
        row["option_A"], row[right] = row[right], row["option_A"]
    file.write_text(json.dumps(rows))
    body = evaluate(monkeypatch, Engine(lambda request: "A"), folder, tmp_path / "out")
    assert body["scores"]["accuracy"]["value"] == 100.0
    assert body["controls"]["rotated"]["scores"]["accuracy"]["value"] == pytest.approx(100 / 3, abs=1e-3)
    assert body["controls"]["rotated"]["gaps"]["accuracy"]["value"] == pytest.approx(200 / 3, abs=1e-3)
    assert [row[0] for row in show.orders(body)[1]][1] == "the file's order less that"


def test_a_failed_order_leaves_its_question_out_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    def fails_once(request: Any) -> str:
        if request.images and request.images[0].height == 10 and request.messages[-1].text.splitlines()[1] != "A. red":
            raise RuntimeError("busy")
        return looks(request)

    body = evaluate(monkeypatch, Engine(fails_once), folder, tmp_path / "out")
    rotated = body["controls"]["rotated"]
    assert rotated["n_failed"] == 2
    assert rotated["scores"]["accuracy"]["n"] == 23


def test_if_every_other_order_fails_it_is_counted_and_nothing_is_made_up(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    first: set[tuple[int, str]] = set()

    def fails_later(request: Any) -> str:
        if request.images and request.images[0].getpixel((0, 0)) in COLOURS.values():
            place = (request.images[0].height, request.messages[-1].text)
            if len(first) >= 24 and place not in first:
                raise RuntimeError("busy")
            first.add(place)
        return looks(request)

    body = evaluate(monkeypatch, Engine(fails_later), folder, tmp_path / "out")
    assert body["controls"]["rotated"] == {"scores": {}, "gaps": {}, "n_failed": 48}
    assert show.orders(body)[1] == []


def test_a_benchmark_without_images_has_no_control_of_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = {f"op{letter}": text for letter, text in zip("abcd", ("liver", "spleen", "lung", "kidney"), strict=True)}
    rows = [{"id": str(n), "question": f"Which {n}?", "cop": n % 4 + 1, **options} for n in range(8)]
    data = tmp_path / "data"
    data.mkdir()
    (data / "dev.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = Engine(lambda request: "B. spleen")
    monkeypatch.setattr(run, "connect", lambda model: engine)
    made = run.evaluate("fake", "medmcqa", data, tmp_path / "out", SECTION)
    body = show.read(tmp_path / "out")
    assert list(body["controls"]) == ["rotated"]
    assert not any(request.images for request in engine.asked)
    assert "no images" in show.verdict(body)
    assert made.settings["max_new_tokens"] == 32  # the benchmark's own, where none is asked for
    assert "likelihoods" in show.family(body).why_they_differ


def test_by_likelihood_every_answer_is_a_letter_and_only_a_model_in_this_process_can_give_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {f"op{letter}": text for letter, text in zip("abcd", ("liver", "spleen", "lung", "kidney"), strict=True)}
    rows = [{"id": str(n), "question": f"Which {n}?", "cop": n % 4 + 1, **options} for n in range(8)]
    (tmp_path / "dev.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="fake: an endpoint gives no likelihoods, which medmcqa-likelihood needs"):
        evaluate_named(monkeypatch, Engine(looks), "medmcqa-likelihood", tmp_path)
    engine = LocalEngine.around(build(ModelSection(), seed=0), "tiny")
    body = evaluate_named(monkeypatch, engine, "medmcqa-likelihood", tmp_path)
    assert body["scores"]["accuracy"]["value"] == body["scores"]["accuracy_official"]["value"]
    assert body["provenance"]["parse_failure_percent"] == 0
    assert body["provenance"]["decoding"] == {"likeliest_of": "the letters"}
    answers = [json.loads(line) for line in (tmp_path / "out" / "real" / "predictions.jsonl").read_text().splitlines()]
    assert {row["text"] for row in answers} <= set("ABCD")
    assert list(body["controls"]) == ["rotated"]


def evaluate_named(monkeypatch: pytest.MonkeyPatch, engine: Any, name: str, folder: Path) -> dict[str, Any]:
    monkeypatch.setattr(run, "connect", lambda model: engine)
    run.evaluate("fake", name, folder, folder / "out", SECTION)
    return show.read(folder / "out")


def test_visual_chat_is_asked_once_and_not_scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "images" / "1.jpg")
    row = {
        "question_id": 1, "image": "1.jpg", "type": "conversation", "text": "What?\n<image>", "gpt4_answer": "A scan.",
        "fig_label": "Fig. 1", "fig_caption": "x", "in_text_mention": None, "domain": {"ct_scan": True},
    }  # fmt: skip
    (tmp_path / "data" / "llava_med_eval_qa50_qa.jsonl").write_text(json.dumps(row) + "\n")
    engine = Engine(lambda request: "A scan.")
    monkeypatch.setattr(run, "connect", lambda model: engine)
    run.evaluate("fake", "llava-med-chat", tmp_path / "data", tmp_path / "out", SECTION)
    body = show.read(tmp_path / "out")
    assert (body["scores"], body["controls"], body["n"]) == ({}, {}, 1)
    assert "for a judge" in show.verdict(body)
    assert len(engine.asked) == 1
    assert json.loads((tmp_path / "out" / "real" / "predictions.jsonl").read_text())["text"] == "A scan."
    with pytest.raises(InputError, match="judged, not counted"):
        run.small_score("llava-med-chat", tmp_path / "data", 1)


def test_the_answer_key_alone_is_not_asked(monkeypatch: pytest.MonkeyPatch, shared_data: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "connect", lambda model: Engine(looks))
    with pytest.raises(InputError, match="nothing to ask"):
        run.evaluate("fake", "mmmu", shared_data / "mmmu", tmp_path / "out", SECTION)


def unread_mmmu(folder: Path, source: Path, reverse: bool) -> list[dict[str, Any]]:
    """The published outputs with nothing readable in any, the rows of each subject sorted by id as text."""
    written: list[dict[str, Any]] = []
    for file in sorted(source.glob("*/output.json")):
        rows = sorted(json.loads(file.read_text()), key=lambda row: row["id"], reverse=reverse)
        rows = [row | {"response": "?"} for row in rows]
        target = folder / file.parent.name / file.name
        target.parent.mkdir(parents=True)
        target.write_text(json.dumps(rows))
        written += rows
    return written


@pytest.mark.parametrize("reverse", [False, True])
def test_mmmus_letters_are_drawn_in_the_order_of_the_rows_of_the_output_files(
    tmp_path: Path, shared_data: Path, reverse: bool
) -> None:
    rows = unread_mmmu(tmp_path, shared_data / "mmmu" / "llava1.5_13b", reverse)
    chance = random.Random(42)
    lucky = {row["id"] for row in rows if "index2ans" in row and chance.choice(row["all_choices"]) == row["answer"]}
    scores = score(benchmarks.load("mmmu", shared_data / "mmmu"), tmp_path, bootstrap=10)
    assert {item.question.id for item in scores.items if item.credits["accuracy_official"]} == lucky
    ids = [item.question.id for item in scores.items]
    assert ids.index("validation_Art_2") + 1 == ids.index("validation_Art_3")  # the items stay in their own order


def test_mmmu_med_alone_says_that_its_draws_are_others(tmp_path: Path, shared_data: Path) -> None:
    source, key = shared_data / "mmmu" / "llava1.5_13b", shared_data / "mmmu"
    rows = unread_mmmu(tmp_path, source, reverse=False)
    drawn = sum("index2ans" in row and mmmu.subject(row["id"]) in mmmu.MEDICAL for row in rows)
    (note,) = score(benchmarks.load("mmmu-med", key), tmp_path, bootstrap=10).provenance["notes"]
    assert f"drawn at random for {drawn} answer(s)" in note
    assert "notes" not in score(benchmarks.load("mmmu-med", key), source, bootstrap=10).provenance  # all are read
    assert "notes" not in score(benchmarks.load("mmmu", key), tmp_path, bootstrap=10).provenance
