"""What words say about a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llavamed.corpus.domain import classify, is_compound
from llavamed.records import DOMAINS, Mention


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
    ],
)
def test_domains_of_captions(caption: str, domain: str) -> None:
    assert domain in DOMAINS
    assert classify(caption).domain == domain


def test_mentions_decide_where_the_caption_is_silent() -> None:
    verdict = classify("The lesion (arrow).", [Mention("On MRI the lesion was bright (Fig. 1).")])
    assert (verdict.domain, verdict.score) == ("mri", 1.0)


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


@pytest.mark.parametrize(
    ("caption", "compound"),
    [
        ("(A) CT and (B) MRI of the liver.", True),
        ("Brain CT (A) and MR diffusion images (B, C).", True),
        ("Mid sagittal (a, c) and axial MRI (b, d).", True),
        ("Staining. A, Normal tissue. B, Tumour.", True),
        ("A: before. B: after.", True),
        ("Radiographs before (left panel) and after (right panel).", True),
        ("Series (A-F) of slices.", True),
        ("A 45-year-old man with a mass.", False),
        ("Hepatitis (A) in a child.", False),
        ("CT of the chest (arrow).", False),
        ("Vitamin D and a (b) value were low.", False),
    ],
)
def test_compound_figures(caption: str, compound: bool) -> None:
    assert is_compound(caption) is compound


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
