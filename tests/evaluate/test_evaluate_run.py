"""A whole evaluation on the colours: folder, report, skipping, resuming, failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llavamed import manifest
from llavamed.errors import InputError
from llavamed.evaluate import page, run, show
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.score import score
from llavamed.recipe import EvaluateSection
from llavamed.records import Prediction

SECTION = EvaluateSection(bootstrap=200)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch, looker: Any, guesser: Any) -> dict[str, Any]:
    engines = {"looker": looker, "guesser": guesser}
    monkeypatch.setattr(run, "connect", engines.__getitem__)
    return engines


def test_a_model_that_looks_is_told_from_one_that_guesses(connected: Any, colours: Path, tmp_path: Path) -> None:
    made = run.evaluate("looker", "phantom", colours, tmp_path / "looker", SECTION)
    run.evaluate("guesser", "phantom", colours, tmp_path / "guesser", SECTION)
    looker, guesser = show.read(tmp_path / "looker"), show.read(tmp_path / "guesser")
    assert looker["scores"]["closed_accuracy"]["value"] == 100.0
    assert looker["controls"]["blank"]["scores"]["closed_accuracy"]["value"] == 50.0
    assert set(looker["controls"]) == {"blank", "shuffled", "noise", "text-only"}
    assert looker["provenance"]["controls_left_out"] == {
        "rotated": "no question has lettered options that can be moved"
    }
    assert "uses the image: every score falls" in show.verdict(looker)
    assert "does not use the image" in show.verdict(guesser)
    assert "does not use the image" in (tmp_path / "guesser" / "report.html").read_text()
    assert made.counts == {"questions": 54, "closed": 36, "open": 18, "images": 18, "failed": 0}
    assert looker["provenance"]["model"] == "looker"
    assert looker["provenance"]["decoding"] == {"temperature": 0.0, "max_new_tokens": 64}


def test_the_folder_is_complete_and_described(connected: Any, colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    made = run.evaluate("looker", "phantom", colours, out, SECTION)
    body = manifest.require(out, "eval", "")
    assert {f"{control}/predictions.jsonl" for control in ("real", "blank", "shuffled", "noise", "text-only")} <= set(
        body["files"]
    )
    assert {"items.jsonl", "scores.json", "report.html"} <= set(body["files"])
    assert manifest.is_done(out, made)
    report = (out / "report.html").read_text()
    for words in ("What the picture is worth", "Official and strict", "By group", "Single answers", "data:image/jpeg"):
        assert words in report


def test_a_complete_folder_is_left_and_an_incomplete_one_goes_on(
    connected: Any, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, looker = tmp_path / "eval", connected["looker"]
    first = run.evaluate("looker", "phantom", colours, out, SECTION)
    scores = (out / "scores.json").read_bytes()
    looker.asked.clear()
    again = run.evaluate("looker", "phantom", colours, out, SECTION)
    assert looker.asked == []
    assert "eval phantom: finished already, skipped" in capsys.readouterr().err
    assert (again.counts, again.funnel, again.fingerprint) == (first.counts, first.funnel, first.fingerprint)

    manifest.begin(out, "eval")  # as after a kill during the noise control
    journal = out / "noise" / "predictions.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    run.evaluate("looker", "phantom", colours, out, SECTION)
    assert len(looker.asked) == 1
    assert (out / "scores.json").read_bytes() == scores

    looker.asked.clear()
    run.evaluate("looker", "phantom", colours, out, SECTION.model_copy(update={"max_new_tokens": 32}))
    assert len(looker.asked) == 5 * 54


def test_changed_weights_are_noticed(tmp_path: Path) -> None:
    model = tmp_path / "stage" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"one")
    (model / "config.json").write_text("{}")
    before = run.model_fingerprint(str(model))
    manifest.Manifest("stage", {"a": 1}).write(tmp_path / "stage")
    (tmp_path / "recipe.yaml").write_text("train: {stage: {}}")
    assert run.model_fingerprint(str(tmp_path / "stage")) == run.model_fingerprint(str(model)) == before
    (model / "model.safetensors").write_bytes(b"two")
    manifest.Manifest("stage", {"a": 1}).write(tmp_path / "stage")  # the same settings, other weights
    assert run.model_fingerprint(str(tmp_path / "stage")) != before
    assert run.model_fingerprint("http://a/v1") != run.model_fingerprint("http://b/v1")


def test_a_password_in_the_models_url_is_not_written_down(
    monkeypatch: pytest.MonkeyPatch, looker: Any, colours: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "connect", lambda model: looker)
    run.evaluate("http://me:secret@localhost:1/v1#small", "phantom", colours, tmp_path / "out", SECTION)
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and b"secret" in p.read_bytes()]
    assert (manifest.read(tmp_path / "out") or {})["extra"] == {"model": "http://localhost:1/v1#small"}


def test_failed_requests_are_counted_told_and_asked_again(
    connected: Any, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, looker = tmp_path / "eval", connected["looker"]
    answer = looker.answer

    def fails_on_grey(request: Any) -> str:
        if request.images and request.images[0].getpixel((0, 0)) == (128, 128, 128):
            raise RuntimeError("busy")
        return answer(request)

    looker.answer = fails_on_grey
    made = run.evaluate("looker", "phantom", colours, out, SECTION)
    assert made.counts["failed"] == 54
    assert made.funnel["failed requests, blank (left out of the gaps)"] == 54
    assert made.funnel["failed requests (counted as wrong)"] == 0
    assert "requests failed (blank 54)" in capsys.readouterr().err
    assert "No verdict against blank (54)" in show.verdict(show.read(out))
    looker.answer = answer
    looker.asked.clear()
    made = run.evaluate("looker", "phantom", colours, out, SECTION)
    assert len(looker.asked) == 54
    assert made.counts["failed"] == 0
    assert show.verdict(show.read(out)).startswith("The model uses the image")


def test_if_every_request_fails_the_run_says_so(connected: Any, colours: Path, tmp_path: Path) -> None:
    def broken(request: Any) -> str:
        raise RuntimeError("no memory")

    connected["looker"].answer = broken
    with pytest.raises(InputError, match=r"every request failed .*no memory"):
        run.evaluate("looker", "phantom", colours, tmp_path / "eval", SECTION)
    assert manifest.read(tmp_path / "eval") is None
    assert not (tmp_path / "eval" / "scores.json").exists()
    assert connected["looker"].closed


def test_tables_have_a_cell_for_every_column(connected: Any, colours: Path, tmp_path: Path) -> None:
    run.evaluate("looker", "phantom", colours, tmp_path / "out", SECTION)
    scores = show.read(tmp_path / "out" / "scores.json")
    for table in (show.headline, show.gaps, show.rules):
        columns, rows = table(scores)
        assert rows
        assert {len(row) for row in rows} == {len(columns)}


def test_failures_come_first_on_the_cards(colour_benchmark: Benchmark) -> None:
    questions = colour_benchmark.questions
    rows = [
        Prediction(q.id, q.answer if i % 2 else "?", failed="lost" if i == 40 else "") for i, q in enumerate(questions)
    ]
    items = score(colour_benchmark, rows, bootstrap=10).items
    chosen = page.choose(items)
    assert len(chosen) == len({item.question.id for item in chosen}) == 24
    assert chosen[0].prediction.failed == "lost"
    credits = [item.credit for item in chosen]
    assert credits == sorted(credits)
    assert credits.count(1.0) == 8


def test_slake_answers_made_elsewhere_get_a_report_without_pictures(shared_data: Path, tmp_path: Path) -> None:
    raw = json.loads((shared_data / "slake" / "test.json").read_text())
    answers = [{"qid": row["qid"], "answer": "No"} for row in raw if row["q_lang"] == "en"]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    scores = run.evaluate_predictions("slake", tmp_path / "answers.jsonl", shared_data / "slake", tmp_path / "out")
    assert scores.scores["closed_accuracy"].value == pytest.approx(100 * 180 / 416)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "published: Li et al. 2023" in report
    assert "Seen in training" in report
    assert "<img" not in report
    body = manifest.require(tmp_path / "out", "score", "")
    assert {"scores.json", "items.jsonl", "report.html"} == set(body["files"])
    run.evaluate_predictions("slake", tmp_path / "answers.jsonl", shared_data / "slake", tmp_path / "out")


def test_scores_are_not_written_into_the_folder_of_another_stage(connected: Any, colours: Path, tmp_path: Path) -> None:
    run.evaluate("looker", "phantom", colours, tmp_path / "eval", SECTION)
    before = (tmp_path / "eval" / "scores.json").read_bytes()
    answers = tmp_path / "eval" / "real" / "predictions.jsonl"
    with pytest.raises(InputError, match="holds the work of 'eval'"):
        run.evaluate_predictions("phantom", answers, colours, tmp_path / "eval")
    assert (tmp_path / "eval" / "scores.json").read_bytes() == before
    assert manifest.read(tmp_path / "eval") is not None


def test_what_an_evaluation_needs_can_be_checked_alone(colours: Path, tmp_path: Path) -> None:
    run.check("phantom", colours)
    with pytest.raises(InputError, match="did you mean 'phantom'"):
        run.check("phantoms", colours)
    with pytest.raises(InputError, match="no such folder"):
        run.check("slake", tmp_path / "absent")
    (colours / "images" / "3.png").unlink()
    with pytest.raises(InputError, match="1 of the 18 images"):
        run.check("phantom", colours)


def write_answers(path: Path, benchmark: Benchmark, text: str = "", **more: str) -> Path:
    rows = [{"id": q.id, "text": text or q.answer, **more} for q in benchmark.questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_answers_under_a_control_made_elsewhere_are_scored_beside_the_real_ones(
    colours: Path, colour_benchmark: Benchmark, tmp_path: Path, llavamed: Callable[..., int], capsys: Any
) -> None:
    real = write_answers(tmp_path / "real.jsonl", colour_benchmark)
    blank = write_answers(tmp_path / "blank.jsonl", colour_benchmark, "no", control="blank")
    score_it = ("score", "phantom", real, "--data", colours, "--out", tmp_path / "out")
    assert llavamed(*score_it, "--control", f"blank={blank}") == 0
    body = show.read(tmp_path / "out")
    assert set(body["controls"]) == {"blank"}
    assert body["controls"]["blank"]["gaps"]["closed_accuracy"]["value"] == 50.0
    assert "The model uses the image" in capsys.readouterr().out
    assert "What the picture is worth" in (tmp_path / "out" / "report.html").read_text()

    for given, said in (
        ((f"blnak={blank}",), "--control blnak="),
        (("blank",), "give NAME=FILE"),
        ((f"real={blank}",), "give NAME=FILE, and as name one of blank, shuffled"),
        ((f"blank={blank}", f"blank={blank}"), "given twice"),
        ((f"noise={blank}",), "made under the control 'blank' and are given as 'noise'"),
        ((f"rotated={blank}",), "phantom cannot have it: no question has lettered options"),
    ):
        flags = [flag for entry in given for flag in ("--control", entry)]
        assert llavamed(*score_it, *flags) == 2
        assert said in capsys.readouterr().err
    assert llavamed("score", "phantom", blank, "--data", colours, "--out", tmp_path / "out") == 2
    assert "give them with --control blank=FILE" in capsys.readouterr().err


def test_four_images_give_no_verdict_and_say_why(colour_benchmark: Benchmark) -> None:
    few = replace(colour_benchmark, questions=colour_benchmark.questions[:12])
    right = [Prediction(q.id, q.answer) for q in few.questions]
    wrong = [Prediction(q.id, "?") for q in few.questions]
    body = score(few, right, controls={"blank": wrong}, bootstrap=20).to_json()
    assert body["scores"]["closed_accuracy"] | {"mode": "", "scorer": ""} == {
        "value": 100.0, "n": 8, "low": 0.0, "high": 100.0, "mode": "", "scorer": ""
    }  # fmt: skip
    assert body["controls"]["blank"]["gaps"]["closed_accuracy"]["uses_image"] is None
    assert show.verdict(body) == "No verdict: fewer than 5 images say nothing of chance."
    assert {row[-1] for row in (*show.headline(body)[1], *show.gaps(body)[1])} == {"too few images"}
    assert show.notes(body)[-1].startswith("Fewer than 5 images say nothing of chance: the interval of every score is")
