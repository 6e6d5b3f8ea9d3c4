"""Real files give the counts that LLaVA-Med printed; damaged ones give one line that helps."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from llavamed.corpus.store import open_images
from llavamed.errors import InputError
from llavamed.evaluate import benchmarks


def test_vqa_rad_has_the_counts_of_the_split_that_llava_med_used(shared_data: Path) -> None:
    test = benchmarks.load("vqa_rad", shared_data / "vqa_rad")
    train = benchmarks.load("vqa-rad", shared_data / "vqa_rad", "train")
    assert (len(train.questions), len(test.questions)) == (3064, 451)
    assert Counter(question.closed for question in test.questions) == {True: 272, False: 179}
    assert (len(test.image_names), len(train.image_names)) == (203, 314)
    assert not test.missing_images()
    assert not train.missing_images()


def test_vqa_rad_rows_keep_ids_and_lose_slips(shared_data: Path) -> None:
    train = benchmarks.load("vqa-rad", shared_data / "vqa_rad", "train")
    raw = json.loads((shared_data / "vqa_rad" / "train.json").read_text())
    assert [question.id for question in train.questions] == [str(row["qid"]) for row in raw]
    assert sum(question.closed for question in train.questions) == 1823  # two of them are "CLOSED "
    assert all(isinstance(question.answer, str) for question in train.questions)  # ten are whole numbers in the file
    types = {question.groups["type"] for question in train.questions}
    assert not types & {"PRSE", "ATRIB", "Other", "PRES, POS"}
    assert "POS, PRES" in types
    yes_no = [question for question in train.questions if question.options == ("yes", "no")]
    assert len(yes_no) == 884 + 829
    assert all(question.answer.lower() in {"yes", "no"} for question in yes_no)


def test_vqa_rad_test_images_nearly_all_occur_in_training(shared_data: Path) -> None:
    test = benchmarks.load("vqa-rad", shared_data / "vqa_rad")
    train = benchmarks.load("vqa-rad", shared_data / "vqa_rad", "train")
    read = open_images(test.images)
    counts = benchmarks.overlap(train, test, read, read)
    names = {question.image for question in train.questions}
    assert counts["test_images"] == 203
    assert counts["images_by_name"] == sum(name in names for name in test.image_names)
    assert counts["images_by_sha256"] >= counts["images_by_name"] > 190
    assert counts["test_questions"] == 451
    assert counts["unreadable_images"] == 0


def test_slake_is_read_in_english_without_its_images(shared_data: Path) -> None:
    for split, expected in (("train", 4919), ("validate", 1053), ("test", 1061)):
        benchmark = benchmarks.load("slake", shared_data / "slake", split)
        assert len(benchmark.questions) == expected
    assert Counter(question.closed for question in benchmark.questions) == {True: 416, False: 645}
    assert benchmark.dropped == {"not in English": 2094 - 1061}
    assert len(benchmark.missing_images()) == 96
    assert benchmark.images == shared_data / "slake" / "imgs"


def test_overlap_sees_copies_under_other_names_and_repeated_questions(tmp_path: Path) -> None:
    def write(split: str, rows: list[tuple[str, str, str, tuple[int, int, int]]]) -> benchmarks.Benchmark:
        folder = tmp_path / split
        (folder / "images").mkdir(parents=True)
        records = []
        for id, image, question, colour in rows:
            Image.new("RGB", (8, 8), colour).save(folder / "images" / image)
            records.append({"id": id, "image": image, "question": question, "answer": "yes", "closed": True})
        (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
        return benchmarks.load("phantom", tmp_path, split)

    red, green, blue = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    train = write("train", [("1", "a.png", "Is it red?", red), ("2", "b.png", "Is it big?", blue)])
    test = write(
        "test",
        [
            ("1", "copy.png", "is it  RED?", red),
            ("2", "b.png", "Is it big?", green),  # another picture under a name of the training split
            ("3", "c.png", "Is it small?", blue),
        ],
    )
    readers = open_images(train.images), open_images(test.images)
    with_bytes = benchmarks.overlap(train, test, *readers)
    assert "images_by_name" not in with_bytes
    assert (with_bytes["test_images"], with_bytes["images_by_sha256"]) == (3, 2)
    assert with_bytes["same_image_and_question"] == 1
    without = benchmarks.overlap(train, test)
    assert "images_by_sha256" not in without
    assert without["same_image_and_question"] == 0
    (test.images / "c.png").unlink()
    assert benchmarks.overlap(train, test, *readers)["unreadable_images"] == 1
    one_folder = benchmarks.overlap(test, test)
    assert (one_folder["images_by_name"], one_folder["same_image_and_question"]) == (3, 3)


def test_unknown_names_and_splits_tell_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'vqa-rda': unknown \(did you mean 'vqa-rad'\?\)"):
        benchmarks.load("vqa-rda", tmp_path)
    with pytest.raises(InputError, match=r"no split 'validation' \(did you mean 'validate'\?\)"):
        benchmarks.load("slake", tmp_path, "validation")


@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_a_missing_file_tells_what_belongs_there_and_where_it_comes_from(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as missing:
        benchmarks.load(name, tmp_path)
    assert benchmarks._READERS[name].ORIGIN in str(missing.value)
    assert "looks like" not in str(missing.value)
    with pytest.raises(InputError, match="no such folder"):
        benchmarks.load(name, tmp_path / "absent")


def test_damaged_files_name_file_row_and_key(tmp_path: Path, colours: Path) -> None:
    (tmp_path / "test.json").write_text("[{")
    with pytest.raises(InputError, match=r"test\.json: not JSON"):
        benchmarks.load("vqa-rad", tmp_path)
    (tmp_path / "test.json").write_text(json.dumps([{"qid": 1, "answer_type": "OPEN", "answer": "x", "question": "?"}]))
    with pytest.raises(InputError, match="row 0 has no 'image_name'"):
        benchmarks.load("vqa-rad", tmp_path)
    (tmp_path / "test.json").write_text(json.dumps([{"qid": 1, "answer_type": "MAYBE"}]))
    with pytest.raises(InputError, match="MAYBE"):
        benchmarks.load("vqa-rad", tmp_path)
    whole = (colours / "questions.jsonl").read_text()
    bad = [{"id": "1", "question": "?"}, {"question": "?"}, {"id": 3, "closed": "no"}, {"id": "4"}, {"id": "5"}]
    (colours / "questions.jsonl").write_text(whole + "".join(json.dumps(row) + "\n" for row in bad))
    with pytest.raises(
        InputError,
        match=r"questions.jsonl: 5 of 59 records .*'1': image, answer, closed .*None: id, .*'3': .* and 2 more",
    ):
        benchmarks.load("phantom", colours)
    outside = {"id": "1", "image": "../0.png", "question": "?", "answer": "a", "closed": False}
    for image in ("../0.png", str(colours / "images" / "0.png")):
        (colours / "questions.jsonl").write_text(json.dumps(outside | {"image": image}) + "\n")
        with pytest.raises(InputError, match=r"0\.png' of '1' leads out of .*images"):
            benchmarks.load("phantom", colours)
    row = json.dumps({"id": 1, "image": "0.png", "question": "?", "answer": "a", "closed": False}) + "\n"
    (colours / "questions.jsonl").write_text(row * 2)
    with pytest.raises(InputError, match="'1' occurs twice"):
        benchmarks.load("phantom", colours)
    (colours / "questions.jsonl").write_text("")
    with pytest.raises(InputError, match="no questions"):
        benchmarks.load("phantom", colours)
