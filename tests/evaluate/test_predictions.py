"""Answers in the forms that people have them: official result files, LLaVA's, VLMEvalKit's; nothing lost silently."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llavamed.errors import InputError
from llavamed.evaluate import benchmarks, predictions, show
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.metrics.mmmu import MEDICAL
from llavamed.evaluate.score import MAX_ANSWER, score
from llavamed.records import Prediction, Question


def benchmark_of(*questions: Question, **more: Any) -> Benchmark:
    return Benchmark("test", "test", questions, Path("absent"), {"a.json": "0"}, **more)


YES_NO = [Question(str(n), "a.png", f"Is it {n}?", "yes", True, ("yes", "no")) for n in range(3)]
THREE = benchmark_of(*YES_NO)
TEXTS = ["Yes", "No.", "Yes, it is"]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FORMS: dict[str, tuple[str, Callable[[], str]]] = {
    "ours": ("p.jsonl", lambda: lines([{"id": str(n), "text": t} for n, t in enumerate(TEXTS)])),
    "LLaVA": (
        "answers.jsonl",
        lambda: lines([{"question_id": n, "prompt": f"Is it {n}?", "text": t} for n, t in enumerate(TEXTS)]),
    ),
    "POPE, JSON lines named .json": (
        "p.json",
        lambda: lines([{"question_id": n, "answer": t} for n, t in enumerate(TEXTS)]),
    ),
    "VQA's results": ("p.json", lambda: json.dumps([{"question_id": n, "answer": t} for n, t in enumerate(TEXTS)])),
    "GQA's results": ("p.json", lambda: json.dumps([{"questionId": n, "prediction": t} for n, t in enumerate(TEXTS)])),
    "id to answer": ("p.json", lambda: json.dumps({str(n): t for n, t in enumerate(TEXTS)})),
    "OmniMedVQA's": (
        "p.json",
        lambda: json.dumps(
            {"pred_dict": [{"question_id": n, "gt_answer": "yes", "model_pred": t} for n, t in enumerate(TEXTS)]}
        ),
    ),
    "VLMEvalKit's": (
        "p.tsv",
        lambda: "index\tanswer\tprediction\n" + "".join(f"{n}\tyes\t{t}\n" for n, t in enumerate(TEXTS)),
    ),
    "CSV": ("p.csv", lambda: "study_id,report\n" + "".join(f'{n},"{t}"\n' for n, t in enumerate(TEXTS))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_answers_in_any_order(form: str, tmp_path: Path) -> None:
    name, write = FORMS[form]
    (tmp_path / name).write_text(write())
    rows = predictions.read(tmp_path / name)
    for given in (rows, rows[::-1]):
        assert [p.text for p in predictions.match(THREE, given, "x")] == TEXTS


def test_pieces_of_a_run_lie_in_a_folder(tmp_path: Path) -> None:
    for n, text in enumerate(TEXTS):
        (tmp_path / f"3_{n}.jsonl").write_text(lines([{"question_id": n, "text": text}]))
    assert [p.text for p in predictions.match(THREE, predictions.read(tmp_path), "x")] == TEXTS
    before = predictions.sha256(tmp_path)
    (tmp_path / "3_0.jsonl").write_text(lines([{"question_id": 0, "text": "No"}]))
    assert predictions.sha256(tmp_path) != before


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.json", "[1, 2]", "must be a list of objects"),
        ("p.json", "{broken", "not JSON"),
        ("p.jsonl", "[]\n", "3 missing ids"),
        ("p.jsonl", "[1]\n", "must be a list of objects"),
        ("p.jsonl", "7\n", "a int, not an object"),
        ("p.csv", "id,text\n1\n", r"p\.csv:2: 1 cells under 2 columns"),
        ("p.txt", "", "not JSON|row"),
    ],
)
def test_what_is_no_file_of_answers_is_told(name: str, text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text or "hello\n")
    with pytest.raises(InputError, match=told):
        predictions.match(THREE, predictions.read(tmp_path / name), "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no answers"):
        predictions.read(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file"):
        predictions.read(tmp_path / "absent.jsonl")


def test_answers_to_what_is_not_asked_here_are_passed_over_and_others_not() -> None:
    known = replace(THREE, beside=frozenset({"zh-1"}))
    rows: list[Any] = [Prediction(str(n), text) for n, text in enumerate(TEXTS)]
    assert len(predictions.match(known, [*rows, Prediction("zh-1", "是")], "x")) == 3
    with pytest.raises(InputError, match=r"1 unknown ids \(first: zh-2\)"):
        predictions.match(known, [*rows, Prediction("zh-2", "是")], "x")


def test_a_benchmarks_own_file_given_as_answers_is_told() -> None:
    rows = [{"question_id": q.id, "text": q.question, "label": q.answer} for q in THREE.questions]
    with pytest.raises(InputError, match="every answer is the question itself"):
        predictions.match(THREE, rows, "coco_pope_random.json")


def test_references_are_not_taken_for_answers() -> None:
    row = {"question": "q", "answer": "yes"}
    with pytest.raises(InputError, match=r"x: the answers may stand under 'answer' or under 'output'"):
        predictions.match(THREE, [{**row, "qid": q.id, "output": "wrong"} for q in YES_NO], "x")
    many = benchmark_of(*(replace(YES_NO[0], id=str(n), answer=f"finding {n}", closed=False) for n in range(30)))
    gold = [{"qid": q.id, "question": "q", "answer": q.answer} for q in many.questions]
    with pytest.raises(InputError, match="every text under 'answer' is the reference itself"):
        predictions.match(many, gold, "x")
    gold[7]["answer"] = "Finding 7."
    assert predictions.match(many, gold, "x")[7].text == "Finding 7."


@pytest.mark.parametrize("name", ["vqa-rad", "slake"])
def test_a_benchmarks_own_references_given_as_answers_are_told(name: str, shared_data: Path) -> None:
    folder = shared_data / name.replace("-", "_")
    benchmark = benchmarks.load(name, folder)
    file = next(folder / each for each in benchmark.sha256 if "json" in each)
    with pytest.raises(InputError, match=r"'answer'"):
        predictions.match(benchmark, predictions.read(file), str(file))


def test_answers_made_under_a_control_are_not_scored_as_real() -> None:
    rows = [{"id": q.id, "text": "yes", "control": "blank"} for q in YES_NO]
    with pytest.raises(InputError, match=r"3 answers were made under the control 'blank' and are given as 'real'"):
        score(THREE, rows)
    real = [{"id": q.id, "text": "yes"} for q in YES_NO]
    assert score(THREE, real, bootstrap=10, controls={"blank": rows}).gaps["blank"]["closed_accuracy"].value == 0
    with pytest.raises(InputError, match="under the control 'blank' and are given as 'noise'"):
        score(THREE, real, controls={"noise": rows})


@pytest.mark.parametrize("more", [{}, {"text": None}, {"text": ""}])
def test_a_failed_request_needs_no_text_and_is_wrong(more: dict[str, Any]) -> None:
    rows = [{"id": "0", "failed": "timeout", **more}, {"id": "1", "text": "yes"}, {"id": "2", "text": "yes"}]
    found = score(THREE, rows, bootstrap=10)
    assert (found.provenance["n_failed"], found.scores["closed_accuracy"].n) == (1, 3)
    assert found.scores["closed_accuracy"].value == pytest.approx(200 / 3)


def test_a_byte_order_mark_and_ids_outside_of_their_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(FORMS["ours"][1](), encoding="utf-8-sig")
    (tmp_path / "p.json").write_text(json.dumps({str(n): {"text": text} for n, text in enumerate(TEXTS)}))
    for name in ("p.jsonl", "p.json"):
        assert [p.text for p in predictions.match(THREE, predictions.read(tmp_path / name), "x")] == TEXTS


def test_medmcqas_submission_counts_its_options_from_one() -> None:
    options = ("a", "b", "c", "d")
    benchmark = benchmark_of(*(replace(q, options=options, letter="A") for q in YES_NO))
    rows = [{"id": q.id, "Prediction (correct option)": n + 1} for n, q in enumerate(benchmark.questions)]
    assert [p.text for p in predictions.match(benchmark, rows, "x")] == ["A", "B", "C"]


# ---------------------------------------------------------------- other names for a question


def test_a_row_is_known_by_picture_and_question_where_ids_are_not_unique() -> None:
    aliases = {f"existence/1.png\nis it {n}?": str(n) for n in range(3)}
    benchmark = replace(THREE, aliases=aliases)
    llava = [
        {"question_id": "existence/1.png", "prompt": f"Is it {n}?\nAnswer the question ...", "text": text}
        for n, text in enumerate(TEXTS)
    ]
    assert [p.text for p in predictions.match(benchmark, llava[::-1], "x")] == TEXTS
    llava[0]["prompt"] = "Is it something else?"
    with pytest.raises(InputError, match=r"1 missing ids \(first: 0\); 1 unknown ids \(first: existence/1.png\)"):
        predictions.match(benchmark, llava, "x")


@pytest.mark.parametrize("inner", ["", "images/"])
def test_llavas_answers_to_mme_are_read_by_picture_and_question(mme_folder: Path, inner: str) -> None:
    benchmark = benchmarks.load("mme", mme_folder)
    rows = [
        {
            "question_id": f"{q.groups['subtask']}/{inner}{Path(q.image).name}",
            "prompt": f"{q.question}\nAnswer the question using a single word or phrase.",
            "text": q.answer.title(),
        }
        for q in benchmark.questions
    ]
    assert [p.id for p in predictions.match(benchmark, rows[::-1], "x")] == [q.id for q in benchmark.questions]


def test_mmes_own_result_files_are_read(mme_folder: Path, tmp_path: Path) -> None:
    benchmark = benchmarks.load("mme", mme_folder)
    results = tmp_path / "results"
    results.mkdir()
    for question in benchmark.questions:
        with (results / f"{question.groups['subtask']}.txt").open("a") as out:
            asked = f"{question.question} Please answer yes or no."
            out.write(f"{Path(question.image).name}\t{asked}\t{question.answer}\t{question.answer.title()}.\n")
    scores = score(benchmark, results, bootstrap=20).scores
    assert (scores["perception"].value, scores["cognition"].value) == (2000.0, 800.0)
    assert (scores["perception_official"].value, scores["perception_official"].n) == (2000.0, 40)
    (results / "OCR.txt").write_text("broken\n")
    with pytest.raises(InputError, match=r"OCR\.txt:1: 1 cells"):
        score(benchmark, results)


# ---------------------------------------------------------------- MMMU


def test_mmmus_example_outputs_score_what_the_official_evaluator_gives(shared_data: Path) -> None:
    """330 of 900 by main_parse_and_eval.py on the same files, and 58 of the 150 medical ones."""
    folder = shared_data / "mmmu"
    for answers in (folder / "llava1.5_13b", folder / "llava1.5_13b" / "total_val_output.json"):
        whole = score(benchmarks.load("mmmu", folder), answers, bootstrap=10).scores
        assert whole["accuracy_official"].value == pytest.approx(100 * 330 / 900)
        assert whole["accuracy_medical_official"].value == pytest.approx(100 * 58 / 150)
        assert whole["accuracy_medical_official"].n == 150
    medical = score(benchmarks.load("mmmu-med", folder), folder / "llava1.5_13b", bootstrap=10)
    assert medical.scores["accuracy_official"].value == pytest.approx(100 * 58 / 150)
    assert {item.question.groups["subject"] for item in medical.items} == set(MEDICAL)


@pytest.mark.parametrize(
    ("text", "value", "unread"),
    [
        *((text, 100.0, 0.0) for text in ("B", "(B)", "B. foo", "The answer is B.")),
        *((text, 0.0, 0.0) for text in ("C", "(A)")),
        *((text, 0.0, 100.0) for text in ("", "a liver", "B or C", "vitamin B")),
    ],
)
def test_with_mmmus_answer_key_alone_a_letter_is_read_or_counted_unread(text: str, value: float, unread: float) -> None:
    key = Question("validation_Art_1", "", "", "B", True, letter="B", groups={"subject": "Art"})
    found = score(benchmark_of(key, family="mmmu"), [{"id": key.id, "text": text}], bootstrap=10)
    assert found.scores["accuracy"].value == found.scores["accuracy_official"].value == value
    assert found.provenance["parse_failure_percent"] == unread


def test_letters_that_may_have_been_drawn_at_random_are_said_to_be_no_strict_score(
    shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "mmmu"
    score(
        benchmarks.load("mmmu", folder),
        folder / "llava1.5_13b" / "total_val_output.json",
        bootstrap=10,
        out=tmp_path / "p",
    )
    body = show.read(tmp_path / "p")
    assert any("drawn at random" in note for note in body["provenance"]["notes"])
    assert any("drawn at random" in line for line in show.notes(body))
    whole = score(benchmarks.load("mmmu", folder), folder / "llava1.5_13b", bootstrap=10)
    assert "notes" not in whole.provenance


def test_outputs_of_another_version_of_the_answers_are_told(shared_data: Path) -> None:
    benchmark = benchmarks.load("mmmu", shared_data / "mmmu")
    rows = predictions.read(shared_data / "mmmu" / "llava1.5_13b")
    rows[0] = rows[0] | {"answer": "A"}
    with pytest.raises(InputError, match=r"validation_Accounting_1 has the reference 'A', the benchmark 'B'"):
        score(benchmark, rows)


# ---------------------------------------------------------------- bad input, as it comes


def test_one_missing_id_of_a_real_benchmark_is_named(shared_data: Path, tmp_path: Path) -> None:
    benchmark = benchmarks.load("vqa-rad", shared_data / "vqa_rad")
    rows = [{"question_id": q.id, "text": q.answer} for q in benchmark.questions]
    lost = rows.pop(200)
    (tmp_path / "p.jsonl").write_text(lines(rows))
    with pytest.raises(
        InputError, match=rf"p\.jsonl: 1 missing ids \(first: {lost['question_id']}\); vqa-rad test needs"
    ):
        score(benchmark, tmp_path / "p.jsonl")


def test_an_answer_of_ten_megabytes_is_cut_and_counted(tmp_path: Path) -> None:
    rows = [{"id": q.id, "text": "yes " * 2_500_000 if q.id == "0" else "yes"} for q in THREE.questions]
    (tmp_path / "p.jsonl").write_text(lines(rows))
    scores = score(THREE, tmp_path / "p.jsonl", bootstrap=10, out=tmp_path / "out")
    assert scores.provenance["n_cut"] == 1
    assert (scores.scores["closed_accuracy"].value, scores.n) == (100.0, 3)
    assert len(scores.items[0].prediction.text) == MAX_ANSWER
    assert (tmp_path / "out" / "items.jsonl").stat().st_size < 2 * MAX_ANSWER


@pytest.mark.parametrize("family", ["llava_med", "vqa_v2", "gqa", "chartqa", "pope", "mmmu", "omnimed_vqa", "report"])
def test_no_scorer_is_held_up_by_one_endless_answer(family: str) -> None:
    groups = {"category": "random", "structural": "verify"}
    letters = {"options": ("left lung", "b"), "letter": "A"} if family in ("mmmu", "omnimed_vqa") else {}
    questions = [replace(q, groups=groups, **letters) for q in YES_NO]  # type: ignore[arg-type]
    for text in ("left lung A ", "(B) 1,"):
        rows = [Prediction(q.id, text * (10_000_000 // len(text)) if q.id == "0" else "A") for q in questions]
        began = time.monotonic()
        scores = score(benchmark_of(*questions, family=family), rows, bootstrap=10)
        assert time.monotonic() - began < 5, (family, text)
        assert scores.provenance["n_cut"] == 1
