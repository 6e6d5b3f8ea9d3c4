"""Runs beside each other: what may be compared, what the numbers are, and which failures are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llavamed import manifest
from llavamed.errors import InputError
from llavamed.evaluate import benchmarks, compare, compare_page, run
from llavamed.evaluate.families import FAMILIES, Answered
from llavamed.evaluate.run import evaluate_predictions
from llavamed.evaluate.significance import mcnemar
from llavamed.evaluate.statistics import bootstrap, paired
from llavamed.recipe import EvaluateSection
from llavamed.records import Prediction

SECTION = EvaluateSection(bootstrap=100)


def make(
    folder: Path,
    right: str,
    *,
    benchmark: str = "phantom",
    split: str = "test",
    sha: str = "abc",
    prompt: str = "p1",
    scorer: str = "s/1",
    failed: str = "",
    more: dict[str, Any] | None = None,
) -> Path:
    """A run of eight questions per image, in the format of scores.json and items.jsonl. `right` has a 1 for each
    question that is right: alternately yes/no questions and open ones; `failed` the ids of failed requests."""
    items = []
    for i, mark in enumerate(right):
        organ = "CHEST" if i < len(right) / 2 else "HEAD"
        closed, truth = i % 2 == 0, ("yes", "no")[i // 2 % 2]
        wrong = {"yes": "no", "no": "yes"}[truth]
        said = (truth if mark == "1" else wrong) if closed else ("liver" if mark == "1" else "heart")
        lost = str(i) in failed.split()
        credit = 0.0 if lost else float(mark)
        scores = {"closed_accuracy": credit} if closed else {"open_recall": credit, "open_recall_official": credit}
        items.append(
            {
                "id": str(i),
                "image": f"{i // 8}.png",
                "question": f"Is it in the {organ}?" if closed else f"What is {i}?",
                "reference": truth if closed else "liver",
                "prediction": "" if lost else f"{said}.",
                "failed": "busy" if lost else "",
                "closed": closed,
                "options": ["yes", "no"] if closed else [],
                "parsed": said if closed and not lost else None,
                "correct": credit == 1.0,
                "groups": {"organ": organ, "kind": ""},
                "scores": scores,
            }
            | (more or {})
        )
    entries = {}
    for metric, mode in (
        ("closed_accuracy", "strict"),
        ("open_recall", "strict"),
        ("open_recall_official", "official"),
    ):
        values = [100 * item["scores"][metric] for item in items if metric in item["scores"]]
        entries[metric] = {**vars(bootstrap(values, 100)), "mode": mode, "scorer": scorer}
    body = {
        "benchmark": benchmark, "split": split, "n": len(items), "scores": entries, "controls": {},
        "provenance": {"model": folder.name, "data_sha256": {"q": sha}, "prompt_hash": prompt,
                       "decoding": {"temperature": 0}, "n_failed": len(failed.split())},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(body))
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


def load(*folders: Path) -> list[compare.Run]:
    (runs,) = compare.load([str(folder) for folder in folders]).values()
    return runs


def test_a_pair_is_tested_on_its_questions(tmp_path: Path) -> None:
    runs = load(make(tmp_path / "a", "11111111" * 4 + "11110000"), make(tmp_path / "b", "11110000" * 4 + "11111111"))
    body = compare.compare(runs, draws=500)
    closed, opened = body["pairs"]
    assert (closed["metric"], opened["metric"]) == ("closed_accuracy", "open_recall")
    assert (closed["first"], closed["second"], closed["n"], closed["images"]) == ("a", "b", 20, 5)
    assert closed["value"] == pytest.approx(100 * (8 - 2) / 20)
    assert (closed["first_only"], closed["second_only"]) == (8, 2)
    assert closed["mcnemar"] == mcnemar(8, 2)
    assert closed["low"] < closed["value"] < closed["high"]
    assert closed["p"] <= closed["p_holm"] <= 1
    assert body["warnings"] == [
        f"{name}: no control was run: nothing here shows that the model uses the image." for name in "ab"
    ]


def test_equal_runs_are_not_different_and_a_clear_difference_is_said(tmp_path: Path) -> None:
    runs = load(make(tmp_path / "a", "1" * 80), make(tmp_path / "b", "1" * 80), make(tmp_path / "c", "0" * 80))
    verdicts = {(row[0], row[1]): row[3] for row in compare_page.pairs_table(compare.compare(runs, draws=2000))[1]}
    assert verdicts["a − b", "closed accuracy"] == "no difference shown"
    assert verdicts["a − c", "open recall"] == "a is better"
    assert verdicts["b − c", "closed accuracy"] == "b is better"


def test_of_many_runs_each_is_tested_against_the_first(tmp_path: Path) -> None:
    runs = load(*(make(tmp_path / name, "10" * 8) for name in "abcde"))
    pairs = {(row["first"], row["second"]) for row in compare.compare(runs, draws=10)["pairs"]}
    assert pairs == {("a", name) for name in "bcde"}
    assert len({(row["first"], row["second"]) for row in compare.compare(runs[:4], draws=10)["pairs"]}) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha": "xyz"}, "different files of phantom"),
        ({"split": "train"}, "splits 'test' and 'train'"),
        ({"scorer": "s/2"}, "different scorers"),
    ],
)
def test_what_must_not_be_compared_is_an_error(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    runs = load(make(tmp_path / "a", "10" * 8), make(tmp_path / "b", "10" * 8, **change))
    with pytest.raises(InputError, match=said):
        compare.check(runs)


def test_other_questions_are_an_error_and_another_prompt_is_a_warning(tmp_path: Path) -> None:
    first = make(tmp_path / "a", "10" * 8)
    with pytest.raises(InputError, match="different questions"):
        compare.check(load(first, make(tmp_path / "b", "10" * 9)))
    told = compare.check(load(first, make(tmp_path / "c", "10" * 8, prompt="p2", failed="0 3")))
    assert told[0] == "The runs were asked with different prompts: differences may be those of the prompts."
    assert told[-1] == "c: 2 requests failed and count as wrong."
    told = compare.check(load(first, make(tmp_path / "d", "10" * 8, prompt="")))
    assert told[0] == "The prompts of d are not known (answers made elsewhere)."


def test_groups_and_the_confusion_of_yes_and_no(tmp_path: Path) -> None:
    body = compare.compare(load(make(tmp_path / "a", "0000" + "1111" * 3 + "10", failed="4")), draws=100)
    assert {row["kind"] for row in body["groups"]} == {"organ"}  # a kind with one value says nothing
    found = {row["value"]: row["scores"]["closed_accuracy"] for row in body["groups"]}
    assert (found["CHEST"]["n"], found["HEAD"]["n"]) == (5, 4)
    assert found["HEAD"]["value"] == 100.0
    assert body["yes_no"][0]["counts"] == {
        "yes": {"yes": 3, "no": 1, "not readable": 1},
        "no": {"yes": 1, "no": 3, "not readable": 0},
    }
    assert compare_page.yes_no_table(body)[1] == [
        ["a", "yes", "3", "1", "1", "sensitivity 60.0 %"],
        ["a", "no", "1", "3", "0", "specificity 75.0 %"],
    ]
    assert body["letters"] == []


def test_a_liking_for_the_first_option_shows(tmp_path: Path) -> None:
    options = {"options": ["CT", "MRI", "PET"], "closed": True, "reference": "MRI"}
    by_text = load(make(tmp_path / "a", "00" * 4, more={**options, "parsed": "ct"}))
    by_letter = load(make(tmp_path / "b", "00" * 4, more={**options, "parsed": "A", "letter": "B"}))
    for runs in (by_text, by_letter):
        rows = {row["place"]: (row["right"], row["chosen"]) for row in compare.compare(runs, draws=10)["letters"]}
        assert rows == {"A": (0, 8), "B": (8, 0), "C": (0, 0), "not readable": (0, 0)}


def test_published_rows_stand_beside_and_are_marked(tmp_path: Path) -> None:
    body = compare.compare(load(make(tmp_path / "ours", "10" * 8, benchmark="vqa-rad")), draws=10)
    columns, rows = compare_page.published_table(body)
    assert columns[:2] == ["model", "open recall, official"]
    assert rows[0][0] == "ours"
    assert rows[0][-1] == "measured here"
    assert ["LLaVA-Med (BioMed CLIP)", "64.75", "83.09"] in [row[:3] for row in rows]
    assert all(row[-1].startswith("published: ") for row in rows[1:])
    assert compare.published("vqa-rad", "train") == compare.published("phantom", "test") == ()


def test_failures_that_tell_runs_apart_come_first_those_of_the_best_before_others(tmp_path: Path) -> None:
    """Of 80 questions a misses 40 and b, the better, 38: 20 only a, 18 only b, 20 both."""
    kinds = [i // 2 % 4 for i in range(80)]
    a = "".join("0" if kind in (0, 1) else "1" for kind in kinds)
    b = "".join("0" if kind in (1, 2) and i not in (36, 76) else "1" for i, kind in enumerate(kinds))
    runs = load(make(tmp_path / "a", a), make(tmp_path / "b", b, failed="4"))
    chosen = compare_page.informative(runs, 30)
    assert len(chosen) == len(set(chosen)) == 30
    assert "4" not in chosen  # a request that failed says nothing about the model
    found = [kinds[int(id)] for id in chosen]
    assert found == [2] * 17 + [0] + [1] * 12
    first = [runs[0].items[id] for id in chosen[:4]]
    assert {(item["closed"], item["groups"]["organ"]) for item in first} == {
        (closed, organ) for closed in (True, False) for organ in ("CHEST", "HEAD")
    }
    assert len(compare_page.informative(runs, 500)) == 17 + 20 + 20
    one = load(tmp_path / "a")
    assert compare_page.informative(one, 5) == compare_page.informative(one, 500)[:5]


def test_a_wording_that_was_shown_comes_last(tmp_path: Path) -> None:
    """There are two wordings of closed questions; the open ones differ."""
    chosen = compare_page.informative(load(make(tmp_path / "a", "0" * 24)), 24)
    closed = [int(id) % 2 == 0 for id in chosen]
    assert sum(closed[:14]) == 2


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    make(tmp_path / "x" / "eval", "10" * 8)
    make(tmp_path / "y" / "eval", "10" * 8)
    (runs,) = compare.load([str(tmp_path / "x" / "eval"), str(tmp_path / "y" / "eval")]).values()
    assert [r.name for r in runs] == ["x/eval", "y/eval"]
    (runs,) = compare.load([f"big={tmp_path / 'x' / 'eval'}", f"small={tmp_path / 'y' / 'eval'}"]).values()
    assert [r.name for r in runs] == ["big", "small"]
    with pytest.raises(InputError, match="given twice"):
        compare.load([str(tmp_path / "x" / "eval")] * 2)
    with pytest.raises(InputError, match="no such folder"):
        compare.load([str(tmp_path / "z")])
    with pytest.raises(InputError, match=r"holds no scores\.json"):
        compare.load([str(tmp_path)])
    (tmp_path / "x" / "eval" / "items.jsonl").write_text('{"id": "0"}\n')
    with pytest.raises(InputError, match="row 1 is not an item"):
        compare.load([str(tmp_path / "x" / "eval")])


def test_runs_of_different_benchmarks_are_not_silently_taken(tmp_path: Path) -> None:
    first, other = make(tmp_path / "a", "10" * 8), make(tmp_path / "b", "10" * 8, benchmark="vqa-rad")
    with pytest.raises(InputError, match=r"nothing to compare: .*a of phantom, .*b of vqa-rad"):
        compare.load([str(first), str(other)])
    assert len(compare.load([str(tmp_path)])) == 2  # one folder of both: a page each


def test_a_finding_about_other_data_is_not_shown(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", "10" * 8)
    right = {"benchmark": "phantom", "split": "test", "data_sha256": {"q": "abc"}, "told": "seen"}
    for change, told in (({}, "seen"), ({"data_sha256": {"q": "xyz"}}, None), ({"split": "train"}, None)):
        (folder / "leakage.json").write_text(json.dumps(right | change))
        found = load(folder)[0].leakage
        assert (found and found["told"]) == told


def test_the_page_of_two_models_whole(
    monkeypatch: pytest.MonkeyPatch, looker: Any, guesser: Any, colours: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], llavamed: Callable[..., int],
) -> None:  # fmt: skip
    """From the run to the picture: one model looks, one guesses."""
    monkeypatch.setattr(run, "connect", {"looker": looker, "guesser": guesser}.__getitem__)
    for name in ("looker", "guesser"):
        run.evaluate(name, "phantom", colours, tmp_path / "runs" / name, SECTION)

    command = partial(llavamed, "eval", "compare")
    out = tmp_path / "out"
    assert command(tmp_path / "runs", "--data", colours, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "looker is better" in printed
    assert "what the image is worth" in printed
    page = (out / "report.html").read_text()
    assert page.count('class="card"') == 33  # 18 "Is it X?" about another colour, 15 open ones not red
    assert page.count("data:image/jpeg") == 33
    for words in ("Which differences are real", "By colour", "sensitivity 100.0 %", "specificity 0.0 %", "✗ guesser"):
        assert words in page
    assert {"compare.json", "report.html"} == set(manifest.require(out, "compare", "")["files"])
    assert command(tmp_path / "runs" / "looker", "--out", tmp_path / "one", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == []
    (colours / "questions.jsonl").write_text((colours / "questions.jsonl").read_text() + "\n")
    assert command(tmp_path / "runs", "--data", colours, "--out", out) == 2
    assert "not the files that" in capsys.readouterr().err


def totals(name: str, tmp_path: Path, mme_folder: Path) -> Path:
    """The data of a benchmark whose score is no mean, of at least forty questions."""
    if name == "mme":
        return mme_folder
    for category in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": n, "image": f"{n // 2}.jpg", "text": f"{category} {n}?", "label": ("no", "yes")[n % 2]}
            for n in range(40)
        ]
        (tmp_path / f"coco_pope_{category}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "total", "untested"), [("pope", "f1", "yes_ratio"), ("mme", "perception", ""), ("mme", "cognition", "")]
)
def test_scores_that_are_no_mean_are_tested_too(
    name: str,
    total: str,
    untested: str,
    tmp_path: Path,
    mme_folder: Path,
    llavamed: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the same arithmetic as the gaps to the controls (`statistics.paired`), from what lies in the folders."""
    data = totals(name, tmp_path, mme_folder)
    benchmark = benchmarks.load(name, data)
    flip = {"yes": "no", "no": "yes"}
    said = {
        every: [
            Prediction(q.id, flip[q.answer.casefold()] if n % every == 0 else q.answer)
            for n, q in enumerate(benchmark.questions)
        ]
        for every in (3, 11)
    }
    said[11][5] = Prediction(benchmark.questions[5].id, "", failed="busy")
    for every, rows in said.items():
        (tmp_path / f"{every}.jsonl").write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
        evaluate_predictions(name, tmp_path / f"{every}.jsonl", data, tmp_path / "runs" / str(every))
    runs = load(tmp_path / "runs" / "11", tmp_path / "runs" / "3")
    body = compare.compare(runs, draws=500)
    row = next(row for row in body["pairs"] if row["metric"] == total)
    metric = FAMILIES[benchmark.family].metrics[total]
    assert metric.total
    chosen = [n for n, q in enumerate(benchmark.questions) if metric.over(q)]
    asked = [benchmark.questions[n] for n in chosen]
    ours, theirs = (
        metric.total.rows([Answered(benchmark.questions[n], said[k][n].text, bool(said[k][n].failed)) for n in chosen])
        for k in (11, 3)
    )
    gap = paired(ours, theirs, 500, 0, metric.total.value, [q.image for q in asked], metric.most)
    assert [row[key] for key in ("value", "low", "high", "n")] == pytest.approx([gap.value, gap.low, gap.high, gap.n])
    scores = [run.scores["scores"][total]["value"] for run in runs]
    assert row["value"] == pytest.approx(scores[0] - scores[1], abs=2e-4)
    assert row["p"] <= row["p_holm"]
    assert all(row["p"] == 1 for row in compare.compare([runs[0], replace(runs[0], name="same")], 100)["pairs"])
    assert [line for line in body["warnings"] if "Not tested" in line] == (
        [f"Not tested: {untested}: more of it is no merit, or it was scored by another version than this one."]
        if untested
        else []
    )
    assert llavamed("eval", "compare", *(run.folder for run in runs), "--out", tmp_path / "out") == 0
    assert {"f1": "F1"}.get(total, total) in capsys.readouterr().out
    assert ("Not tested: yes_ratio" in (tmp_path / "out" / "report.html").read_text()) == bool(untested)


def test_a_total_of_another_version_is_not_counted_again(tmp_path: Path, mme_folder: Path) -> None:
    benchmark = benchmarks.load("mme", mme_folder)
    rows = [{"id": q.id, "text": "yes"} for q in benchmark.questions]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in "ab":
        evaluate_predictions("mme", tmp_path / "p.jsonl", mme_folder, tmp_path / name)
        file = tmp_path / name / "scores.json"
        body = json.loads(file.read_text())
        body["scores"]["perception"]["scorer"] = "mme/0"
        file.write_text(json.dumps(body))
    found = compare.compare(load(tmp_path / "a", tmp_path / "b"), draws=50)
    assert {row["metric"] for row in found["pairs"]} == {"cognition", "accuracy"}
    assert any(line.startswith("Not tested: perception:") for line in found["warnings"])


def test_eval_still_takes_a_model_first(
    llavamed: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for arguments in (
        ["absent", "phantom", "--data", tmp_path],
        ["--data", tmp_path, "absent", "phantom"],
        ["run", "absent", "phantom", "--data", tmp_path],
    ):
        assert llavamed("eval", *arguments) == 2
        assert f"{tmp_path}: holds no questions.jsonl" in capsys.readouterr().err
