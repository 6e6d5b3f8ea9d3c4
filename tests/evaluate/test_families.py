"""Each family as data: every metric has a scorer and a mode, totals are what others compute or the hand does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llavamed.evaluate import benchmarks, show
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.families import FAMILIES
from llavamed.evaluate.metrics import meteor, mme, pope, report
from llavamed.evaluate.score import score
from llavamed.records import Prediction, Question


def benchmark_of(questions: list[Question], family: str) -> Benchmark:
    return Benchmark("test", "test", tuple(questions), Path("absent"), {"a.json": "0"}, family=family)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_shows_both_modes_and_names_only_metrics_that_it_has(name: str) -> None:
    family = FAMILIES[name]
    if not family.metrics:
        assert name == "chat"
        return
    modes = {metric.mode for metric in family.metrics.values()}
    assert modes == ({"strict"} if name == "medmcqa" else {"strict", "official"})
    shown = [metric for metric, _ in (*family.headline, *family.measures)] + list(family.decisive)
    assert set(shown) <= family.metrics.keys()
    assert all(family.metrics[metric].mode == "strict" for metric in shown)
    assert all(family.metrics[metric].credits for metric, _ in family.measures)
    for _, strict, official in family.rules:
        assert family.metrics[strict].mode == "strict"
        assert name == "medmcqa" or family.metrics[official].mode == "official"
    assert family.why_they_differ.endswith(".")
    for metric in family.metrics.values():
        assert (metric.credits is None) != (metric.total is None)


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_every_benchmark_is_of_a_family(name: str) -> None:
    source = Path(benchmarks._READERS[name].__file__ or "").read_text()
    families = [part.split('"')[1] for part in source.split("family=")[1:]]
    assert all(family in FAMILIES for family in families)


def test_what_could_not_be_used_is_said_in_one_line() -> None:
    questions = [Question(str(n), "a.png", "?", "yes", True, ("yes", "no"), {"category": "random"}) for n in range(4)]
    rows = [Prediction("0", "yes"), Prediction("1", "maybe"), Prediction("2", "", "timeout"), Prediction("3", "no")]
    told = show.readable(score(benchmark_of(questions, "pope"), rows, bootstrap=10).to_json())
    assert told == "Answers: 50.0 % not readable (counted as wrong), 1 requests failed, 0 cut for their length"


ANSWERS = ("Yes.", "No, there is not.", "I cannot tell", "It is normal", "yes and no", "")


def pope_items(count: int, categories: tuple[str, ...]) -> tuple[list[Question], list[Prediction]]:
    draw = random.Random(count)
    questions = [
        Question(str(n), f"{n}.png", "?", draw.choice(["yes", "no"]), True, ("yes", "no"), {"category": category})
        for n, category in enumerate(draw.choices(categories, k=count))
    ]
    return questions, [Prediction(q.id, draw.choice(ANSWERS)) for q in questions]


@pytest.mark.parametrize("suffix", ["", "_official"])
def test_popes_numbers_are_those_of_scikit_learn(suffix: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    parse = pope.parse_official if suffix else pope.parse_strict
    for count in (1, 3, 10, 200):
        questions, predictions = pope_items(count, ("random",))
        scores = score(benchmark_of(questions, "pope"), predictions, bootstrap=20).scores
        said, there = [str(parse(p.text)) for p in predictions], [q.answer for q in questions]
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            there, said, labels=["yes"], average="micro", zero_division=0
        )
        wanted = {
            "accuracy": metrics.accuracy_score(there, said),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "yes_ratio": said.count("yes") / count,
        }
        for name, value in wanted.items():
            found = scores[f"{name}{suffix}"]
            assert found.value == pytest.approx(100 * value), (name, count)
            assert found.low <= found.value <= found.high


def test_a_model_that_always_says_yes_scores_two_thirds_and_one_that_says_nothing_none(shared_data: Path) -> None:
    benchmark = benchmarks.load("pope", shared_data / "pope", "random")
    empty = score(benchmark, [Prediction(q.id, "") for q in benchmark.questions], bootstrap=5).scores
    share = sum(q.answer == "yes" for q in benchmark.questions) / len(benchmark.questions)
    assert empty["f1_official"].value == pytest.approx(100 * 2 * share / (1 + share))  # of nothing its script makes yes
    assert empty["yes_ratio_official"].value == empty["recall_official"].value == 100
    assert empty["precision_official"].value == empty["accuracy_official"].value == pytest.approx(100 * share)
    assert all(empty[name].value == 0 for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"))


def test_the_share_of_yes_has_no_gap_and_no_verdict_hangs_on_it() -> None:
    questions, predictions = pope_items(60, ("random",))
    blind = [Prediction(q.id, "no") for q in questions]
    body = score(benchmark_of(questions, "pope"), predictions, controls={"blank": blind}, bootstrap=20).to_json()
    assert body["scores"].keys() == body["controls"]["blank"]["scores"].keys()
    assert {name for name in body["scores"] if name not in body["controls"]["blank"]["gaps"]} == {
        "yes_ratio",
        "yes_ratio_official",
    }
    (shown,) = [row for row in show.headline(body)[1] if row[0].startswith("share of yes")]
    assert shown[-1] == "-"
    assert "yes" not in show.verdict(body)


def test_popes_f1_over_all_is_the_mean_of_the_three() -> None:
    questions, predictions = pope_items(300, ("random", "popular", "adversarial"))
    whole = score(benchmark_of(questions, "pope"), predictions, bootstrap=20).scores["f1_official"]
    parts = []
    for category in ("random", "popular", "adversarial"):
        chosen = [q for q in questions if q.groups["category"] == category]
        ids = {q.id for q in chosen}
        rows = [p for p in predictions if p.id in ids]
        parts.append(score(benchmark_of(chosen, "pope"), rows, bootstrap=20).scores["f1_official"].value)
    assert whole.value == pytest.approx(sum(parts) / 3)
    assert whole.n == 300


def test_a_failed_request_is_a_wrong_answer_and_not_popes_default_yes() -> None:
    questions, predictions = pope_items(50, ("random",))
    failed = [Prediction(p.id, "", failed="busy") for p in predictions]
    scores = score(benchmark_of(questions, "pope"), failed, bootstrap=5).scores
    assert scores["accuracy_official"].value == scores["f1_official"].value == scores["accuracy"].value == 0.0


def test_mmes_score_is_accuracy_and_the_share_of_pictures_with_both_right(mme_folder: Path) -> None:
    """By hand: of two pictures a subtask, both questions of the first are right and one of the second."""
    benchmark = benchmarks.load("mme", mme_folder)
    wrong = {"yes": "No", "no": "Yes"}
    predictions = [
        Prediction(q.id, q.answer if q.id.endswith("#1") or "0000" in q.image else wrong[q.answer])
        for q in benchmark.questions
    ]
    found = score(benchmark, predictions, bootstrap=30)
    for suffix in ("", "_official"):
        for subtask in (*mme.PERCEPTION, *mme.COGNITION):
            assert found.scores[f"{subtask}{suffix}"].value == pytest.approx(75 + 50)
            assert found.scores[f"{subtask}{suffix}"].n == 4
        assert found.scores[f"perception{suffix}"].value == pytest.approx(10 * 125)
        assert found.scores[f"cognition{suffix}"].value == pytest.approx(4 * 125)
    right = [Prediction(q.id, q.answer) for q in benchmark.questions]
    perfect = score(benchmark, random.Random(47).sample(right, len(right)), bootstrap=5)
    assert (perfect.scores["perception"].value, perfect.scores["cognition"].value) == (2000, 800)
    body = found.to_json()
    assert body["provenance"]["at_most"]["perception"] == 2000
    assert show.headline(body)[1][0][0] == "perception, of 2,000"


def test_gqa_tells_open_questions_from_binary_ones() -> None:
    kinds = ("verify", "query", "query", "choose", "query")
    questions = [
        Question(str(n), "a.png", "?", "no", False, groups={"structural": kind}) for n, kind in enumerate(kinds)
    ]
    predictions = [Prediction(str(n), text) for n, text in enumerate(("No.", "no", "yes", "yes", "a no"))]
    scores = score(benchmark_of(questions, "gqa"), predictions, bootstrap=5).scores
    assert {name: round(found.value, 2) for name, found in scores.items() if name.endswith("accuracy_official")} == {
        "accuracy_official": 40.0,
        "binary_accuracy_official": 50.0,
        "open_accuracy_official": 33.33,
    }
    assert (scores["binary_accuracy"].n, scores["open_accuracy"].n) == (2, 3)


def test_a_name_means_the_same_in_every_family() -> None:
    """Units are shown by a metric's name alone."""
    units: dict[str, set[str]] = {}
    for family in FAMILIES.values():
        for name, metric in family.metrics.items():
            units.setdefault(name, set()).add(metric.unit)
    assert all(len(found) == 1 for found in units.values())


