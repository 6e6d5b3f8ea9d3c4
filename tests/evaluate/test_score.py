"""Denominators, order, other people's files, and gaps."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llavamed.errors import InputError
from llavamed.evaluate import benchmarks, show
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.families import FAMILIES
from llavamed.evaluate.metrics import llava_med as metrics
from llavamed.evaluate.score import score
from llavamed.records import Prediction


def perfect(benchmark: Benchmark) -> list[Prediction]:
    return [Prediction(question.id, question.answer) for question in benchmark.questions]


def test_the_references_themselves_score_100_by_the_strict_rules(shared_data: Path) -> None:
    for name, folder in (("vqa-rad", "vqa_rad"), ("slake", "slake")):
        benchmark = benchmarks.load(name, shared_data / folder)
        scores = score(benchmark, perfect(benchmark), bootstrap=10).scores
        for metric in ("closed_accuracy", "open_recall", "open_f1", "open_exact", "closed_accuracy_official"):
            assert scores[metric].value == 100.0, (name, metric)


def test_the_papers_fraction_of_the_closed_questions_gives_the_papers_number(shared_data: Path) -> None:
    benchmark = benchmarks.load("vqa-rad", shared_data / "vqa_rad")
    right = 0
    rows = []
    for question in benchmark.questions:
        right += question.closed
        rows.append({"id": question.id, "text": question.answer if right <= 226 else "?"})
    scores = score(benchmark, rows, bootstrap=10).scores
    assert scores["closed_accuracy_official"].value == pytest.approx(83.0882, abs=5e-5)  # 226 of 272, their best row
    assert scores["closed_accuracy"].n == 272
    assert scores["open_recall"].n == 179


def test_the_order_of_rows_changes_nothing(colour_benchmark: Benchmark) -> None:
    rows = [Prediction(q.id, "It is red" if i % 3 else q.answer) for i, q in enumerate(colour_benchmark.questions)]
    mixed = random.Random(1).sample(rows, len(rows))
    assert score(colour_benchmark, rows).to_json() == score(colour_benchmark, mixed).to_json()


def test_a_failed_answer_is_wrong_and_stays_in_the_denominator(colour_benchmark: Benchmark) -> None:
    rows = perfect(colour_benchmark)
    rows[0] = Prediction(rows[0].id, "yes", failed="RuntimeError: out of memory")
    scores = score(colour_benchmark, rows, bootstrap=10)
    assert scores.scores["closed_accuracy"].n == 36
    assert scores.scores["closed_accuracy"].value == pytest.approx(100 * 35 / 36)
    assert scores.scores["closed_accuracy_official"].value == pytest.approx(100 * 35 / 36)
    assert scores.provenance["n_failed"] == 1
    assert scores.provenance["parse_failure_percent"] == pytest.approx(100 / 36, abs=1e-4)


def test_the_study_is_normal_is_right_by_the_official_rule_and_unreadable_by_the_strict(
    colour_benchmark: Benchmark,
) -> None:
    rows = [Prediction(question.id, "The study is normal") for question in colour_benchmark.questions]
    scores = score(colour_benchmark, rows, bootstrap=10)
    assert scores.scores["closed_accuracy"].value == 0.0
    assert scores.scores["closed_accuracy_official"].value == 50.0  # every question whose reference is no
    assert scores.provenance["parse_failure_percent"] == 100.0


def test_the_script_as_released_has_a_smaller_denominator(colour_benchmark: Benchmark) -> None:
    rows = [Prediction(q.id, "yes" if q.closed else "?") for q in colour_benchmark.questions]
    scores = score(colour_benchmark, rows, bootstrap=10).scores
    assert (scores["closed_accuracy_run_eval"].value, scores["closed_accuracy_run_eval"].n) == (50.0, 36)
    release = scores["closed_accuracy_run_eval_release"]
    assert (release.value, release.n) == (100.0, 18)


@pytest.mark.parametrize(("id_key", "text_key"), [("question_id", "text"), ("qid", "answer"), ("id", "prediction")])
def test_files_of_others_are_read(colour_benchmark: Benchmark, tmp_path: Path, id_key: str, text_key: str) -> None:
    path = tmp_path / "answers.jsonl"
    lines = [json.dumps({id_key: q.id, text_key: q.answer, "model_id": "x"}) for q in colour_benchmark.questions]
    path.write_text("\n".join(reversed(lines)))
    scores = score(colour_benchmark, path, bootstrap=10)
    assert scores.scores["closed_accuracy"].value == 100.0
    assert "elsewhere" in scores.provenance["model"]


def test_by_order_ignores_ids_and_counts_rows(colour_benchmark: Benchmark) -> None:
    rows = [{"text": question.answer} for question in colour_benchmark.questions]
    assert score(colour_benchmark, rows, by_order=True, bootstrap=10).scores["open_exact"].value == 100.0
    with pytest.raises(InputError, match="53 rows, but phantom test has 54"):
        score(colour_benchmark, rows[1:], by_order=True)
    with pytest.raises(InputError, match="row 1 has no id"):
        score(colour_benchmark, rows)
    with pytest.raises(InputError, match="row 1 has no answer"):
        score(colour_benchmark, [{"id": "0a"}])


def test_missing_repeated_and_unknown_ids_are_all_told(colour_benchmark: Benchmark) -> None:
    rows = perfect(colour_benchmark)
    wrong = [*rows[2:], rows[5], Prediction("999", "yes")]
    with pytest.raises(
        InputError, match=r"2 missing ids \(first: 0a, 0b\); 1 repeated ids .*1c.*; 1 unknown ids .*999"
    ):
        score(colour_benchmark, wrong)


def test_every_number_can_be_recomputed_from_the_items(colour_benchmark: Benchmark, tmp_path: Path) -> None:
    rows = [Prediction(q.id, "No, it is red.") for q in colour_benchmark.questions]
    score(colour_benchmark, rows, bootstrap=50, out=tmp_path)
    written = json.loads((tmp_path / "scores.json").read_text())
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert {"id", "question", "reference", "prediction", "closed", "parsed", "correct"} <= items[0].keys()
    for name, entry in written["scores"].items():
        values = [item["scores"][name] for item in items if item["scores"].get(name) is not None]
        assert entry["value"] == pytest.approx(100 * sum(values) / len(values), abs=1e-4)
        assert entry["n"] == len(values)
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert 0 <= entry["low"] <= entry["high"] <= 100
        assert entry["mode"] == FAMILIES["llava_med"].metrics[name].mode
        assert entry["scorer"] == (metrics.STRICT if entry["mode"] == "strict" else metrics.OFFICIAL)
    assert (written["benchmark"], written["split"], written["n"]) == ("phantom", "test", 54)


def test_a_gap_needs_its_whole_interval_above_zero(colour_benchmark: Benchmark) -> None:
    blind = [Prediction(q.id, "yes" if q.closed else "red") for q in colour_benchmark.questions]
    seeing = score(colour_benchmark, perfect(colour_benchmark), controls={"blank": blind}).to_json()
    gaps = seeing["controls"]["blank"]["gaps"]
    assert gaps["closed_accuracy"]["value"] == 50.0
    assert gaps["closed_accuracy"]["uses_image"] is True
    assert gaps["open_recall"]["low"] < gaps["open_recall"]["value"] < gaps["open_recall"]["high"]
    assert show.verdict(seeing).startswith("The model uses the image")
    assert "closed_accuracy_run_eval_release" not in seeing["controls"]["blank"]["gaps"]
    unseeing = score(colour_benchmark, blind, controls={"blank": blind}).to_json()
    assert unseeing["controls"]["blank"]["gaps"]["closed_accuracy"]["uses_image"] is False
    assert show.verdict(unseeing).startswith("The model does not use the image")
    assert "No control" in show.verdict(score(colour_benchmark, blind).to_json())


def test_requests_that_failed_without_the_picture_prove_nothing(colour_benchmark: Benchmark, tmp_path: Path) -> None:
    right = perfect(colour_benchmark)
    broken = [Prediction(p.id, "", failed="busy") if i % 3 else p for i, p in enumerate(right)]
    scores = score(colour_benchmark, right, controls={"blank": broken, "noise": right}, out=tmp_path).to_json()
    blank, noise = scores["controls"]["blank"], scores["controls"]["noise"]
    assert (blank["n_failed"], noise["n_failed"]) == (36, 0)
    assert blank["gaps"]["closed_accuracy"]["value"] == 0.0
    assert blank["gaps"]["closed_accuracy"]["n"] == 18
    assert blank["gaps"]["closed_accuracy"]["uses_image"] is None
    assert noise["gaps"]["closed_accuracy"]["uses_image"] is False
    verdict = show.verdict(scores)
    assert verdict.startswith("The model does not use the image: no gap beyond noise in closed accuracy against noise")
    assert verdict.endswith("No verdict against blank (36): requests failed; run the evaluation again.")
    assert show.verdict(score(colour_benchmark, right, controls={"blank": broken}).to_json()).startswith("No verdict")
    assert "withheld: 36 requests failed" in {row[-1] for row in show.gaps(scores)[1]}
    unanswered = score(colour_benchmark, broken, controls={"blank": right}).to_json()
    assert unanswered["controls"]["blank"]["gaps"]["closed_accuracy"]["n"] == 18  # a failure on either side


def test_a_score_is_shown_with_its_interval() -> None:
    assert show.cell({"value": 92.31, "low": 90.06, "high": 94.15, "n": 9}) == "92.3 (90.1-94.2)"
    assert show.cell(None) == "-"
