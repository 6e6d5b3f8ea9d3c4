"""The reader of captions: a table of phrasings by hand, and the phantom world's written truth as oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llavamed.demo.truth import DOMAIN_NAMES, sample
from llavamed.demo.wording import tell
from llavamed.instruct.facts import Facts, extract, merge, of_pair
from llavamed.records import Mention, Pair

# text -> the fields that it states; every field that is not named must be None
SAID: list[tuple[str, dict[str, Any]]] = [
    (
        "Axial CT of the brain showing a large haemorrhage on the left side.",
        {
            "modality": "CT",
            "organ": "brain",
            "finding": "haemorrhage",
            "size": "large",
            "side": "left",
            "count": 1,
        },
    ),
    (
        "Chest radiograph (PA view). Two small nodules are present in the right lung.",
        {
            "modality": "chest X-ray",
            "organ": "lung",
            "finding": "nodule",
            "size": "small",
            "side": "right",
            "count": 2,
        },
    ),
    (
        "As seen in Figure 2, the lesion lay in the left hemisphere and was solitary.",
        {"organ": "brain", "finding": "lesion", "side": "left", "count": 1},
    ),
    ("The specimen in Fig. 3 was unremarkable.", {"finding": "none"}),
    ("Gross specimen of the spleen.", {"modality": "gross pathology", "organ": "spleen"}),
    ("Map of the study area where most specimens were found.", {}),
    ("A member of the field crew where the most complete specimen was recovered.", {}),
    ("Length profile of the specimen compared to those of other primates.", {}),
    ("Radiographs of the type specimen: cranium, thorax and upper arms are genuine.", {"modality": "X-ray"}),
    ("Radiograph of the thoracic spine.", {"modality": "X-ray", "organ": "spine"}),
    ("Radiograph (PA view) of the hand.", {"modality": "X-ray"}),
    ("Radiograph showing both lungs and the heart.", {"modality": "chest X-ray", "side": "bilateral"}),
    # modality
    ("Posteroanterior chest film.", {"modality": "chest X-ray"}),
    ("CXR on admission", {"modality": "chest X-ray"}),
    ("Radiograph of the thorax.", {"modality": "chest X-ray"}),
    ("Plain radiograph of the knee.", {"modality": "X-ray", "organ": "knee"}),
    ("Computed tomography (CT) of the liver", {"modality": "CT", "organ": "liver"}),
    ("Computerized tomography scan", {"modality": "CT"}),
    ("T2-weighted magnetic resonance image of the spine", {"modality": "MRI", "organ": "spine"}),
    ("FDG-PET/CT of the lymph nodes", {"modality": "PET-CT", "organ": "lymph node"}),
    ("Photomicrograph (H&E stain) of the colon", {"modality": "histology", "organ": "colon"}),
    ("Hematoxylin and eosin stained section of skin", {"modality": "histology", "organ": "skin"}),
    ("Macroscopic view of the resected spleen", {"modality": "gross pathology", "organ": "spleen"}),
    ("Biopsy specimen of the stomach", {"modality": "histology", "organ": "stomach"}),
    ("Sonography of the gallbladder", {"modality": "ultrasound", "organ": "gallbladder"}),
    ("Endoscopic image of the oesophagus", {"modality": "endoscopy", "organ": "oesophagus"}),
    ("CT-guided biopsy of the liver", {"organ": "liver"}),
    ("X-ray crystallography of the enzyme", {}),
    # two things said: nothing known
    ("CT and MRI of the brain", {"organ": "brain"}),
    ("CT of the lungs and the liver", {"modality": "CT"}),
    ("CT of a fluid collection around the liver", {"modality": "CT"}),
    # findings and their spellings
    ("Enlarged heart on the chest X-ray", {"modality": "chest X-ray", "organ": "heart", "finding": "cardiomegaly"}),
    ("A renal calculus", {"organ": "kidney", "finding": "stone", "count": 1}),
    ("Herniated disc", {"organ": "spine", "finding": "disc herniation"}),
    ("A hypoechoic neoplasm", {"finding": "tumour", "count": 1}),
    ("An area of consolidation", {"finding": "opacity", "count": 1}),
    ("Pulmonary edema", {"organ": "lung", "finding": "oedema"}),
    ("Inflammatory infiltrate of the skin", {"organ": "skin", "finding": "inflammation"}),
    ("Fracture of the femur", {"organ": "bone", "finding": "fracture"}),
    # negation
    ("No evidence of a nodule.", {"absent": ("nodule",)}),
    ("No nodule, mass or effusion is seen.", {"absent": ("nodule", "tumour", "effusion")}),
    ("Without effusion or pneumothorax", {"absent": ("effusion", "pneumothorax")}),
    ("There is no effusion, but a small cyst is seen.", {"finding": "cyst", "size": "small", "count": 1,
     "absent": ("effusion",)}),
    ("A nodule is not seen.", {"absent": ("nodule",)}),
    ("The haemorrhage has completely resolved.", {"absent": ("haemorrhage",)}),
    ("Unenhanced CT without contrast shows a haemorrhage.", {"modality": "CT", "finding": "haemorrhage", "count": 1}),
    ("Possible nodule.", {"unsure": ("nodule",)}),
    ("An infarct cannot be excluded.", {"unsure": ("infarct",)}),
    ("No change in the cyst.", {"finding": "cyst"}),
    # nothing abnormal
    ("Normal chest radiograph.", {"modality": "chest X-ray", "finding": "none"}),
    ("MRI of the brain. No abnormality is seen.", {"modality": "MRI", "organ": "brain", "finding": "none"}),
    ("Gross view of the kidney without lesion.", {"modality": "gross pathology", "organ": "kidney",
     "finding": "none"}),
    ("The lungs are clear.", {"organ": "lung", "finding": "none"}),
    ("An otherwise normal liver with a cyst", {"organ": "liver", "finding": "cyst", "count": 1}),
    ("Body weight was normally distributed", {}),
    ("An abnormal area", {"finding": "lesion", "count": 1}),
    # side
    ("Left-sided effusion", {"finding": "effusion", "side": "left"}),
    ("Nodules in both lungs", {"organ": "lung", "finding": "nodule", "side": "bilateral"}),
    ("A nodule in the right lung and an effusion on the left", {"organ": "lung", "finding": "nodule", "count": 1}),
    ("The left ventricle is normal", {"organ": "heart", "finding": "none"}),
    ("Cyst (right panel)", {"finding": "cyst"}),
    # size
    ("A tiny cyst", {"finding": "cyst", "size": "small", "count": 1}),
    ("A bulky tumor of the small bowel", {"organ": "small bowel", "finding": "tumour", "size": "large", "count": 1}),
    ("Extensive necrosis", {"finding": "necrosis", "size": "large"}),
    ("A mass (large arrow)", {"finding": "tumour", "count": 1}),
    ("A nodule with a small effusion", {"finding": "nodule", "count": 1}),
    # count
    ("A pair of large cysts", {"finding": "cyst", "size": "large", "count": 2}),
    ("A 3 cm nodule", {"finding": "nodule", "count": 1}),
    ("Three foci of inflammation", {"finding": "inflammation", "count": 3}),
    ("Multiple small stones", {"finding": "stone", "size": "small", "count": "multiple"}),
    ("The cysts were three in number.", {"finding": "cyst", "count": 3}),
    ("Nodules of the liver in a patient", {"organ": "liver", "finding": "nodule"}),
    ("A solitary lesion; haemorrhage was found.", {"finding": "haemorrhage", "count": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "stated"), SAID, ids=[text[:50] for text, _ in SAID])
def test_says_what_the_text_states_and_nothing_else(text: str, stated: dict[str, Any]) -> None:
    facts = extract(text)
    wanted = {name: stated.get(name) for name in ("modality", "organ", "finding", "side", "size", "count")}
    assert {name: getattr(facts, name) for name in wanted} == wanted
    assert facts.absent == stated.get("absent", ())
    assert facts.unsure == stated.get("unsure", ())


def test_a_specific_finding_stands_over_a_general_noun_in_either_order() -> None:
    assert extract("The lesion, a haemorrhage, is large.").finding == "haemorrhage"
    assert extract("A haemorrhage. The lesion is large.").finding == "haemorrhage"
    assert extract("A haemorrhage. The lesion is large.").size == "large"


def _pair(caption: str, *sentences: str) -> Pair:
    return Pair("k", "k.png", caption, "Figure 1", tuple(Mention(s) for s in sentences))


def test_the_caption_wins_over_the_mentions() -> None:
    pair = _pair(
        "CT of the brain with a small haemorrhage on the left side.", "Figure 1: MRI with a large infarct, right."
    )
    facts = of_pair(pair, mentions=True)
    assert (facts.modality, facts.finding, facts.size, facts.side) == ("CT", "haemorrhage", "small", "left")


def test_what_the_caption_denies_is_not_affirmed_by_a_mention() -> None:
    facts = of_pair(_pair("Normal CT of the brain.", "Later a large haemorrhage was found (Figure 1)."), mentions=True)
    assert (facts.finding, facts.findings, facts.size) == ("none", (), None)
    facts = of_pair(_pair("CT without haemorrhage.", "Figure 1 shows a haemorrhage."), mentions=True)
    assert facts.finding is None
    assert facts.absent == ("haemorrhage",)


def test_a_contradiction_within_the_caption_is_not_settled_by_a_mention() -> None:
    facts = of_pair(_pair("CT and MRI of the brain.", "Figure 1 shows the MRI."), mentions=True)
    assert facts.modality is None


def test_a_mention_speaks_of_the_captions_finding_only() -> None:
    pair = _pair("CT with a cyst.", "The effusion was large (Figure 1).", "The lesion lay on the left side (Figure 1).")
    facts = of_pair(pair, mentions=True)
    assert (facts.finding, facts.size, facts.side) == ("cyst", None, "left")


def test_a_sentence_that_cites_several_figures_says_nothing_about_one() -> None:
    for sentence in (
        "Cysts were left-sided (Figs. 1-3).",
        "It was on the left in Figure 1 and on the right in Figure 2.",
    ):
        assert of_pair(_pair("CT with a cyst.", sentence), mentions=True).side is None
    assert of_pair(_pair("CT with a cyst.", "It lay on the left (Figure 1A)."), mentions=True).side == "left"


def test_merging_with_nothing_changes_nothing() -> None:
    facts = extract("Axial CT of the brain showing a large haemorrhage on the left side, no infarct.")
    assert merge(facts, Facts()) == facts
    assert merge(Facts(), facts) == facts


def test_reads_the_phantom_worlds_truth_from_its_articles() -> None:
    rng = np.random.default_rng(17)
    for _ in range(250):
        truth = sample(rng)
        telling = tell(truth, "Figure 2", rng)
        pair = _pair(telling.caption, *telling.sentences)
        read = of_pair(pair, mentions=True)
        assert (read.modality, read.organ, read.finding) == (DOMAIN_NAMES[truth.domain], truth.organ, truth.finding), (
            pair
        )
        assert (read.side, read.size, read.count) == (truth.side or None, truth.size or None, truth.count or None), pair
        caption_only = of_pair(pair, mentions=False)
        for name in telling.withheld:
            assert getattr(caption_only, name) is None, pair