REPORTS = (
    "The lungs are clear. No pleural effusion.",
    "Heart size is normal. No focal consolidation is seen.",
    "There is a small left pleural effusion.",
)


def test_reports_are_scored_as_a_corpus_in_both_tokenisations() -> None:
    questions = [Question(str(n), "a.png", "?", text, False) for n, text in enumerate(REPORTS)]
    texts = ["The lungs are clear.", "Heart size is normal. No effusion.", "There is a left effusion."]
    predictions = [Prediction(q.id, text) for q, text in zip(questions, texts, strict=True)]
    scores = score(benchmark_of(questions, "report"), predictions, bootstrap=50).scores
    for suffix, tokens in (("", report.plain), ("_official", report.clean)):
        ours, given = [tokens(text) for text in texts], [[tokens(text)] for text in REPORTS]
        for order, value in enumerate(report.corpus_bleu(ours, given), 1):
            assert scores[f"bleu_{order}{suffix}"].value == pytest.approx(100 * value)
        rouge, cider = report.rouge_l(ours, given), report.cider(ours, given)
        assert scores[f"rouge_l{suffix}"].value == pytest.approx(100 * sum(rouge) / 3)
        assert scores[f"cider{suffix}"].value == pytest.approx(100 * sum(cider) / 3)
    assert scores["bleu_1"].low <= scores["bleu_1"].value <= scores["bleu_1"].high


