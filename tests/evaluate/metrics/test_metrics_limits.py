"""What every scorer promises: it says who it is, stays in bounds, and one endless answer does not hold up the rest."""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Callable

import pytest

from llavamed.evaluate.metrics import (
    chartqa,
    choice,
    gqa,
    llava_med,
    mme,
    mmmu,
    pope,
    report,
    strict,
    textvqa,
    vqa_v2,
)

FAMILIES = ("llava_med", "vqa_v2", "textvqa", "gqa", "pope", "mme", "mmmu", "chartqa", "choice", "report")
OPTIONS = ("left lung", "liver", "kidney", "a")
LETTERED = dict(zip("ABCD", OPTIONS, strict=True))
TEN = ("left lung",) * 6 + ("lung",) * 4
SENTENCE = "the left lung is normal . the heart is large"

SCORES: dict[str, Callable[[str], float]] = {
    "llava_med overlap": lambda text: llava_med.official_overlap(text, SENTENCE).f1,
    "llava_med exact": lambda text: llava_med.official_exact(text, SENTENCE),
    "llava_med contains": lambda text: llava_med.official_contains(text, "no"),
    "llava_med run_eval": lambda text: llava_med.official_closed_run_eval(text, "no"),
    "llava_med bleu": lambda text: llava_med.official_bleu(text, SENTENCE),
    "llava_med candidates": lambda text: llava_med.official_candidate_accuracy(text, SENTENCE, range(500)),
    "llava_med closed": lambda text: llava_med.strict_closed(text, "left lung", OPTIONS),
    "strict exact": lambda text: strict.strict_exact(text, SENTENCE),
    "strict overlap": lambda text: strict.strict_overlap(text, SENTENCE).f1,
    "vqa_v2": lambda text: vqa_v2.official_accuracy(text, TEN),
    "vqa_v2 strict": lambda text: vqa_v2.strict_exact(text, TEN),
    "textvqa": lambda text: textvqa.official_accuracy(text, TEN),
    "gqa": lambda text: gqa.official_accuracy(text, "lung"),
    "gqa strict": lambda text: gqa.strict_exact(text, "no"),
    "pope": lambda text: pope.official_accuracy(text, "no"),
    "pope strict": lambda text: pope.strict_accuracy(text, "no"),
    "mme": lambda text: mme.official_accuracy(text, "no"),
    "mmmu choice": lambda text: mmmu.official_scores([mmmu.Item(text, "A", LETTERED)])[0],
    "mmmu open": lambda text: mmmu.official_open(text, ["5", "x"]),
    "mmmu strict": lambda text: mmmu.strict_score(mmmu.Item(text, "A", LETTERED)),
    "mmmu strict open": lambda text: mmmu.strict_score(mmmu.Item(text, ["5"], {})),
    "chartqa relaxed": lambda text: chartqa.official_relaxed(text, "5"),
    "chartqa mistral": lambda text: chartqa.official_mistral(text, "5"),
    "chartqa final": lambda text: chartqa.official_final_answer(text, "5"),
    "chartqa strict": lambda text: chartqa.strict_relaxed(text, "5"),
    "choice nearest": lambda text: choice.official_nearest(text, OPTIONS, "A"),
    "choice vlmevalkit": lambda text: choice.official_vlmevalkit(text, OPTIONS, "A"),
    "choice strict": lambda text: choice.strict_choice(text, OPTIONS, "A"),
    "report bleu": lambda text: report.corpus_bleu([report.clean(text)], [[SENTENCE]])[3],
    "report rouge": lambda text: report.rouge_l([text], [[SENTENCE * 5]])[0],
    "report cider": lambda text: report.cider([text, ""], [[SENTENCE], ["normal"]])[0] / 10,
    "report strict": lambda text: report.strict_f1(text, SENTENCE),
}

REPEATED = {
    "a sentence": "The left lung is normal. ",
    "a letter": "a",
    "a digit": "1",
    "blanks": " ",
    "articles": "A ",
    "periods": ".",
    "lines": "x is 5\n",
    "answers": "answer is ",
    "numbers": "-1.1e,",
    "thousands": "1,111",
    "brackets": "(A",
    "marks": '*="',
    "not": "not B ",
}


def repeated(name: str, length: int) -> str:
    """Something repeated, with an end that no repetition leads up to."""
    piece = REPEATED[name]
    return f"answer{piece * (length // len(piece))}x"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_names_its_scorers_and_says_why_they_differ(family: str) -> None:
    module = importlib.import_module(f"llavamed.evaluate.metrics.{family}")
    assert module.OFFICIAL.startswith(f"{family}_official/")
    assert module.STRICT.startswith(f"{family}_strict/")
    assert 60 < len(module.WHY_THEY_DIFFER) < 500
    assert module.WHY_THEY_DIFFER.endswith(".")


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_between_0_and_1_whatever_the_answer(name: str, texts: Callable[[int, int], list[str]]) -> None:
    strange = ["", " ", "\x00", "İ", "ﬁ" * 3, "\ud800", "٣", "NaN", "inf", "-inf", "1e400", "🫀 yes", "no\r\nno"]
    for text in [*strange, *texts(60, 107)]:
        assert 0.0 <= SCORES[name](text) <= 1.0 + 1e-9, repr(text)


@pytest.mark.parametrize("what", REPEATED)
def test_time_grows_with_the_length_of_an_answer_and_not_with_its_square(what: str) -> None:
    text = repeated(what, 50_000)  # the square of which is 2.5 thousand million steps
    for name, score in SCORES.items():
        start = time.process_time()
        score(text)
        assert time.process_time() - start < 2, name


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORES)
def test_an_answer_of_ten_megabytes_is_scored_in_seconds(name: str) -> None:
    rng = random.Random(109)
    words = " ".join(f"{rng.randrange(10**9):x}" for _ in range(1_250_000))[:10_000_000]
    for text in (words, repeated("articles", 10_000_000), repeated("numbers", 10_000_000)):
        start = time.process_time()
        score = SCORES[name](text)
        assert 0.0 <= score <= 1.0 + 1e-9
        assert time.process_time() - start < 30
