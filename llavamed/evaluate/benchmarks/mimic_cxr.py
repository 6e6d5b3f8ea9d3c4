"""MIMIC-CXR (Johnson et al. 2019): write the findings of a chest X-ray's report.

Two forms are read. PhysioNet's: the official split and metadata tables (`.csv` or `.csv.gz`), MIMIC-CXR-JPG's
pictures, and `mimic_cxr_sectioned.csv`, which MIT-LCP's create_section_files.py makes of the reports; a question is
a study, shown by its first frontal picture (PA before AP), its reference the findings section, and studies without
one are left out and counted. R2Gen's: `annotation.json`, on which most published BLEU and CIDEr were computed, a
question a row with the report as reference. Scores of the two are not of the same texts.

The data are under PhysioNet's credentialed licence: they may not be sent to other people's servers, so ask a model
that runs on your own machine. Nothing of the data is in this package.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate.benchmarks.benchmark import Benchmark
from llavamed.evaluate.benchmarks.files import data_file, objects, read_json, read_table, sha256_of, text_of
from llavamed.records import Question

NAME = "mimic-cxr"
SPLITS = ("train", "validate", "test")
SPLIT = "test"
ORIGIN = (
    "from PhysioNet (mimic-cxr-jpg: mimic-cxr-2.0.0-{split,metadata}.csv.gz and files/; mimic_cxr_sectioned.csv by "
    "MIT-LCP's create_section_files.py), or R2Gen's annotation.json with images/"
)
SIGNS = (
    ("mimic-cxr-2.0.0-split.csv*", ""),
    ("mimic_cxr_sectioned.csv", "findings"),
    ("annotation.json", '"report"', '"image_path"'),
)
QUESTION = "Write the findings section of the radiology report of this chest X-ray."

_FRONTAL = ("PA", "AP")  # in this order


def read(data: Path, split: str) -> Benchmark:
    annotation = data / "annotation.json"
    questions, paths, images, dropped = _r2gen(annotation, split) if annotation.is_file() else _physionet(data, split)
    return Benchmark(
        NAME,
        split,
        tuple(questions),
        images,
        sha256_of(paths, data),
        family="report",
        max_new_tokens=256,
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def _physionet(data: Path, split: str) -> tuple[list[Question], list[Path], Path, Counter[str]]:
    paths = [
        data_file(data, [f"{stem}.csv", f"{stem}.csv.gz"], NAME, ORIGIN)
        for stem in ("mimic-cxr-2.0.0-split", "mimic-cxr-2.0.0-metadata", "mimic_cxr_sectioned")
    ]
    splits, metadata, sections = map(read_table, paths)
    views = {row["dicom_id"]: row.get("ViewPosition", "").strip() for row in metadata}
    findings = {row["study"].removeprefix("s"): row.get("findings", "").strip() for row in sections}
    studies: dict[tuple[str, str], list[str]] = {}
    for row in splits:
        if row["split"].strip() == split:
            studies.setdefault((row["subject_id"].strip(), row["study_id"].strip()), []).append(row["dicom_id"].strip())
    questions = []
    dropped: Counter[str] = Counter()
    for (subject, study), dicoms in sorted(studies.items()):
        frontal = sorted((d for d in dicoms if views.get(d) in _FRONTAL), key=lambda d: (_FRONTAL.index(views[d]), d))
        if not findings.get(study):
            dropped["no findings section in the report"] += 1
        elif not frontal:
            dropped["no frontal picture"] += 1
        else:
            image = f"files/p{subject[:2]}/p{subject}/s{study}/{frontal[0]}.jpg"
            groups = {"view": views[frontal[0]]}
            questions.append(Question(study, image, QUESTION, " ".join(findings[study].split()), False, groups=groups))
    return questions, paths, data, dropped


def _r2gen(path: Path, split: str) -> tuple[list[Question], list[Path], Path, Counter[str]]:
    body = read_json(path)
    key = "val" if split == "validate" else split
    rows: list[dict[str, Any]] = objects(
        body.get(key) if isinstance(body, dict) else None, f"{path}: has no list {key!r}; fetch the file again"
    )
    questions = []
    for number, row in enumerate(rows):
        images = row.get("image_path")
        if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
            raise InputError(f"{path}: row {number} has no image_path; it must be a list of pictures")
        report = text_of(row, "report", path, number)
        id = text_of(row, "id", path, number)
        questions.append(Question(id, images[0], QUESTION, report, False, more_images=tuple(images[1:])))
    return questions, [path], path.parent / "images", Counter()
