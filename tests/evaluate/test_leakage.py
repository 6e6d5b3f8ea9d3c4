"""A benchmark looked up in training data: corpus, conversations, another split."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llavamed import eval_cli, manifest
from llavamed.corpus.store import CorpusWriter
from llavamed.errors import InputError
from llavamed.evaluate import benchmarks, leakage, run
from llavamed.evaluate.benchmarks import Benchmark
from llavamed.records import Conversation, Pair, assistant, user, write_jsonl


def found(benchmark: Benchmark, *sources: object, **more: Any) -> dict[str, Any]:
    body = leakage.check(benchmark, [str(source) for source in sources], **more)
    (row,) = body["sources"]
    return {key: row[key] for key in row if key not in ("source", "examples", "ids")} | {"told": body["told"]}


@pytest.fixture
def talks(colours: Path, tmp_path: Path) -> Path:
    """Two conversations: one on image 0 asking question 0a in other case and spacing, one on a picture of its own."""
    images = tmp_path / "train"
    images.mkdir()
    shutil.copy(colours / "images" / "0.png", images / "renamed.png")  # all red images have these bytes
    Image.new("RGB", (9, 9), (1, 2, 3)).save(images / "own.png")
    write_jsonl(
        tmp_path / "talks.jsonl",
        [
            Conversation("a", ("renamed.png",), (user("is it  RED here", 1), assistant("yes"))),
            Conversation("b", ("own.png",), (user("Which colour?", 1), assistant("black"))),
            Conversation("c", ("absent.png",), (user("Where?", 1), assistant("here"))),
        ],
    )
    return tmp_path / "talks.jsonl"


def test_conversations_are_compared_by_bytes_and_by_words(
    colour_benchmark: Benchmark, talks: Path, tmp_path: Path
) -> None:
    """Images 0, 6 and 12 are equal files, each asked three questions; "Is it red here?" is asked of these three and
    "Which colour?" of all 18."""
    assert found(colour_benchmark, talks, images=tmp_path / "train") | {"told": ""} == {
        "images": 3,
        "questions_on_seen_images": 9,
        "questions_in_the_same_words": 3 + 18,
        "same_image_and_question": 3,
        "unreadable_images": 1,
        "told": "",
    }
    without = found(colour_benchmark, talks)
    assert (without["images"], without["questions_in_the_same_words"], without["unreadable_images"]) == (0, 21, 3)
    assert "3 of its images could not be read" in without["told"]


def test_looks_find_a_copy_in_another_format(colour_benchmark: Benchmark, colours: Path, tmp_path: Path) -> None:
    images = tmp_path / "train"
    images.mkdir()
    Image.open(colours / "images" / "0.png").save(images / "x.bmp")
    write_jsonl(tmp_path / "t.jsonl", [Conversation("a", ("x.bmp",), (user("?", 1), assistant("!")))])
    assert found(colour_benchmark, tmp_path / "t.jsonl", images=images)["images"] == 0
    assert found(colour_benchmark, tmp_path / "t.jsonl", images=images, looks=True)["images"] == 3


def test_a_corpus_is_known_by_its_index(colour_benchmark: Benchmark, colours: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    data = (colours / "images" / "1.png").read_bytes()
    with CorpusWriter(corpus) as writer:
        writer.add(Pair("k", "k.png", "A green square.", sha256=hashlib.sha256(data).hexdigest()), data)
    manifest.Manifest("corpus").write(corpus)
    body = leakage.check(colour_benchmark, [str(corpus)])
    (row,) = body["sources"]
    assert (row["images"], row["questions_on_seen_images"], row["questions_in_the_same_words"]) == (3, 9, None)
    assert leakage.table(body)[1][0][1:] == ["3 of 18", "9 of 54", "it has no questions", "it has no questions"]
    assert body["told"].startswith(f"3 of 18 images also stand in {corpus}. Compared")
    assert row["examples"][0] == {"id": "1a", "image": "1.png", "seen_as": f"{corpus}: k"}
    assert leakage.check(colour_benchmark, [str(corpus)], looks=True)["sources"][0]["images"] == 3


def test_another_split_agrees_with_the_overlap_that_is_known(shared_data: Path) -> None:
    """VQA-RAD: all 203 test images are training images, and 14 questions are asked again in the same words; without
    punctuation 16."""
    data = shared_data / "vqa_rad"
    test = benchmarks.load("vqa-rad", data)
    row = found(test, f"vqa-rad:train={data}")
    assert (row["images"], row["questions_on_seen_images"], row["same_image_and_question"]) == (203, 451, 16)
    assert "203 of 203 images" in row["told"]


@pytest.mark.parametrize("source", ["absent", "absent.jsonl", "phantom:test"])
def test_a_source_that_is_none_says_what_it_may_be(colour_benchmark: Benchmark, source: str) -> None:
    with pytest.raises(InputError, match=r"neither a corpus folder, nor .* nor BENCHMARK:SPLIT=FOLDER"):
        leakage.check(colour_benchmark, [source])


def test_every_split_can_be_named() -> None:
    for name in benchmarks.NAMES:
        for split in benchmarks._READERS[name].SPLITS:
            assert leakage._SPLIT.fullmatch(f"{name}:{split}=a=b"), (name, split)


def test_a_folder_of_several_runs_or_a_run_of_another_split_is_refused(tmp_path: Path) -> None:
    for name in ("phantom", "vqa-rad"):
        scores = {"benchmark": name, "split": "test", "n": 0, "scores": {}, "controls": {}, "provenance": {}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps(scores))
        (tmp_path / name / "items.jsonl").write_text("")
    body = {"benchmark": "phantom", "split": "train", "data_sha256": None, "sources": []}
    with pytest.raises(InputError, match=r"holds 2 runs; give one of .*phantom, .*vqa-rad"):
        leakage.beside(tmp_path, body)
    with pytest.raises(InputError, match="a run of phantom test, not of phantom train"):
        leakage.beside(tmp_path / "phantom", body)


def test_a_score_is_split_into_seen_and_not_seen_and_stored(
    colours: Path, talks: Path, tmp_path: Path, llavamed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that knows the answers about red images alone."""
    benchmark = benchmarks.load("phantom", colours)
    rows = [
        {"id": q.id, "text": q.answer if q.image in ("0.png", "6.png", "12.png") else "?"} for q in benchmark.questions
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.evaluate_predictions("phantom", tmp_path / "p.jsonl", colours, tmp_path / "run")

    arguments = ["--against", talks, "--images", tmp_path / "train"]
    assert llavamed("eval", "leakage", "phantom", "--data", colours, *arguments, "--run", tmp_path / "run") == 0
    assert "3 of 18" in capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "leakage.json").read_text())
    split = {(row["metric"], row["image"]): (row["value"], row["n"]) for row in stored["scores"]}
    assert split["closed_accuracy", "seen"] == (100.0, 6)
    assert split["closed_accuracy", "not seen"] == (0.0, 30)

    again = ["score", "phantom", tmp_path / "p.jsonl", "--data", colours, "--out", tmp_path / "two", "--json"]
    assert llavamed(*again, "--against", talks, "--against-images", tmp_path / "train") == 0
    assert json.loads(capsys.readouterr().out)["leakage"]["sources"][0]["images"] == 3
    assert llavamed("eval", "compare", tmp_path / "two", "--out", tmp_path / "cmp") == 0
    assert "3 of 18 images" in (tmp_path / "cmp" / "report.html").read_text()

    (colours / "questions.jsonl").write_text((colours / "questions.jsonl").read_text() + "\n")
    assert llavamed("eval", "leakage", "phantom", "--data", colours, *arguments, "--run", tmp_path / "run") == 2
    assert "scored on other files of phantom" in capsys.readouterr().err


def test_a_run_that_does_not_fit_is_told_before_anything_is_read(
    colours: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leakage, "check", lambda *_: pytest.fail("read before the run was looked at"))
    with pytest.raises(InputError, match="no such folder"):
        eval_cli.find_leakage("phantom", colours, None, [str(talks)], [tmp_path / "absent"])