def test_a_chinese_denial_is_not_taken_for_what_it_denies(shared_data: Path) -> None:
    """包含 is a part of 不包含, as "no" is of "normal"."""
    benchmark = benchmarks.load("slake-zh", shared_data / "slake")
    asked = [q for q in benchmark.questions if q.options == ("包含", "不包含")]
    assert len(asked) == 126
    denied = [Prediction(q.id, "图片中不包含它。") for q in asked]
    scores = score(benchmark_of(asked, "llava_med"), denied, bootstrap=5).scores
    assert scores["closed_accuracy"].value == pytest.approx(100 * 61 / 126)
    assert scores["closed_accuracy_official"].value == 100.0


def test_meteor_is_computed_or_its_absence_told(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [Question(str(n), "a.png", "?", text, False) for n, text in enumerate(REPORTS)]
    predictions = [Prediction(q.id, q.answer) for q in questions]
    benchmark = benchmark_of(questions, "report")
    if meteor.missing() is None:
        body = score(benchmark, predictions, bootstrap=5).to_json()
        assert body["provenance"]["meteor_official"]["value"] == pytest.approx(100)
        assert show.notes(body)[1].startswith("METEOR: 100.0 (n = 3")
    monkeypatch.setattr(meteor, "missing", lambda: "METEOR is not computed: no java on this machine")
    body = score(benchmark, predictions, bootstrap=5).to_json()
    assert "meteor_official" not in body["scores"]
    assert show.notes(body)[1] == "METEOR is not computed: no java on this machine"


def test_a_failed_request_adds_no_full_stop_to_bleu() -> None:
    questions = [Question(str(n), "a.png", "?", text, False) for n, text in enumerate(REPORTS)]
    failed = [Prediction(q.id, "", failed="busy") for q in questions]
    scores = score(benchmark_of(questions, "report"), failed, bootstrap=5).scores
    assert report.clean("") == "."
    assert {name: round(found.value, 6) for name, found in scores.items()} == dict.fromkeys(scores, 0.0)


def test_what_goes_wrong_in_meteor_costs_no_other_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [Question(str(n), "a.png", "?", text, False) for n, text in enumerate(REPORTS)]
    predictions = [Prediction(q.id, f"{q.answer} \ud800") for q in questions]
    java = tmp_path / "java"
    (tmp_path / "meteor-1.5.jar").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LLAVAMED_METEOR_JAR", str(tmp_path / "meteor-1.5.jar"))
    for program, patience, said in (
        ("#!/bin/sh\nexit 1\n", 60, "ended early"),
        ("#!/bin/sh\nwhile read line; do echo Exception in thread main; done\n", 60, "ended early"),
        ("#!/bin/sh\nexec /bin/sleep 100\n", -2.5, "gave no answer in"),  # half a second for these three
        ("#!/no/such/interpreter\n", 60, "java does not start"),
    ):
        monkeypatch.setattr(meteor, "_PATIENCE", patience)
        java.write_text(program)
        java.chmod(0o755)
        scored = score(benchmark_of(questions, "report"), predictions, bootstrap=5)
        assert scored.scores["rouge_l"].value > 90
        assert said in scored.provenance["meteor_official"]


def test_without_a_right_option_no_answer_is_right() -> None:
    question = Question("1", "a.png", "?", "Ultrasound", True, ("CT", "MRI"))
    scores = score(benchmark_of([question], "omnimed_vqa"), [Prediction("1", "Ultrasound")], bootstrap=5).scores
    assert scores["accuracy"].value == scores["accuracy_official"].value == 0.0


def test_a_letter_that_is_not_offered_is_no_choice() -> None:
    question = Question("1", "a.png", "?", "MRI", True, ("CT", "", "MRI"), letter="C")
    for text, right in (("C", 100.0), ("B", 0.0), ("MRI", 100.0), ("", 0.0)):
        found = score(benchmark_of([question], "gmai_mmbench"), [Prediction("1", text)], bootstrap=5)
        assert found.scores["accuracy"].value == right
        assert found.items[0].parsed == ("C" if right else None)


def test_pmc_vqas_rule_looks_at_the_last_character_of_the_answer_only() -> None:
    question = Question("1", "a.png", "?", "left", True, ("a right lung", "left", "none", "both"), letter="B")
    official = [
        score(benchmark_of([question], "pmc_vqa"), [Prediction("1", text)], bootstrap=5)
        .scores["accuracy_official"]
        .value
        for text in ("B", "The answer is B", "B.", "left")
    ]
    assert official == [100.0, 100.0, 0.0, 100.0]
