"""Each family as data: every metric has a scorer and a mode, totals are what the family's own summary says."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llavamed.evaluate import benchmarks, show
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.evaluate.families import FAMILIES
from llavamed.evaluate.metrics import gqa, meteor, mme, pope, report
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


def test_pope_agrees_with_its_summary_in_both_modes() -> None:
    questions, predictions = pope_items(200, ("random",))
    scores = score(benchmark_of(questions, "pope"), predictions, bootstrap=20).scores
    for suffix, parse in (("", pope.parse_strict), ("_official", pope.parse_official)):
        pairs = [(parse(p.text), q.answer) for q, p in zip(questions, predictions, strict=True)]
        for name, value in pope.summary(pairs).items():
            assert scores[f"{name}{suffix}"].value == pytest.approx(100 * value), name
            assert scores[f"{name}{suffix}"].low <= scores[f"{name}{suffix}"].value <= scores[f"{name}{suffix}"].high


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


def test_mme_agrees_with_its_summary_in_both_modes(mme_folder: Path) -> None:
    benchmark = benchmarks.load("mme", mme_folder)
    draw = random.Random(3)
    predictions = [Prediction(q.id, draw.choice(("Yes", "No", "Not sure", "I think yes"))) for q in benchmark.questions]
    found = score(benchmark, predictions, bootstrap=30)
    for suffix, accuracy in (("", mme.strict_accuracy), ("_official", mme.official_accuracy)):
        rows = [
            (q.image, q.groups["subtask"], accuracy(p.text, q.answer))
            for q, p in zip(benchmark.questions, predictions, strict=True)
        ]
        summary = mme.summary(rows)
        assert found.scores[f"perception{suffix}"].value == pytest.approx(summary["perception"])
        assert found.scores[f"cognition{suffix}"].value == pytest.approx(summary["cognition"])
        for subtask, numbers in summary["subtasks"].items():
            assert found.scores[f"{subtask}{suffix}"].value == pytest.approx(numbers["score"])
            assert found.scores[f"{subtask}{suffix}"].n == 4
    body = found.to_json()
    assert body["scores"]["perception"]["unit"] == "of 2,000"
    assert "unit" not in body["scores"]["accuracy"]
    assert show.headline(body)[1][0][0] == "perception, of 2,000"


def test_gqa_agrees_with_its_summary() -> None:
    draw = random.Random(1)
    answers = {"verify": ("yes", "no"), "query": ("dog", "cat"), "choose": ("left", "right")}
    questions = [
        Question(str(n), "a.png", "?", draw.choice(answers[kind]), False, groups={"structural": kind})
        for n, kind in enumerate(draw.choices(list(answers), k=90))
    ]
    texts = [draw.choice([q.answer, f"{q.answer.title()}.", f"a {q.answer}", "no"]) for q in questions]
    predictions = [Prediction(q.id, text) for q, text in zip(questions, texts, strict=True)]
    scores = score(benchmark_of(questions, "gqa"), predictions, bootstrap=5).scores
    rows = [
        (gqa.official_accuracy(text, q.answer), q.groups["structural"])
        for q, text in zip(questions, texts, strict=True)
    ]
    summary = gqa.summary(rows)
    names = {"accuracy": "accuracy_official", "binary": "binary_accuracy_official", "open": "open_accuracy_official"}
    for name, ours in names.items():
        assert scores[ours].value == pytest.approx(100 * summary[name])
    assert scores["binary_accuracy"].n + scores["open_accuracy"].n == 90


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
