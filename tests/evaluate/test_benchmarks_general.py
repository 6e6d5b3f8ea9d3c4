"""The general benchmarks in their official form, and folders of another benchmark."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llavamed.errors import InputError
from llavamed.evaluate import benchmarks


def write_json(path: Path, body: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body), encoding="utf-8")


# ---------------------------------------------------------------- VQA v2, GQA, TextVQA, ChartQA

ASKED = {"questions": [{"image_id": 42, "question": "Is it red?", "question_id": 42000}]}
ANSWERED = {
    "annotations": [
        {
            "question_id": 42000,
            "answer_type": "yes/no",
            "question_type": "is it",
            "multiple_choice_answer": "yes",
            "answers": [{"answer_id": n, "answer": "yes" if n < 7 else "no"} for n in range(10)],
        }
    ]
}


def test_vqa_v2_joins_questions_and_annotations(tmp_path: Path) -> None:
    write_json(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", ASKED)
    with pytest.raises(InputError, match=r"holds no v2_mscoco_val2014_annotations\.json"):
        benchmarks.load("vqa-v2", tmp_path)
    write_json(tmp_path / "v2_mscoco_val2014_annotations.json", ANSWERED)
    benchmark = benchmarks.load("vqa-v2", tmp_path)
    (question,) = benchmark.questions
    assert (question.id, question.answer, question.image) == ("42000", "yes", "COCO_val2014_000000000042.jpg")
    assert Counter(question.references) == {"yes": 7, "no": 3}
    assert question.groups == {"answer_type": "yes/no", "question_type": "is it"}
    assert benchmark.images == tmp_path / "val2014"
    assert benchmark.ask(question) == "Is it red?\nAnswer the question using a single word or phrase."
    write_json(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": []})
    with pytest.raises(InputError, match="no annotation of question 42000"):
        benchmarks.load("vqa-v2", tmp_path)


def test_gqa_is_an_object_of_questions_by_id(tmp_path: Path) -> None:
    row = {"question": "Is it red?", "answer": "no", "imageId": "n1", "types": {"structural": "verify"}}
    write_json(
        tmp_path / "testdev_balanced_questions.json", {"20": row, "21": row | {"types": {"structural": "query"}}}
    )
    benchmark = benchmarks.load("gqa", tmp_path)
    assert [(q.id, q.image, q.groups["structural"]) for q in benchmark.questions] == [
        ("20", "n1.jpg", "verify"),
        ("21", "n1.jpg", "query"),
    ]
    assert {row.scores["accuracy_official"] for row in benchmark.published} == {62.0, 63.3}


def textvqa(folder: Path, ocr: bool) -> benchmarks.Benchmark:
    row = {"question_id": 34602, "question": "what is the brand?", "image_id": "003a8ae2", "answers": ["nokia"] * 10}
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": [row]})
    if ocr:
        tokens = {"image_id": "003a8ae2", "ocr_tokens": ["NOKIA", "C3"]}
        write_json(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [tokens]})
    return benchmarks.load("textvqa", folder)


def test_textvqa_writes_the_ocr_words_into_the_prompt_where_they_are(tmp_path: Path) -> None:
    plain, with_ocr = textvqa(tmp_path / "plain", ocr=False), textvqa(tmp_path / "ocr", ocr=True)
    suffix = "\nAnswer the question using a single word or phrase."
    assert plain.ask(plain.questions[0]) == "what is the brand?" + suffix
    assert with_ocr.ask(with_ocr.questions[0]) == "what is the brand?\nReference OCR token: NOKIA, C3" + suffix
    assert with_ocr.aliases == {"003a8ae2\nwhat is the brand?": "34602"}
    assert with_ocr.prompt_hash != plain.prompt_hash
    write_json(tmp_path / "plain" / "TextVQA_0.5.1_val.json", {"data": [{"image_id": "a", "question": "?"}]})
    with pytest.raises(InputError, match="row 0: 10 answers are needed"):
        benchmarks.load("textvqa", tmp_path / "plain")


def test_chartqa_has_two_halves(tmp_path: Path) -> None:
    for half in ("human", "augmented"):
        write_json(tmp_path / "test" / f"test_{half}.json", [{"imgname": "1.png", "query": "How many?", "label": "3"}])
    benchmark = benchmarks.load("chartqa", tmp_path)
    assert [(q.id, q.groups["half"]) for q in benchmark.questions] == [
        ("human-0", "human"),
        ("augmented-0", "augmented"),
    ]
    assert benchmark.images == tmp_path / "test" / "png"


# ---------------------------------------------------------------- POPE


def pope(folder: Path, categories: tuple[str, ...] = ("random", "popular", "adversarial"), count: int = 4) -> None:
    for category in categories:
        rows = [
            {
                "question_id": number + 1,
                "image": f"COCO_{number // 2}.jpg",
                "text": f"Is there a {category} {number} in the image?",
                "label": "yes" if number % 2 else "no",
            }
            for number in range(count)
        ]
        (folder / f"coco_pope_{category}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_pope_is_one_split_or_all_three(tmp_path: Path) -> None:
    pope(tmp_path)
    whole = benchmarks.load("pope", tmp_path)
    assert [q.id for q in whole.questions[:5]] == ["random/1", "random/2", "random/3", "random/4", "popular/1"]
    assert [q.id for q in benchmarks.load("pope", tmp_path, "popular").questions] == ["1", "2", "3", "4"]
    (tmp_path / "coco_pope_popular.json").unlink()
    with pytest.raises(InputError, match="holds of POPE's three files only random, adversarial; say --split random"):
        benchmarks.load("pope", tmp_path)
    (tmp_path / "coco_pope_random.json").write_text('{"question_id": 1, "image": "a", "text": "?", "label": "maybe"}\n')
    with pytest.raises(InputError, match="row 0 has the label 'maybe'; it must be yes or no"):
        benchmarks.load("pope", tmp_path, "random")


def test_popes_own_random_split_has_its_published_counts(shared_data: Path) -> None:
    benchmark = benchmarks.load("pope", shared_data / "pope", "random")
    assert Counter(question.answer for question in benchmark.questions) == {"yes": 1500, "no": 1500}
    assert len(benchmark.image_names) == 500


def test_llavas_ids_of_pope_are_translated_and_checked(tmp_path: Path) -> None:
    pope(tmp_path, count=2)
    rows = [
        {
            "question_id": number,
            "category": category,
            "text": f"Is there a {category} {place} in the image?\nAnswer ...",
        }
        for number, (category, place) in enumerate(
            (c, place) for c in ("adversarial", "popular", "random") for place in range(2)
        )
    ]
    file = tmp_path / "llava_pope_test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    aliases = benchmarks.load("pope", tmp_path).aliases
    assert aliases == {
        "0": "adversarial/1",
        "1": "adversarial/2",
        "2": "popular/1",
        "3": "popular/2",
        "4": "random/1",
        "5": "random/2",
    }
    rows[0]["text"] = "Is there a cat?"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"row 0 asks another question.*; take POPE's files of commit e3e39262"):
        benchmarks.load("pope", tmp_path)


def test_llavas_questions_of_an_older_pope_are_told_with_both_counts(tmp_path: Path) -> None:
    """LLaVA's file is about 2,910 random questions, today's POPE has 3,000."""
    pope(tmp_path, count=4)
    rows = [
        {"question_id": f"{c}{place}", "category": c, "text": f"Is there a {c} {place} in the image?"}
        for c in ("adversarial", "popular", "random")
        for place in range(3 if c == "random" else 4)
    ]
    (tmp_path / "llava_pope_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as told:
        benchmarks.load("pope", tmp_path)
    assert "has 3 random, 4 popular, 4 adversarial questions, the coco_pope files 4 random, 4 popular" in str(
        told.value
    )
    assert "commit e3e39262c85a6a83f26cf5094022a782cb0df58d, which it is about (2,910 random" in str(told.value)
    assert "fetch them again" not in str(told.value)


# ---------------------------------------------------------------- MME


def test_mme_is_read_in_both_of_its_layouts(mme_folder: Path) -> None:
    benchmark = benchmarks.load("mme", mme_folder)
    assert len(benchmark.questions) == 14 * 2 * 2
    assert not benchmark.missing_images()
    question = benchmark.questions[0]
    assert (question.id, question.question, question.answer) == (
        "existence/0000.png#1",
        "Is there a existence 0?",
        "yes",
    )
    assert benchmark.ask(question).endswith("0?\nAnswer the question using a single word or phrase.")
    assert {benchmark.questions[4].image} == {"count/images/0000.png"}


def test_a_damaged_mme_folder_is_told(mme_folder: Path) -> None:
    root = mme_folder / "MME_Benchmark_release_version"
    broken = root / "existence" / "0000.txt"
    broken.write_text("Is it?\tPerhaps\nIs it?\tNo\n")
    with pytest.raises(InputError, match=r"0000\.txt:1: 'Perhaps'; a line is a question, a tab, and Yes or No"):
        benchmarks.load("mme", mme_folder)
    broken.write_text("Is it?\tYes\n")
    with pytest.raises(InputError, match=r"0000\.txt: 1 lines"):
        benchmarks.load("mme", mme_folder)
    (root / "OCR").rename(root / "ocr")
    with pytest.raises(InputError, match="holds no folder OCR"):
        benchmarks.load("mme", mme_folder)


# ---------------------------------------------------------------- MMMU


def mmmu(folder: Path, subjects: tuple[str, ...]) -> None:
    image = {"bytes": b"", "path": "1.png"}
    for subject in subjects:
        rows = []
        for number in range(1, 4):
            row = {
                "id": f"validation_{subject}_{number}",
                "question": "Which is it? <image 1>",
                "options": "['liver', \"it's\", 'spleen']",
                "answer": "B",
                "question_type": "multiple-choice",
                "topic_difficulty": "Easy",
                "subfield": "x",
                "image_1": image,
                "image_2": image if number == 2 else None,
                **{f"image_{place}": None for place in range(3, 8)},
            }
            if number == 3:
                row |= {"options": "[]", "answer": "['24/7', '3.429']", "question_type": "open"}
            rows.append(row)
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        fields = [(name, kind if name.startswith("image_") else pa.string()) for name in rows[0]]
        path = folder / subject / "validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), path)


MEDICAL = ("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine")
MEDICAL += ("Pharmacy", "Public_Health")


def test_mmmu_is_read_from_the_hubs_parquet(tmp_path: Path) -> None:
    mmmu(tmp_path, MEDICAL)
    benchmark = benchmarks.load("mmmu-med", tmp_path)
    assert len(benchmark.questions) == 15
    one, two, open_ = benchmark.questions[:3]
    assert (one.letter, one.options, one.answer) == ("B", ("liver", "it's", "spleen"), "it's")
    assert [len(question.images) for question in (one, two, open_)] == [1, 2, 1]
    assert two.images == ("validation_Basic_Medical_Science_2/image_1", "validation_Basic_Medical_Science_2/image_2")
    assert (open_.closed, open_.references, open_.options) == (False, ("24/7", "3.429"), ())
    assert benchmark.ask(one) == (
        "Which is it? <image 1>\n\n(A) liver\n(B) it's\n(C) spleen\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert benchmark.ask(open_).endswith("\n\nAnswer the question using a single word or phrase.")
    with pytest.raises(InputError, match="Accounting/validation"):
        benchmarks.load("mmmu", tmp_path)  # 25 subjects are not there


def test_mmmus_answer_key_alone_can_be_scored_and_not_asked(shared_data: Path) -> None:
    whole = benchmarks.load("mmmu", shared_data / "mmmu")
    medical = benchmarks.load("mmmu-med", shared_data / "mmmu")
    assert (len(whole.questions), len(medical.questions)) == (900, 150)
    assert sum(question.closed for question in whole.questions) == 847
    assert len(medical.beside) == 750
    assert sorted(Counter(q.groups["domain"] for q in whole.questions).values()) == [120, 120, 150, 150, 150, 210]
    with pytest.raises(InputError, match="the answers of mmmu and not its questions"):
        whole.require_images()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question_type": "essay", "ground_truth": "A"}, "has question_type 'essay'; it must be multiple-choice"),
        ({"question_type": "open"}, "not MMMU's answer key"),
    ],
)
def test_a_damaged_answer_key_is_told(tmp_path: Path, row: dict[str, str], told: str) -> None:
    write_json(tmp_path / "answer_dict_val.json", {"validation_Art_1": row})
    with pytest.raises(InputError, match=told):
        benchmarks.load("mmmu", tmp_path)


# ---------------------------------------------------------------- the wrong folder


@pytest.mark.parametrize(
    ("folder", "asked", "found"),
    [
        ("slake", "vqa-rad", "slake"),
        ("vqa_rad", "slake", "vqa-rad"),
        ("vqa_rad", "mmmu", "vqa-rad"),
        ("mmmu", "pope", "mmmu"),
        ("pope", "vqa-v2", "pope"),
        ("slake", "chartqa", "slake"),
    ],
)
def test_the_folder_of_another_benchmark_is_recognised(shared_data: Path, folder: str, asked: str, found: str) -> None:
    with pytest.raises(InputError, match=rf"\(the folder looks like {found}\)$"):
        benchmarks.load(asked, shared_data / folder)


def test_folders_made_here_are_recognised_too(mme_folder: Path, tmp_path: Path) -> None:
    mmmu(tmp_path / "mmmu", ("Art",))
    textvqa(tmp_path / "textvqa", ocr=True)
    for name, folder in (("mmmu", tmp_path / "mmmu"), ("mme", mme_folder), ("textvqa", tmp_path / "textvqa")):
        with pytest.raises(InputError, match=rf"looks like {name}\)"):
            benchmarks.load("gqa", folder)
