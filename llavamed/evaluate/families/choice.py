"""Multiple choice: PMC-VQA, OmniMedVQA, GMAI-MMBench, MedMCQA and MMMU.

Strict is the same for all: the choice that the answer states, and an answer that states none is wrong. Official
differs with the benchmark: see `metrics/choice.py` and `metrics/mmmu.py`. MMMU's draws a letter at random where it
finds none, from one generator for the whole run, so it is the one credit that is not of a question alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llavamed.evaluate.families.family import Answered, Credits, Family, Metric, mean
from llavamed.evaluate.metrics import choice, mmmu
from llavamed.records import Question

Official = Callable[[str, Sequence[str], str], float]

_HEADLINE = (("accuracy", "accuracy"),)
_NO_LIKELIHOOD = (
    "The official score (lm-evaluation-harness) compares the likelihoods of the letters, which an answer in words does "
    "not have, so only the strict score is here: the choice that the answer states, and none is wrong. The benchmark "
    "medmcqa-likelihood has the official one."
)
_LIKELIHOOD = (
    "Both take the letter that the model holds likeliest, so they differ only for answers made elsewhere that are not "
    "a letter alone."
)

_NOT_OFFERED = "\0"  # stands in no answer


def _parse(text: str, question: Question) -> str | None:
    """The letter of the option that the answer states; one that is not offered is no choice."""
    letter = choice.parse_choice(text, question.options)
    return letter if letter in question.lettered else None


def _credit(scorer: Official) -> Callable[[str, Question], float]:
    """Without a right option among those offered no answer is right, as in OmniMedVQA's script."""

    def credit(text: str, question: Question) -> float:
        options = [option or _NOT_OFFERED for option in question.options]
        return scorer(text, options, question.letter) if question.letter else 0.0

    return credit


def _choice(name: str, official: Official | None, why: str = choice.WHY_THEY_DIFFER) -> Family:
    metrics = {"accuracy": mean("strict", choice.STRICT, _credit(choice.strict_choice))}
    if official is not None:
        metrics["accuracy_official"] = mean("official", choice.OFFICIAL, _credit(official))
    return Family(
        name=name,
        metrics=metrics,
        headline=_HEADLINE,
        rules=(("accuracy", "accuracy", "accuracy_official"),),
        why_they_differ=why,
        measures=_HEADLINE,
        decisive=("accuracy",),
        parse=_parse,
    )


def _pmc_vqa(text: str, options: Sequence[str], letter: str) -> float:
    """The script compares with the cells of the file, which have the letter before the text and blanks around."""
    cells = [f" {place}:{option} " for place, option in zip(choice.LETTERS, options, strict=False)]
    return choice.official_pmc_vqa(text, cells, letter)


OMNIMED_VQA = _choice("omnimed_vqa", choice.official_nearest)
PMC_VQA = _choice("pmc_vqa", _pmc_vqa)
GMAI_MMBENCH = _choice("gmai_mmbench", choice.official_vlmevalkit)
MEDMCQA = _choice("medmcqa", None, _NO_LIKELIHOOD)


def _likeliest(text: str, options: Sequence[str], letter: str) -> float:
    """The answer is the letter itself: `engine` picked the likeliest."""
    return float(text.strip() == letter)


MEDMCQA_LIKELIHOOD = _choice("medmcqa_likelihood", _likeliest, _LIKELIHOOD)

# ---------------------------------------------------------------- MMMU


_UNKNOWN_OPTIONS = ("",) * 9  # MMMU's questions have at most nine
_BARE_KEY = (
    "The options are not there, only the answer key: both modes take the letter that an answer states. The letters of "
    "MMMU's own total_val_output.json are drawn at random where its script read none, so they have no strict score: "
    "give the <Subject>/output.json files for that."
)


def _item(question: Question, text: str) -> mmmu.Item:
    return mmmu.Item(text, question.letter or question.references, question.lettered)


def _key_alone(question: Question) -> bool:
    """Only the answer key is there, without options: then an answer is the letter that it states, in both modes."""
    return bool(question.letter) and not question.options


def _letter(text: str) -> str | None:
    """What an answer states where the options are not known: "(B)", "B. foo", "The answer is B."; else None."""
    return choice.parse_choice(text, _UNKNOWN_OPTIONS)


def _official(items: Sequence[Answered]) -> Credits:
    """Drawn in the script's order (subjects by name, rows of the file), given back in that of `items`."""
    whole = [place for place, item in enumerate(items) if not _key_alone(item.question)]
    whole.sort(key=lambda place: (items[place].question.groups.get("subject", ""), items[place].row))
    drawn = mmmu.official_scores([_item(items[place].question, items[place].text) for place in whole])
    found = dict(zip(whole, drawn, strict=True))
    return [
        0.0 if item.failed else found[place] if place in found else float(_letter(item.text) == item.question.letter)
        for place, item in enumerate(items)
    ]


def _strict(text: str, question: Question) -> float:
    if _key_alone(question):
        return float(_letter(text) == question.letter)
    return mmmu.strict_score(_item(question, text))


def _notes(items: Sequence[Answered]) -> dict[str, Any]:
    return {"notes": [_BARE_KEY]} if any(_key_alone(item.question) for item in items) else {}


def _notes_of_a_part(items: Sequence[Answered]) -> dict[str, Any]:
    """MMMU-Med's, whose draws are not those that a run over all of MMMU has made when it comes to these subjects."""
    options = [(item.text, item.question.lettered) for item in items if item.question.options]
    unread = sum(mmmu.parse_choice(text, lettered) is None for text, lettered in options)
    told = _notes(items).get("notes", []) + ([_PART.format(unread=unread)] if unread else [])
    return {"notes": told} if told else {}


def _medical(question: Question) -> bool:
    return question.groups.get("subject") in mmmu.MEDICAL


def _medical_official(items: Sequence[Answered]) -> Credits:
    return [credit if _medical(item.question) else None for item, credit in zip(items, _official(items), strict=True)]


MMMU = Family(
    name="mmmu",
    metrics={
        "accuracy": mean("strict", mmmu.STRICT, _strict),
        "accuracy_medical": mean("strict", mmmu.STRICT, _strict, _medical),
        "accuracy_official": Metric("official", mmmu.OFFICIAL, _official),
        "accuracy_medical_official": Metric("official", mmmu.OFFICIAL, _medical_official),
    },
    headline=(("accuracy", "accuracy"), ("accuracy_medical", "accuracy, Health and Medicine")),
    rules=(
        ("accuracy", "accuracy", "accuracy_official"),
        ("accuracy, Health and Medicine", "accuracy_medical", "accuracy_medical_official"),
    ),
    why_they_differ=mmmu.WHY_THEY_DIFFER,
    measures=_HEADLINE,
    decisive=("accuracy",),
    parse=lambda text, q: _letter(text) if _key_alone(q) else mmmu.parse_strict(_item(q, text)),
    also=_notes,
)

_PART = (
    "Official: a letter was drawn at random for {unread} answer(s), from a generator seeded for these subjects alone. "
    "In a run over all of MMMU the draws before them move it on, so the same answers may have another official score "
    "there (`llavamed score mmmu` prints it as accuracy, Health and Medicine)."
)
_ALL = ("accuracy", "accuracy_official")
MMMU_MED = replace(
    MMMU,
    name="mmmu_med",
    metrics={name: MMMU.metrics[name] for name in _ALL},
    headline=_HEADLINE,
    rules=(("accuracy", *_ALL),),
    also=_notes_of_a_part,
)
