"""What words say about a picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from llavamed.corpus.domain import classify
from llavamed.records import DOMAINS, Mention

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import domain as domain_benchmark


@pytest.mark.parametrize(
    ("caption", "domain"),
    [
        ("Chest X-ray showing bilateral infiltrates.", "chest_xray"),
        ("Posteroanterior chest radiograph at admission.", "chest_xray"),
        ("CXR on day 3.", "chest_xray"),
        ("Abdominal CT image of a rabbit with a low-attenuated tumor.", "ct_scan"),
        ("Axial contrast-enhanced computed tomography of the chest.", "ct_scan"),
        ("Axial T2-weighted MR image of the brain.", "mri"),
        ("Nuclear magnetic resonance scan demonstrating the occipital lesion.", "mri"),
        ("Photomicrograph of the tumour (hematoxylin and eosin, x200).", "histology"),
        ("H&E staining of the resected nodule.", "histology"),
        ("Gross specimen of the spleen.", "gross"),
        ("Macroscopic appearance of the cut surface.", "gross"),
        ("Endoscopic image of the obstruction.", "other"),
        ("Transthoracic echocardiography, apical view.", "other"),
        ("Abdominal radiographs after the enema.", "other"),
        ("The protein's structure.", "other"),
        ("qPCR Ct values of the samples.", "other"),
        # words that only support: "specimen", "staining"
        ("Map of the study area; the majority of specimens were found in the north.", "other"),
        ("A member of the field crew collecting where the most complete specimen was recovered.", "other"),
        ("Length profile of the vertebrae of the specimen compared to those of other primates.", "other"),
        ("Radiographs of the type specimen: cranium, thorax and upper arms are genuine.", "other"),
        # how the phantom world names gross pathology
        ("Gross photograph of the kidney with two cysts.", "gross"),
        ("Macroscopic view of the spleen.", "gross"),
        ("Gross pathology of the liver.", "gross"),
        # as publishers and the French write it
        ("Chest X\u2010ray showing sarcoidosis.", "chest_xray"),
        ("Radiographie thoracique de face.", "chest_xray"),
        ("IRM c\u00e9r\u00e9brale, coupe axiale.", "mri"),
        ("TDM abdominale.", "ct_scan"),
        ("Progression of \u03bcCT slices through the skull.", "ct_scan"),
        # a sequence or a sign that only one modality has
        ("Sagittal STIR shows oedema.", "mri"),
        ("Coronal reformatted image of the hypoattenuating mass.", "ct_scan"),
        # letters that stand for something else, and what stands beside the machine
        ("Toluidine blue staining. CT, connective tissue; NB, new bone.", "histology"),
        ("A subject with our MRI-compatible drawing tablet.", "other"),
        # a chart is no picture of what it counts, one under the microscope need not be stained tissue
        ("The violin plot of agreement for each MRI scan.", "other"),
        ("SEM micrograph of the coating.", "other"),
        ("Confocal micrograph of cells stained with DAPI.", "other"),
        ("Laparoscopic view, intraoperative image of the gallbladder.", "other"),
        ("Clinical photograph of the face.", "other"),
        ("Intraoperative photograph of the nerve root.", "gross"),
        ("Enucleated eye with melanoma.", "gross"),
    ],
)
def test_domains_of_captions(caption: str, domain: str) -> None:
    assert domain in DOMAINS
    assert classify(caption).domain == domain


def test_mentions_decide_where_the_caption_is_silent() -> None:
    verdict = classify("The lesion (arrow).", [Mention("On MRI the lesion was bright (Fig. 1).")])
    assert (verdict.domain, verdict.score) == ("mri", 1.0)


def test_one_of_many_mentions_is_a_word_in_passing() -> None:
    mentions = [Mention(f"The bone of specimen {n} (Fig. 1).") for n in range(5)]
    assert (
        classify("Left nasal, dorsal view.", [Mention("On micro-CT it is hollow (Fig. 1)."), *mentions]).domain
        == "other"
    )
    assert classify("Left nasal, dorsal view.", title="MRI of the nose").domain == "other"


def test_the_caption_outweighs_the_title() -> None:
    verdict = classify("Histology of the nodule.", title="MRI of renal nodules")
    assert verdict.domain == "histology"
    assert 0.5 < verdict.score < 1.0


def test_no_word_of_any_domain_scores_zero() -> None:
    assert classify("A figure.").score == 0.0


@pytest.mark.parametrize(
    "caption",
    [
        "Bar chart of the number of examinations per year.",
        "Kaplan-Meier curve of overall survival.",
        "Flow chart of patient selection.",
        "ROC curve of the CT score.",
        "Schematic diagram of the MRI protocol.",
        "Scatter plot of age and volume.",
        "PRISMA flow diagram.",
        "Box plots of the Hounsfield units.",
        "Correlation between age and dose.",
    ],
)
def test_charts_and_drawings_are_flagged(caption: str) -> None:
    assert classify(caption).is_plot


@pytest.mark.parametrize(
    "caption",
    [
        "Axial CT shows the anatomical distribution of the nodules.",
        "Chest radiograph of a 45-year-old man.",
        "MRI of a mouse model of stroke.",
    ],
)
def test_pictures_are_not_flagged_as_charts(caption: str) -> None:
    assert not classify(caption).is_plot


def test_precision_and_recall_on_the_labelled_figures_of_real_articles(shared_data: Path) -> None:
    """What the shared articles have: CT, MRI and histology; the whole table is benchmarks/domain.py's."""
    rows = [row for row in domain_benchmark.labels() if row.source == "shared"]
    words = dict(domain_benchmark.shared_words(shared_data))
    assert {(row.source, row.article, row.figure) for row in rows} == words.keys()
    said = {key: classify(w.caption, w.mentions, w.title).domain for key, w in words.items()}
    verdicts = [(row.domains, said[row.source, row.article, row.figure]) for row in rows]
    claims = [(truth, name) for truth, name in verdicts if name != "other"]
    positives = [(truth, name) for truth, name in verdicts if truth[0] not in ("other", "?")]
    assert len(positives) == 29
    assert sum(name in truth for truth, name in claims) >= 0.9 * len(claims)
    assert sum(name == truth[0] for truth, name in positives) >= 0.8 * len(positives)


def test_captions_of_real_figures_are_told_by_modality(shared_data: Path) -> None:
    expected = {
        "Nuclear magnetic": "mri",
        "Abdominal CT": "ct_scan",
        "Surveillance colonoscopy": "other",
    }
    rows = [json.loads(line) for line in (shared_data / "medicat/sample.jsonl").read_text().splitlines()]
    captions = [row["s2_caption"] for row in rows]
    for words, domain in expected.items():
        assert [classify(c).domain for c in captions if words in c] == [domain]
