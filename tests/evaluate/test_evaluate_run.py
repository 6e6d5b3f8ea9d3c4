"""A whole evaluation on the colours: folder, report, skipping, resuming, the ablation table."""

from __future__ import annotations

import json
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
    assert set(looker["controls"]) == {"blank", "shuffled", "noise"}
    assert "uses the image: every score falls" in show.verdict(looker)
    assert "does not use the image" in show.verdict(guesser)
    assert "does not use the image" in (tmp_path / "guesser" / "report.html").read_text()
    assert made.counts == {"questions": 54, "closed": 36, "open": 18, "images": 18}
    assert looker["provenance"]["model"] == "looker"
    assert looker["provenance"]["decoding"] == {"temperature": 0.0, "max_new_tokens": 64}


def test_the_folder_is_complete_and_described(connected: Any, colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    made = run.evaluate("looker", "phantom", colours, out, SECTION)
    body = manifest.require(out, "eval", "")
    assert {f"{control}/predictions.jsonl" for control in ("real", "blank", "shuffled", "noise")} <= set(body["files"])
    assert {"items.jsonl", "scores.json", "report.html"} <= set(body["files"])
    assert manifest.is_done(out, made)
    report = (out / "report.html").read_text()
    for words in ("What the picture is worth", "Official and strict", "By group", "Single answers", "data:image/jpeg"):
        assert words in report


def test_a_complete_folder_is_left_and_an_incomplete_one_goes_on(connected: Any, colours: Path, tmp_path: Path) -> None:
    out, looker = tmp_path / "eval", connected["looker"]
    first = run.evaluate("looker", "phantom", colours, out, SECTION)
    scores = (out / "scores.json").read_bytes()
    looker.asked.clear()
    again = run.evaluate("looker", "phantom", colours, out, SECTION)
    assert looker.asked == []
    assert (again.counts, again.funnel, again.fingerprint) == (first.counts, first.funnel, first.fingerprint)

    (out / manifest.NAME).unlink()  # as after a kill during the noise control
    journal = out / "noise" / "predictions.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    run.evaluate("looker", "phantom", colours, out, SECTION)
    assert len(looker.asked) == 1
    assert (out / "scores.json").read_bytes() == scores

    looker.asked.clear()
    run.evaluate("looker", "phantom", colours, out, SECTION.model_copy(update={"max_new_tokens": 32}))
    assert len(looker.asked) == 4 * 54


def test_changed_weights_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "config.json").write_text("{}")
    before = run.model_fingerprint(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert run.model_fingerprint(str(tmp_path)) != before
    manifest.Manifest("train", {"a": 1}).write(tmp_path)
    assert run.model_fingerprint(str(tmp_path)) == manifest.Manifest("train", {"a": 1}).fingerprint
    assert run.model_fingerprint("http://a/v1") != run.model_fingerprint("http://b/v1")


def test_if_every_request_fails_the_run_says_so(connected: Any, colours: Path, tmp_path: Path) -> None:
    def broken(request: Any) -> str:
        raise RuntimeError("no memory")

    connected["looker"].answer = broken
    with pytest.raises(InputError, match=r"every request failed .*no memory"):
        run.evaluate("looker", "phantom", colours, tmp_path / "eval", SECTION)
    assert manifest.read(tmp_path / "eval") is None
    assert connected["looker"].closed


def test_the_ablation_table_has_one_row_a_model_and_refuses_to_mix(
    connected: Any, colours: Path, tmp_path: Path
) -> None:
    run.evaluate("guesser", "phantom", colours, tmp_path / "a", SECTION)
    run.evaluate("looker", "phantom", colours, tmp_path / "b", SECTION)
    columns, rows = run.ablation({"align only": tmp_path / "a", "align + instruct": tmp_path / "b"})
    assert [row[0] for row in rows] == ["align only", "align + instruct"]
    assert all(len(row) == len(columns) for row in rows)
    assert rows[0][columns.index("closed_accuracy")].startswith("50.0 (")
    assert rows[1][columns.index("closed_accuracy")].startswith("100.0 (")
    other = json.loads((tmp_path / "a" / "scores.json").read_text()) | {"n": 3}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match="not about the same questions"):
        run.ablation({"x": tmp_path / "other.json", "y": tmp_path / "b"})
    with pytest.raises(InputError, match="no such file"):
        run.ablation({"x": tmp_path / "absent"})


def test_tables_have_a_cell_for_every_column(connected: Any, colours: Path, tmp_path: Path) -> None:
    run.evaluate("looker", "phantom", colours, tmp_path, SECTION)
    scores = show.read(tmp_path / "scores.json")
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
