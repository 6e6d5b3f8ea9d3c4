"""The verb and the thing of a sentence; the table is by hand."""

from __future__ import annotations

import re

import pytest

from llavamed.instruct import tables
from llavamed.instruct.verbnoun import pair

SAID = [
    ("Describe the image in detail.", ("describe", "image")),
    ("Give a short summary of the picture.", ("give", "summary")),
    ("What type of image is this?", ("be", "image")),
    ("What organ is shown?", ("show", "organ")),
    ("What does the picture show?", ("show", "picture")),
    ("Is there a nodule in the left lung?", ("be", "nodule")),
    ("How many nodules can you see?", ("see", "nodule")),
    ("Do you see any abnormality?", ("see", "abnormality")),
    ("Where is the lesion located?", ("locate", "lesion")),
    ("Are the lungs clear?", ("be", "lung")),
    ("Can you tell me which imaging technique this is?", ("tell", "technique")),
    ("State the size of the abnormality.", ("state", "size")),
    ("The image shows a large effusion on the right side.", ("show", "effusion")),
    ("It replaces the upper pole.", ("replace", "pole")),
    ("There are two crypt abscesses.", ("be", "abscess")),
    ("Its wall is thickened.", ("thicken", "wall")),
    ("The modality is CT.", ("be", "ct")),
    ("Yes, there is an abnormality.", ("be", "abnormality")),
    ("No, the left lung is clear. The effusion is on the right side.", ("be", "lung")),
    ("No biopsies were taken.", ("take", "biopsy")),
    ("A CT scan.", None),
    ("Yes", None),
    ("", None),
    ("...", None),
]


@pytest.mark.parametrize(("sentence", "found"), SAID, ids=[sentence for sentence, _ in SAID])
def test_a_sentence_has_this_verb_and_this_noun(sentence: str, found: tuple[str, str] | None) -> None:
    assert pair(sentence) == found


def test_most_of_our_own_questions_have_a_pair() -> None:
    kinds = tables.load("questions.yaml")["kinds"].values()
    asked = [re.sub(r"{\w+}", "nodule", question) for kind in kinds for question in kind["questions"]]
    assert sum(pair(question) is not None for question in asked) > 0.8 * len(asked)
