"""Cleaning: one case per rule, and the defects of LLaVA-Med's post-processing that must not come back."""

from __future__ import annotations

from collections import Counter

import pytest

from llavamed.instruct.clean import clean, clean_caption
from llavamed.records import Message, assistant, user


def _talk(*texts: str) -> tuple[Message, ...]:
    return tuple(assistant(t) if n % 2 else user(t, images=int(n == 0)) for n, t in enumerate(texts))


GOOD = ("Which organ is shown?", "This is the liver.")


@pytest.mark.parametrize(
    ("question", "answer", "rule"),
    [
        ("What is it?", "", "turn_empty"),
        ("", "A cyst.", "turn_empty"),
        ("What is it?", "I'm sorry, but I cannot see the image.", "turn_refusal"),
        ("What is it?", "As an AI language model, I have no eyes.", "turn_refusal"),
        ("How old is he?", "The age is not specified.", "turn_refusal"),
        ("What is it?", "The caption mentions a cyst.", "turn_leak"),
        ("What does the figure legend say?", "A cyst.", "turn_leak"),
        ("What is it?", "A cyst, as described in the text.", "turn_leak"),
        ("What is it?", "A cyst, see Fig. 2.", "turn_leak"),
        ("Is it a cyst?", "Is it a cyst", "turn_repeats_question"),
    ],
)
def test_each_rule_drops_its_turn_alone_and_counts_it(question: str, answer: str, rule: str) -> None:
    kept, dropped = clean(_talk(*GOOD, question, answer))
    assert kept == _talk(*GOOD)
    assert dropped == Counter({rule: 1})


@pytest.mark.parametrize(
    "answer",
    [
        "Mitotic figures are numerous.",
        "The image shows a CT of the liver.",
        "It cannot be compressed.",
        "A normal image.",
    ],
)
def test_ordinary_answers_stay(answer: str) -> None:
    messages = _talk("What is seen?", answer)
    assert clean(messages) == (messages, Counter())


def test_defect_5_a_lead_in_is_cut_and_the_capitals_of_the_answer_stay() -> None:
    kept, dropped = clean(_talk("What is it?", "Based on the caption, the CT scan shows a GIST."))
    assert kept[1].text == "The CT scan shows a GIST."
    assert dropped == Counter({"lead_in_cut": 1})


@pytest.mark.parametrize(
    "lead", ["According to the Figure caption, ", "The caption states that ", "AS DESCRIBED IN THE TEXT, "]
)
def test_defect_6_a_rule_matches_whatever_the_capitals(lead: str) -> None:
    kept, _ = clean(_talk("What is it?", f"{lead}a GIST is seen."))
    assert kept[1].text == "A GIST is seen."


def test_defect_7_the_image_stays_when_the_first_turn_goes() -> None:
    kept, dropped = clean(_talk("What is it?", "I cannot see the image.", *GOOD))
    assert [m.text for m in kept] == list(GOOD)
    assert [m.num_images for m in kept] == [1, 0]
    assert dropped == Counter({"turn_refusal": 1})


def test_an_image_after_the_question_stays_after_it() -> None:
    last = Message("user", ({"type": "text", "text": "What is it?"}, {"type": "image"}))
    kept, _ = clean((last, assistant("I cannot see the image."), user("And now?"), assistant("A cyst.")))
    assert kept[0].content == ({"type": "text", "text": "And now?"}, {"type": "image"})


def test_a_missing_image_token_is_restored_and_counted() -> None:
    kept, dropped = clean((user(GOOD[0]), assistant(GOOD[1])))
    assert kept == _talk(*GOOD)
    assert dropped == Counter({"image_token_restored": 1})


def test_speakers_out_of_order_lose_what_cannot_be_paired() -> None:
    messages = (assistant("Hello."), user("What?", images=1), user(GOOD[0]), assistant(GOOD[1]), user("And?"))
    kept, dropped = clean(messages)
    assert kept == _talk(*GOOD)
    assert dropped["speaker_order"] == 3


def test_nothing_left_is_an_empty_conversation() -> None:
    assert clean(_talk("What?", ""))[0] == ()


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("Figure 1. CT of the liver.", "CT of the liver."),
        ("Fig. 3A: A nodule (arrow) is seen (Fig. 2).", "A nodule is seen."),
        ("(A) CT of the lung. (B, C) MRI.", "CT of the lung. MRI."),
        ("A, Axial CT. B, Coronal CT.", "Axial CT. Coronal CT."),
        ("CT of the liver, as shown in Figure 2.", "CT of the liver."),
        ("H&E section (original magnification ×200). Scale bar: 2.5 µm.", "H&E section."),
        ("Arrows indicate necrosis. The rest is normal.", "The rest is normal."),
        ("MRI of the knee. Reproduced with permission from the publisher.", "MRI of the knee."),
        ("The value is log10(p). A GIST with the 3.5 cm cyst.", "The value is log10(p). A GIST with the 3.5 cm cyst."),
        ("Figure 2.", ""),
    ],
)
def test_a_caption_keeps_what_is_about_the_picture(caption: str, cleaned: str) -> None:
    assert clean_caption(caption) == cleaned
