"""Cleaning: one case per rule, and the defects of LLaVA-Med's post-processing that must not come back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from llavamed.instruct import prompts
from llavamed.instruct.clean import clean, clean_caption
from llavamed.instruct.generate import generate
from llavamed.recipe import InstructSection
from llavamed.records import Mention, Message, Pair, assistant, user
from tests.instruct.conftest import TURNS, Endpoint, Said


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
        # as language models have put it
        ("What is it?", "As a text-based assistant, I'm not able to look at pictures.", "turn_refusal"),
        ("What is it?", "It is difficult to say without more context.", "turn_refusal"),
        ("How large is it?", "The size cannot be determined from the image alone.", "turn_refusal"),
        ("Who is it?", "The image does not provide any information on the patient's identity.", "turn_refusal"),
        ("Why?", "There is no specific information about the cause.", "turn_refusal"),
        ("What is it?", "Additional information would be needed to tell.", "turn_refusal"),
        ("What is it?", "No image was provided.", "turn_refusal"),
        ("What is it?", "I don't have access to the picture.", "turn_refusal"),
        ("What is it?", "According to the authors it is a cyst.", "turn_leak"),
        ("What does this paper show?", "A cyst.", "turn_leak"),
        ("What is it?", "It is labeled as a cyst.", "turn_leak"),
        ("What is it?", "From the available information, a cyst.", "turn_leak"),
        ("What is it?", "The legend explains that it is a cyst.", "turn_leak"),
        ("What is it?", "It is a cyst, as stated in the accompanying text.", "turn_leak"),
        ("What is it?", "It is a cyst, which was mentioned in the article.", "turn_leak"),
        ("What is it?", "A cyst, according to the report.", "turn_leak"),
        ("What is it?", "A cyst, from the context.", "turn_leak"),
        ("What is it?", "It is difficult to tell from this image.", "turn_refusal"),
        ("How old is he?", "The age of the patient was not given.", "turn_refusal"),
        ("What is it?", "A cyst. User: How large is it? Assistant: Large.", "turn_two_in_one"),
        ("What is it?", "A cyst.\n**Question 2:** How large is it?", "turn_two_in_one"),
        ("What organ is shown in the image?", "The organ shown in this image.", "turn_repeats_question"),
        ("Which lobe contains the nodule?", "The nodule is in the lobe.", "turn_repeats_question"),
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
        "The mitotic figure is atypical.",
        "The image shows a CT of the liver.",
        "It cannot be compressed.",
        "A normal image.",
        "The diaphragm cannot be identified.",
        "The costophrenic angle is hard to see.",
        "There is no information gap between the vertebrae.",
        "It has an authoritative border.",
        "The answer: a cyst.",
        "In the report one would write: a cyst.",
        "No, contrast was not given.",
        "No fracture is seen in this context.",
        "It is difficult to tell the margins apart.",
        "A control panel and a table are beside the patient.",
        "The appendix is thickened in the context of trauma.",
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
    "lead",
    [
        "According to the Figure caption, ",
        "The caption states that ",
        "AS DESCRIBED IN THE TEXT, ",
        "According to the report, ",
        "It is mentioned that ",
    ],
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


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        ("A 61-year-old man with an effusion.", "turn_unseeable"),
        ("The patient is aged 61.", "turn_unseeable"),
        ("This was taken in March 2019.", "turn_unseeable"),
        ("It was taken three months and 5 days after surgery.", "turn_unseeable"),
        ("The lesion measures 2.3 cm.", "turn_unseeable"),
        ("The serum level was 12 ng/mL.", "turn_unseeable"),
        ("About 40% of the cells are stained.", "turn_unseeable"),
        ("The groups differ (p < 0.05).", "turn_unseeable"),
        ("There are more of them in treated animals (n = 12).", "turn_unseeable"),
        ("The section is shown at ×200.", "turn_unseeable"),
        ("The section is shown at 400x.", "turn_unseeable"),
        ("This is the MRI of patient 3.", "turn_unseeable"),
        ("The figure shows a cyst.", "turn_leak"),
        ("Panel A has a cyst.", "turn_leak"),
        ("A cyst, better seen in panel (b).", "turn_leak"),
        ("As Table 2 shows, a cyst.", "turn_leak"),
        ("The SUVmax is 8.4.", "turn_unseeable"),
        ("The white cell count was 17.2.", "turn_unseeable"),
        ("The white cell count was 17.", "turn_unseeable"),
        ("There were 12,500 cells.", "turn_unseeable"),
        ("This is a 45 y/o woman.", "turn_unseeable"),
        ("This is a 45-yr-old woman.", "turn_unseeable"),
        ("This is a forty-five-year-old woman.", "turn_unseeable"),
        ("A woman in her sixties.", "turn_unseeable"),
        ("It was staged T3N1M0.", "turn_unseeable"),
        ("It is a pT2 N0 carcinoma.", "turn_unseeable"),
        ("The patient was treated with cisplatin.", "turn_unseeable"),
        ("The patient underwent surgery.", "turn_unseeable"),
        ("The patient is Mary Jones.", "turn_name"),
        ("The scan was acquired on a Siemens scanner.", "turn_name"),
        ("Dr. Smith removed the kidney.", "turn_name"),
        ("It is the method of Miller et al.", "turn_name"),
        ("The image comes from Saint Mary Hospital.", "turn_name"),
    ],
)
def test_what_no_image_shows_goes_where_a_language_model_wrote_it(answer: str, rule: str) -> None:
    messages = _talk(*GOOD, "What else?", answer)
    assert clean(messages, written=True) == (_talk(*GOOD), Counter({rule: 1}))
    assert clean(messages) == (messages, Counter())


@pytest.mark.parametrize(
    "answer",
    [
        "There are two nodules.",
        "It is a T2-weighted image with 3 lesions.",
        "The C6 and L5 vertebrae are fractured.",
        "An Ewing sarcoma; Gleason pattern 4.",
        "The tumour lies in segment 7 of the liver.",
        "Congo Red and Prussian Blue were used.",
        "The X-ray is taken from the front.",
        "It is twice as large as the other one.",
        "These are the hallucinations of Charles Bonnet syndrome.",
        "There are 3 lesions in segment 7, and 15 nodules.",
    ],
)
def test_numbers_and_names_that_an_image_shows_stay(answer: str) -> None:
    messages = _talk("What is seen?", answer)
    assert clean(messages, written=True) == (messages, Counter())


@pytest.mark.parametrize(
    ("question", "answer", "stays"),
    [
        ("Is it large?", "It is large.", True),
        ("Which is it, small or large?", "It is large.", True),
        ("How large is it?", "Large.", True),
        ("What is it?", "It is a cyst.", True),
        ("Where is the cyst?", "In the left kidney.", True),
        ("What abnormality is seen?", "No abnormality is seen.", True),
        ("Where is the cyst?", "The cyst is here.", False),
    ],
)
def test_only_an_answer_without_anything_new_repeats_its_question(question: str, answer: str, stays: bool) -> None:
    assert bool(clean(_talk(question, answer))[0]) == stays


@pytest.mark.parametrize(
    ("question", "answer", "stays"),
    [
        ("Is it large?", "Yes", True),
        ("Is it large?", "no.", True),
        ("Is it large?", "Yes, it is large.", False),
        ("Where is it? A) On the left B) On the right C) In the middle", "B) On the right", True),
        ("Where is it? A) On the left B) On the right", "b) on the right.", True),
        ("Where is it? A) On the left B) On the right", "B) On the left", False),
        ("Where is it? A) On the left B) On the right", "On the right", False),
        ("Where is it? A) On the left B) On the right", "Yes", False),
    ],
)
def test_a_closed_question_has_one_of_its_answers(question: str, answer: str, stays: bool) -> None:
    kept, dropped = clean(_talk(question, answer), closed=True)
    assert (bool(kept), dropped["turn_not_closed"]) == (stays, int(not stays))


SOURCE = (
    "Axial T2-weighted MRI: tooth 36, 3 cysts on Day 45. Congo Red, Ki-67 of 80. In Boston, Alma Reyes and Crohn "
    "disease; Magnetic Resonance Imaging in Stage 7.",
    "214 slices were read by Novak (Figure 1), white cell count 17.2, follow-up at 45 weeks in Hodgkin lymphoma.",
)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How many are there?", "There are 214 of them."),
        ("When?", "On the day numbered 45."),
        ("What is its index?", "It is 80."),
        ("Where is she?", "She is in Boston."),
        ("Who has it?", "It is the knee of Alma Reyes."),
        ("Who read it?", "It was read by Novak."),
        ("Why are 214 slices needed?", "To see the cyst."),
    ],
)
def test_numbers_and_names_copied_from_the_source_go(question: str, answer: str) -> None:
    messages = _talk(*GOOD, question, answer)
    assert clean(messages, written=True, source=SOURCE) == (_talk(*GOOD), Counter({"turn_copied": 1}))
    assert clean(messages, written=True) == (messages, Counter())  # not in what the teacher read: it was seen
    assert clean(messages, source=SOURCE) == (messages, Counter())


@pytest.mark.parametrize(
    "answer",
    [
        "There are 3 cysts.",
        "It is a T2-weighted Magnetic Resonance Imaging scan.",
        "It lies behind tooth 36.",
        "The amyloid was stained with Congo Red.",
        "The Ki-67 index is high.",
        "The wall is thickened, as in Crohn disease.",
        "These are the cells seen in Hodgkin lymphoma.",
        "There are 21 slices.",
    ],
)
def test_what_the_source_and_the_image_both_show_stays(answer: str) -> None:
    messages = _talk("What is seen?", answer)
    assert clean(messages, written=True, source=SOURCE) == (messages, Counter())


@pytest.mark.parametrize("name", ["10k", "60k", "60k-im", "detailed", "closed"])
def test_what_the_prompts_show_the_teacher_is_not_dropped(name: str) -> None:
    prompt = prompts.load(name)
    for example in prompt.examples:
        messages = _talk(*(text for turn in example.turns for text in (turn.question, turn.answer)))
        source = (example.given.caption, *example.given.mentions)
        closed = prompt.style == "closed"
        assert clean(messages, written=True, closed=closed, source=source) == (messages, Counter())


def test_the_stage_gives_cleaning_what_the_teacher_read(
    endpoint: Endpoint, make_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    turns = [*TURNS["turns"], {"question": "How many slices?", "answer": "214 slices."}]
    turns.append({"question": "Where was it?", "answer": "It was taken in Boston."})
    endpoint.reply = lambda body: Said(json.dumps({"turns": turns}))
    mention = Mention("The scan was made in Boston (Figure 1).")
    pair = Pair("k", "k.png", "CT of a tumour, 214 slices.", "Figure 1", (mention,), domain="ct_scan")
    section = InstructSection(teacher=endpoint.url, teacher_model="m")
    made = generate(make_corpus([pair]), tmp_path / "out", section, seed=0)
    assert (made.counts["turns"], made.funnel["cleaning: turn_copied"]) == (2, 2)
