"""Full stops that end a sentence and full stops that do not."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llavamed.corpus.sentences import since, spans, split


@pytest.mark.parametrize(
    "sentence",
    [
        "The mass is seen in Fig. 2 and in Figs. 3A and 4.",
        "As in Fig. 2, Tab. 1 and Eq. 3, it grew.",
        "This was described by Smith et al. (2010) and by Jones et al. Nature reported it.",
        "Signs of inflammation (e.g. Crohn's disease, i.e. Stage 2) were seen.",
        "The images of J. R. Smith and of Dr. Jones were read.",
        "It measured 3.5 cm at 1.5 T vs. 2.1 cm.",
        "E. coli and S. Typhimurium were grown.",
        "The U.S. Food and Drug Administration approved it.",
        "Values were approx. 5 in No. 7.",
    ],
)
def test_one_sentence_stays_one(sentence: str) -> None:
    assert split(sentence) == [sentence]


@pytest.mark.parametrize(
    "sentences",
    [
        ["A mass is seen.", "It is large."],
        ["See Fig. 2.", "The lesion grew by 3.5 cm (Fig. 3)."],
        ["He had hepatitis C.", "The patient was treated."],
        ["Was it benign?", "No!", "It was not."],
        ["It was seen (Fig. 1).", "(A second lesion was not.)", "Both grew."],
        ["As shown before.[12]", "The lesion grew."],
        ["As shown before.12,13", "The lesion grew."],
        ["This follows Smith et al.", "The results agree."],
        ["β-blockers were given.", "Γ-rays were not."],
    ],
)
def test_several_sentences_are_told_apart(sentences: list[str]) -> None:
    assert split(" ".join(sentences)) == sentences


def test_spans_cover_all_but_the_spaces_between() -> None:
    text = "First one. Second (Fig. 2)! Third? Rest without a stop"
    found = spans(text)
    assert found[0][0] == 0
    assert found[-1][1] == len(text)
    assert all(text[a[1] : b[0]] == " " for a, b in pairwise(found))


@pytest.mark.parametrize("stop", [".", "...", '.")', ".[12, 13]", ".12–14", " al.", " (e.g.", " C."])
def test_a_question_elsewhere_changes_no_other_sentence(stop: str) -> None:
    text = f"Cells grew{stop} The cells died{stop} Nature reported it{stop} 12 grew."
    assert spans(f"{text} Did they? Yes!")[:-2] == spans(text)


def test_from_anywhere_on_the_sentences_are_those_of_the_whole() -> None:
    text = " ".join(
        f"Case {n} of J. R. Smith, e.g. in Fig. {n}{' and so on' * (n % 90)}. Then it ended!" for n in range(200)
    )
    whole = spans(text)
    for at in range(0, len(text), 97):
        assert list(since(text, at)) == [span for span in whole if span[1] >= at]


def test_nothing_in_nothing_out() -> None:
    assert split("") == []


@pytest.mark.parametrize("text", ["." * 200_000, "a" * 200_000, "a." * 100_000, "[1 " * 60_000, ". " * 100_000])
def test_hostile_text_takes_no_more_than_linear_time(text: str) -> None:
    spans(text)  # a quadratic pattern would take minutes here
