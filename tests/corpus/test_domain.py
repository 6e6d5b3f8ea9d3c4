"""What words say about a picture."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llavamed.corpus import domain
from llavamed.corpus.domain import classify
from llavamed.records import DOMAINS, Mention

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import domain as domain_benchmark


@pytest.mark.parametrize(
    ("caption", "expected"),
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
        # how other people write it: stains, operations, scanners
        ("Kidney, PAS stain.", "histology"),
        ("HE x 100.", "histology"),
        ("Spindle cells in a loose connective tissue.", "histology"),
        ("Cystectomy specimen.", "gross"),
        ("The opened stomach.", "gross"),
        ("Operative field after the clamp was set.", "gross"),
        ("Pi\u00e8ce op\u00e9ratoire.", "gross"),
        ("3DCT of the pelvis.", "ct_scan"),
        ("Chest XR on day 2.", "chest_xray"),
        ("Activation of the left insula while the subjects listened.", "mri"),
        ("Seeds in the caudate and the putamen.", "mri"),
        # what only looks like it
        ("A plastic phantom beside the CT gantry.", "other"),
        ("CT phantom.", "other"),
        ("Much CT was found under the implant. CT, connective tissue.", "other"),
        ("Scanning electron photomicrograph of a blood cell.", "other"),
        ("Micrograph of a wire.", "other"),
        ("Intraoperative radiograph of the nail.", "other"),
        ("Intraoperative view, four trocars in place.", "other"),
        ("The tumour cells were immunostained; confocal image.", "other"),
        # what the caption begins with: a picture taken at an operation, or of what came out
        ("Intraoperative photograph after the plate was fixed; compare the radiograph.", "gross"),
        ("Photograph taken at autopsy.", "gross"),
        ("Perioperative view of the mobilised pedicle.", "gross"),
        ("Amputation specimen.", "gross"),
        ("Removal of the cyst through the neck.", "gross"),
        ("The flap was raised on its vessels.", "gross"),
        ("Exposed sural nerve.", "gross"),
        ("Dry human skulls from above.", "gross"),
        ("Left-sided thoracotomy.", "gross"),
        ("Surgical exploration revealed a torn tendon.", "gross"),
        # an operation named later only says what became of it
        ("The swelling of the cheek a week before admission, explained by the intraoperative findings.", "other"),
        # words of scopes and plants that are anatomy as well
        ("Gross specimen of the liver with portal vein thrombosis.", "gross"),
        ("Resected specimen of the intraperitoneal tumour.", "gross"),
        ("Gross specimen: the cyst lay in the posterior leaf of the broad ligament.", "gross"),
        ("Section of the brain stem of a rat, haematoxylin and eosin.", "histology"),
        # seen through a scope, made of plastic, or before anything was cut
        ("Intraoperative view, the camera port on the left.", "other"),
        ("Operative view of the fundoplication.", "other"),
        ("Surgical view on a simulator.", "other"),
        ("Preoperative clinical photograph, skin markings for the resected nodule.", "other"),
        ("Excised nodule, one year after which the scar has healed.", "other"),
        ("Macroscopic view of a cell sheet.", "other"),
        ("Illustration of a midline sternotomy.", "other"),
        ("Intraoperative image.", "other"),
        # sections, and what only reports them
        ("Under polarized light the deposits shine.", "histology"),
        ("Synaptophysin-positive nerve fibres in the plexus.", "histology"),
        ("Low power view of the nodule.", "histology"),
        ("Tubules and casts (HP x 40).", "histology"),
        ("A swelling of the thigh that was excised last year and had no features of malignancy on histology.", "other"),
        ("High-power laser diode.", "other"),
        ("Bone marrow aspirate concentrate in a syringe.", "other"),
        ("Silver-stained SDS-PAGE; lane 1, marker.", "other"),
        ("Illustration of where the stained sections were taken.", "other"),
        # signs of one scanner
        ("T1w image before contrast.", "mri"),
        ("MR thermometry during heating.", "mri"),
        ("FA map of the internal capsule.", "mri"),
        ("Activation map of the listeners.", "mri"),
        ("Volume-rendered image of the bronchi.", "ct_scan"),
        ("Ground-glass opacities in both lower lobes.", "ct_scan"),
        ("Three-dimensional reconstruction of the fracture.", "ct_scan"),
        ("Pneumocephalus on the second day.", "ct_scan"),
        ("Clusters of more than twenty voxels.", "mri"),
        ("Abnormal signal within the muscle belly.", "mri"),
        ("Three-dimensional reconstruction of a neuron from a confocal stack.", "other"),
        ("A marker for the skin: MRI marker.", "other"),
        ("Single photon emission computed tomography of the heart.", "other"),
        ("Growth of six yeasts. CT, Candida tropicalis.", "other"),
        # letters that are only explained
        ("The apical view. Abbreviations: MRI, a measure of ours.", "other"),
        # of two named as strongly, the first
        ("Histology slice, chosen to match the magnetic resonance image.", "histology"),
        ("Magnetic resonance image and the histology slice that matches it.", "mri"),
    ],
)
def test_domains_of_captions(caption: str, expected: str) -> None:
    assert expected in DOMAINS
    assert classify(caption).domain == expected


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


def test_the_labels_are_of_figures_named_once_and_only_a_third_reading_is_held_out() -> None:
    rows = domain_benchmark.labels()
    assert len({(row.source, row.article, row.figure) for row in rows}) == len(rows) == 7229
    assert {name for row in rows for name in row.domains} == {*DOMAINS, "?"}
    assert {row.reading for row in rows} == set(domain_benchmark.READINGS)
    assert {row.half for row in rows} <= set(domain_benchmark.HALVES)
    assert all(row.reading == "third" for row in rows if row.half == "held-out")


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


def _searched(text: str, table: dict[str, Any]) -> dict[tuple[str, float], int]:
    """What `_read` has to find, by searching the whole text for every word of the table."""
    rows = [((name, float(weight)), words) for name in DOMAINS for weight, words in table["domains"][name].items()]
    rows += [((name, 0.0), table[name]) for name in ("drawings", "maybe_drawings")]
    first = {}
    for kind, words in rows:
        joined = "|".join(words)
        for name, part in reversed(table["parts"].items()):
            joined = joined.replace(f"<{name}>", f"(?:{'|'.join(part)})")
        if found := re.search(rf"(?<!\w)(?:{joined})(?!\w)", text, re.IGNORECASE):
            first[kind] = found.start()
    return first


def test_only_trying_the_words_that_may_begin_so_finds_what_searching_for_all_finds(shared_data: Path) -> None:
    table = yaml.safe_load(Path(domain.__file__).with_name("domain_words.yaml").read_text("utf-8"))
    figures = dict(domain_benchmark.shared_words(shared_data)).values()
    texts = {text for words in figures for text in (words.caption, words.title, *(m.sentence for m in words.mentions))}
    # letters that IGNORECASE takes for s, i, k and the Greek mu; heads at the very end of a text and after a sign
    odd = [
        "\u017fpecimen of the l\u0131ver",
        "\u0130HC, HE x 100",
        "\u212anown \u212aidney after removal",
        "\u00b5CT",
        "CT",
        "",
        "(H&E; x40)",
    ]
    for text in [*sorted(texts)[::3], *odd]:
        assert domain._read(text) == _searched(text, table), text


@pytest.mark.parametrize("words", ["CT gantry ", "tan-", "-", "a ", "cortex ", "tumour was ", "(x40", "a"])
def test_the_time_for_an_endless_caption_grows_with_its_length_only(words: str) -> None:
    """It took minutes where a pattern looked ahead from each word to the end."""
    assert classify(("tan" + words * 200_000)[:200_000]).domain in DOMAINS


def test_captions_of_real_figures_are_told_by_modality(shared_data: Path) -> None:
    expected = {
        "Nuclear magnetic": "mri",
        "Abdominal CT": "ct_scan",
        "Surveillance colonoscopy": "other",
    }
    rows = [json.loads(line) for line in (shared_data / "medicat/sample.jsonl").read_text().splitlines()]
    captions = [row["s2_caption"] for row in rows]
    for words, name in expected.items():
        assert [classify(c).domain for c in captions if words in c] == [name]
