"""Each medical benchmark is read in its official form: small folders laid out as the authors' are."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llavamed.errors import InputError
from llavamed.evaluate import benchmarks
from llavamed.imaging.decode import decode


def png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 6)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, format="PNG")
    return out.getvalue()


def write_json(path: Path, body: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body), encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.StringIO()
    table = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    data = out.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_parquet(path: Path, rows: list[dict[str, Any]], row_group_size: int = 2) -> None:
    """As the hub writes images: a struct of bytes and path, null where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)


# ---------------------------------------------------------------- LLaVA-Med's own format


def gold(key: str = "conversations", **change: Any) -> dict[str, Any]:
    row = {
        "id": "7",
        "image": "a.jpg",
        "answer_type": "CLOSED",
        key: [{"from": "human", "value": "Is it CT?\n<image>"}, {"from": "gpt", "value": "Yes"}],
    }
    return row | change


@pytest.mark.parametrize("key", ["conversations", "conversatons"])
@pytest.mark.parametrize("name", ["vqa-rad", "slake", "path-vqa"])
def test_llava_meds_gold_file_is_read_with_and_without_its_typo(tmp_path: Path, name: str, key: str) -> None:
    write_json(tmp_path / "test.json", [gold(key)])
    (question,) = benchmarks.load(name, tmp_path).questions
    assert (question.id, question.image, question.question) == ("7", "a.jpg", "Is it CT?")
    assert (question.answer, question.closed, question.options) == ("Yes", True, ("yes", "no"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer_type": "YES/NO"}, r"row 1 has answer_type 'YES/NO'; it must be OPEN or CLOSED"),
        ({"conversations": [{"from": "gpt", "value": "Yes"}]}, "row 1: conversations must be one human turn"),
        ({"conversations": "Is it?"}, "row 1: conversations must be one human turn"),
        ({"id": None}, "row 1 has no 'id'"),
    ],
)
def test_a_damaged_gold_file_names_its_row(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    write_json(tmp_path / "test.json", [gold(id="1"), gold(**change)])
    with pytest.raises(InputError, match=told):
        benchmarks.load("vqa-rad", tmp_path)


def test_vqa_rads_own_file_is_split_by_the_kind_of_phrase(tmp_path: Path) -> None:
    common = {"image_name": "a.jpg", "question": "What?", "answer": "CT", "answer_type": "OPEN"}
    kinds = ["freeform", "test_freeform", "para", "test_para", "test_para"]
    rows = [{"qid": number, "phrase_type": kind} | common for number, kind in enumerate(kinds)]
    write_json(tmp_path / "VQA_RAD Dataset Public.json", rows)
    assert [q.id for q in benchmarks.load("vqa-rad", tmp_path).questions] == ["1", "3", "4"]
    assert [q.id for q in benchmarks.load("vqa-rad", tmp_path, "train").questions] == ["0", "2"]


def test_slake_is_read_in_chinese_by_its_name(shared_data: Path) -> None:
    zh = benchmarks.load("slake-zh", shared_data / "slake")
    en = benchmarks.load("slake", shared_data / "slake")
    assert Counter(question.closed for question in zh.questions) == {True: 420, False: 613}
    assert zh.dropped == {"not in Chinese": 1061}
    assert {q.id for q in zh.questions} == en.beside
    pairs = Counter(question.options for question in zh.questions if question.closed)
    assert pairs["包含", "不包含"] == 65 + 61
    assert all(question.answer in question.options for question in zh.questions if question.options)


# ---------------------------------------------------------------- PathVQA


def test_path_vqa_is_read_from_the_hubs_parquet_with_its_images_inside(tmp_path: Path) -> None:
    answers = ["yes", "no", "the liver", "Yes", "necrosis"]
    rows = [
        {
            "image": {"bytes": png((40 * number, 0, 0)), "path": None},
            "question": f"Question {number}?",
            "answer": answer,
        }
        for number, answer in enumerate(answers)
    ]
    write_parquet(tmp_path / "data" / "test-00000-of-00002.parquet", rows[:3])
    write_parquet(tmp_path / "data" / "test-00001-of-00002.parquet", rows[3:])
    benchmark = benchmarks.load("path_vqa", tmp_path)
    assert [question.closed for question in benchmark.questions] == [True, True, False, True, False]
    assert len(benchmark.sha256) == 2
    assert not benchmark.missing_images()
    for number, question in enumerate(benchmark.questions):
        assert decode(benchmark.read_image(question.image)).getpixel((0, 0)) == (40 * number, 0, 0)
    assert benchmark.published


def test_path_vqas_pickle_is_refused_with_what_to_use_instead(tmp_path: Path) -> None:
    (tmp_path / "qas" / "test").mkdir(parents=True)
    (tmp_path / "qas" / "test" / "test_qa.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"test_qa\.pkl: a pickle.*flaviagiammarino/path-vqa"):
        benchmarks.load("path-vqa", tmp_path)


def test_a_cell_without_bytes_is_told(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": None, "path": "a.jpg"}, "question": "What?", "answer": "x"}]
    table = pa.Table.from_pylist(
        rows,
        pa.schema(
            [
                ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                ("question", pa.string()),
                ("answer", pa.string()),
            ]
        ),
    )
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "test-0.parquet")
    benchmark = benchmarks.load("path-vqa", tmp_path)
    with pytest.raises(InputError, match="row 0, image: holds no image bytes"):
        benchmark.read_image("test-0")


# ---------------------------------------------------------------- visual chat


def test_visual_chat_asks_without_the_mark_of_the_image(tmp_path: Path) -> None:
    common = {"fig_label": "Figure 1", "fig_caption": "A scan.", "in_text_mention": [], "gpt4_answer": "A scan."}
    rows = [
        {"question_id": 1, "type": "conversation", "domain": {"mri": True, "gross": False}, "image": "1.jpg"}
        | common
        | {"text": "What is shown?\n<image>"},
        {"question_id": 2, "type": "detailed_description", "domain": {"ct_scan": True}, "image": "2.jpg"}
        | common
        | {"text": "Describe it."},
    ]
    write_lines(tmp_path / "llava_med_eval_qa50_qa.jsonl", rows)
    benchmark = benchmarks.load("llava-med-chat", tmp_path)
    assert [benchmark.ask(question) for question in benchmark.questions] == ["What is shown?", "Describe it."]
    assert [question.groups["domain"] for question in benchmark.questions] == ["mri", "ct_scan"]
    assert benchmark.max_new_tokens == 1024


# ---------------------------------------------------------------- multiple choice

PMC_1 = {
    "Figure_path": "PMC1064097_F1.jpg",
    "Question": "What is the uptake pattern in the breast?",
    "Answer": "Focal uptake pattern",
    "Choice A": " A:Diffuse uptake pattern ",
    "Choice B": " B:Focal uptake pattern ",
    "Choice C": " C:No uptake pattern ",
    "Choice D": " D:Cannot determine ",
    "Answer_label": "B",
}


def test_pmc_vqa_is_read_in_both_versions(tmp_path: Path) -> None:
    write_csv(tmp_path / "test_clean.csv", [PMC_1])
    second = {k: v for k, v in PMC_1.items() if k != "Answer_label"} | {"Answer": "B", "Caption": "a, b\nc"}
    write_csv(tmp_path / "test_2.csv", [{"index": 12, **second, "split": "test"}])
    first, version_2 = benchmarks.load("pmc-vqa", tmp_path), benchmarks.load("pmc-vqa", tmp_path, "test_2")
    for benchmark, id in ((first, "0"), (version_2, "12")):
        (question,) = benchmark.questions
        assert (question.id, question.letter, question.answer) == (id, "B", "Focal uptake pattern")
        assert question.options[0] == "Diffuse uptake pattern"
        assert benchmark.ask(question).splitlines()[1:3] == ["A. Diffuse uptake pattern", "B. Focal uptake pattern"]
    assert first.split == "test_clean"


def test_an_answer_that_is_no_option_of_pmc_vqa_names_the_row(tmp_path: Path) -> None:
    write_csv(tmp_path / "test_clean.csv", [PMC_1, PMC_1 | {"Answer_label": "", "Answer": "Nothing"}])
    with pytest.raises(InputError, match="row 1: the answer 'Nothing' is none of its options"):
        benchmarks.load("pmc-vqa", tmp_path)


def omni(id: str, **change: Any) -> dict[str, Any]:
    row = {
        "dataset": "ACRIMA",
        "question_id": id,
        "question_type": "Modality Recognition",
        "question": "What imaging technique is it?",
        "gt_answer": "Fundus imaging",
        "image_path": "Images/ACRIMA/1.png",
        "option_A": "PET scan",
        "option_B": "Fundus imaging",
        "option_C": None,
        "option_D": None,
        "modality_type": "Fundus Photography",
    }
    return row | change


def test_omnimed_vqa_keeps_every_row_and_counts_the_odd_ones(tmp_path: Path) -> None:
    folder = tmp_path / "QA_information" / "Open-access"
    four = {"option_C": "CT", "option_D": "MRI", "gt_answer": "MRI"}
    write_json(folder / "ACRIMA.json", [omni("ACRIMA_0"), omni("ACRIMA_1", **four)])
    other = omni("ACRIMA_0", gt_answer="Ultrasound", modality="CT")
    del other["modality_type"]
    write_json(folder / "Chest CT Scan.json", [other])
    benchmark = benchmarks.load("omnimed-vqa", tmp_path)
    assert [q.id for q in benchmark.questions] == ["ACRIMA/ACRIMA_0", "ACRIMA_1", "Chest CT Scan/ACRIMA_0"]
    assert [q.letter for q in benchmark.questions] == ["B", "D", ""]
    assert benchmark.questions[0].options == ("PET scan", "Fundus imaging")
    assert [q.groups["modality"] for q in benchmark.questions][2] == "CT"
    assert benchmark.noted == {
        "modality under another key": 1,
        "reference is none of the options (never right)": 1,
        "id in two files": 2,
    }
    with pytest.raises(InputError, match="Restricted-access"):
        benchmarks.load("omnimed-vqa", tmp_path, "restricted-access")


def gmai(index: int, **change: Any) -> dict[str, Any]:
    row = {
        "index": index,
        "image": base64.b64encode(png((0, 10 * index, 0))).decode(),
        "question": 'What "is"\nshown?',
        "A": "cyst",
        "B": "None",
        "C": "tumour",
        "D": "",
        "E": "",
        "answer": "C",
        "category": "x",
        "clinical vqa task": "Disease Diagnosis",
        "department": "Urology",
    }
    return row | change


def test_gmai_is_read_as_vlmevalkit_writes_it_images_by_offset(tmp_path: Path) -> None:
    rows = [gmai(1), gmai(2, question="Whät?", answer="A"), gmai(5, image="1")]
    write_csv(tmp_path / "GMAI-MMBench_VAL.tsv", rows, delimiter="\t")
    benchmark = benchmarks.load("gmai-mmbench", tmp_path)
    assert [question.id for question in benchmark.questions] == ["1", "2", "5"]
    assert [question.letter for question in benchmark.questions] == ["C", "A", "C"]
    assert benchmark.questions[0].options == ("cyst", "None", "tumour")  # "None" is an option, an empty cell is not
    assert benchmark.questions[0].question == 'What "is"\nshown?'
    assert benchmark.questions[0].groups["clinical vqa task"] == "Disease Diagnosis"
    pixels = [decode(benchmark.read_image(q.image)).getpixel((0, 0)) for q in benchmark.questions]
    assert pixels == [(0, 10, 0), (0, 20, 0), (0, 10, 0)]  # the last row names the image of the first


def test_a_gmai_file_without_answers_or_columns_is_told(tmp_path: Path) -> None:
    write_csv(tmp_path / "GMAI-MMBench_VAL.tsv", [gmai(1, answer="")], delimiter="\t")
    with pytest.raises(InputError, match="row 1: the answer '' is no option"):
        benchmarks.load("gmai-mmbench", tmp_path)
    write_csv(tmp_path / "GMAI-MMBench_VAL.tsv", [{"a": 1}], delimiter="\t")
    with pytest.raises(InputError, match="no columns index and image"):
        benchmarks.load("gmai-mmbench", tmp_path)


def mcq(cop: int) -> dict[str, Any]:
    options = {"opa": "Leukemoid reaction", "opb": "Leukopenia", "opc": "Myeloid metaplasia", "opd": "Neutrophilia"}
    return {"id": f"id-{cop}", "question": "Which?", "cop": cop, "subject_name": "Pathology"} | options


def test_medmcqa_counts_from_one_in_the_authors_file_and_from_zero_in_the_hubs(tmp_path: Path) -> None:
    write_lines(tmp_path / "official" / "dev.json", [mcq(1), mcq(4)])
    write_parquet(tmp_path / "hub" / "data" / "validation-00000-of-00001.parquet", [mcq(0), mcq(3)])
    for folder in ("official", "hub"):
        benchmark = benchmarks.load("medmcqa", tmp_path / folder)
        assert [question.letter for question in benchmark.questions] == ["A", "D"]
        assert [question.answer for question in benchmark.questions] == ["Leukemoid reaction", "Neutrophilia"]
        assert benchmark.image_names == []
    assert benchmark.ask(benchmark.questions[0]) == (
        "Question: Which?\nChoices:\nA. Leukemoid reaction\nB. Leukopenia\nC. Myeloid metaplasia\nD. Neutrophilia\n"
        "Answer:"
    )
    write_lines(tmp_path / "official" / "dev.json", [mcq(0)])
    with pytest.raises(InputError, match="row 0: cop is 0; it must be 1 to 4"):
        benchmarks.load("medmcqa", tmp_path / "official")


# ---------------------------------------------------------------- MIMIC-CXR


def test_mimic_cxr_is_read_from_physionets_tables(tmp_path: Path) -> None:
    studies = [("1", "10", "test", "LATERAL"), ("2", "10", "test", "AP"), ("3", "10", "test", "PA")]
    studies += [("4", "11", "test", "AP"), ("5", "12", "test", "LL"), ("6", "13", "train", "PA")]
    split = [{"dicom_id": d, "study_id": s, "subject_id": "10000032", "split": p} for d, s, p, _ in studies]
    views = [{"dicom_id": d, "ViewPosition": v} for d, _, _, v in studies]
    write_csv(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", split)
    write_csv(tmp_path / "mimic-cxr-2.0.0-metadata.csv", views)
    sections = [
        {"study": f"s{study}", "impression": "", "findings": findings}
        for study, findings in (("10", "Clear\n lungs."), ("11", ""), ("12", "Normal."), ("13", "Normal."))
    ]
    write_csv(tmp_path / "mimic_cxr_sectioned.csv", sections)
    benchmark = benchmarks.load("mimic-cxr", tmp_path)
    (question,) = benchmark.questions
    assert (question.id, question.answer) == ("10", "Clear lungs.")
    assert question.image == "files/p10/p10000032/s10/3.jpg"  # PA before AP
    assert benchmark.dropped == {"no findings section in the report": 1, "no frontal picture": 1}


def test_mimic_cxr_is_read_in_r2gens_form(tmp_path: Path) -> None:
    row = {
        "id": "a",
        "study_id": 1,
        "report": "Clear lungs.",
        "image_path": ["p10/a.jpg", "p10/b.jpg"],
        "split": "test",
    }
    write_json(tmp_path / "annotation.json", {"train": [], "val": [row], "test": [row]})
    for split in ("test", "validate"):
        (question,) = benchmarks.load("mimic-cxr", tmp_path, split).questions
        assert question.images == ("p10/a.jpg", "p10/b.jpg")
    with pytest.raises(InputError, match="no questions"):
        benchmarks.load("mimic-cxr", tmp_path, "train")
