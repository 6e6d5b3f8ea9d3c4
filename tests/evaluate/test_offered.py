"""The options of closed questions, read from the words of real ones, and what they make of answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from llavamed.evaluate import benchmarks
from llavamed.evaluate.benchmarks.offered import closed_options
from llavamed.evaluate.metrics import llava_med as metrics


@pytest.mark.parametrize(
    ("question", "answer", "options"),
    [
        ("Is the lesion on the left or right side of the brain?", "Left", ("left", "right")),
        ("Is the gastric bubble shown on the left or right side of the patient?", "Right side", ("left", "right")),
        ("Are there multiple or just 1 metastatic focus?", "one", ("multiple", "1")),
        ("Is this a T1 weighted, T2 weighted, or FLAIR image?", "FLAIR", ("T1", "T2", "FLAIR")),
        ("Is this a T1 weighted or T2 weighted MRI image?", "T2", ("T1", "T2")),
        ("Is there hypoinflation or hyperinflation of the lung", "Hyperinflation", ("hypoinflation", "hyperinflation")),
        ("Was a CT or MRI used to take the above image?", "MRI", ("CT", "MRI")),
        ("Are opacities located on the left, right, or both sides?", "Both", ("left", "right", "both")),
        ("Which is the biggest in this image,lung,liver or heart?", "Lung", ("lung", "liver", "heart")),
        ("Which is smaller in this image,liver or right kidney?", "Right Kidney", ("liver", "right kidney")),
        ("Where is the heart in this image,left,top or upper left?", "Top", ("left", "top", "upper left")),
        ("Which plane, transverse plane or coronal plane?", "Coronal Plane", ("transverse", "coronal")),
        ("Is there an effusion or a pneumothorax?", "Yes.", ("yes", "no")),
        ("Which is bigger in this image, kidney or spleen?", "Liver", ()),  # the reference is neither
        ("Where is the lesion located?", "Left", ()),
        ("Or?", "Left", ()),
        (", or , or or", "Left", ()),
        ("", "Left", ()),
    ],
)
def test_a_questions_options_are_those_beside_or(question: str, answer: str, options: tuple[str, ...]) -> None:
    assert closed_options(question, answer, closed=True) == options
    assert closed_options(question, answer, closed=False) == ()


@pytest.mark.parametrize(
    ("name", "folder", "others", "told"), [("vqa-rad", "vqa_rad", 21, 21), ("slake", "slake", 61, 60)]
)
def test_all_closed_questions_of_the_test_splits_but_one_have_options(
    shared_data: Path, name: str, folder: str, others: int, told: int
) -> None:
    closed = [question for question in benchmarks.load(name, shared_data / folder).questions if question.closed]
    beyond = [question for question in closed if question.options != ("yes", "no")]
    assert (len(beyond), sum(bool(question.options) for question in beyond)) == (others, told)
    for question in filter(lambda each: each.options, beyond):
        assert metrics.strict_closed(question.answer, question.answer, question.options) == 1.0
        right = [
            metrics.strict_closed(f"It is {option}.", question.answer, question.options) for option in question.options
        ]
        assert sum(right) == 1.0


@pytest.mark.parametrize(
    ("prediction", "parsed", "credit"),
    [
        *((text, "liver", 1.0) for text in ("It is the liver", "The liver is larger", "liver, I think", "Liver")),
        ("the heart", "heart", 0.0),
        *((text, None, 0.0) for text in ("I cannot tell", "The liver is larger than the heart", "", "no")),
    ],
)
def test_an_answer_beyond_yes_and_no_is_the_one_option_it_names(
    prediction: str, parsed: str | None, credit: float
) -> None:
    options = closed_options("Which is bigger in this image, liver or heart?", "Liver", closed=True)
    assert metrics.parse_closed(prediction, "Liver", options) == parsed
    assert metrics.strict_closed(prediction, "Liver", options) == credit


def test_the_options_noun_may_be_said_or_left_out() -> None:
    options = closed_options("Which plane, transverse plane or coronal plane?", "Coronal Plane", closed=True)
    for prediction in ("coronal", "Coronal plane", "This is the coronal plane."):
        assert metrics.strict_closed(prediction, "Coronal Plane", options) == 1.0
    assert metrics.strict_closed("transverse plane", "Coronal Plane", options) == 0.0
