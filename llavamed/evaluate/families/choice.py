"""Multiple choice: PMC-VQA, OmniMedVQA, GMAI-MMBench, MedMCQA and MMMU.

Strict is the same for all: the letter or the one option that the answer names, and what cannot be read is wrong.
Official differs: the option nearest to the answer by difflib (PMC-VQA, OmniMedVQA), VLMEvalKit's matching
(GMAI-MMBench), and MMMU's parser, which draws a letter at random where it finds none, from one generator for the
whole benchmark. For MedMCQA official is the likelihood of the letters, which a text does not have; there is none
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llavamed.evaluate.families.family import Answered, Credits, Family, Metric, mean
from llavamed.evaluate.metrics import choice, mmmu
from llavamed.records import Question

_HEADLINE = (("accuracy", "accuracy"),)


def _choice(name: str, official: Callable[[str, Sequence[str], str], float] | None, why: str) -> Family:
    metrics = {
        "accuracy": mean("strict", choice.STRICT, lambda text, q: choice.strict_choice(text, q.options, q.letter))
    }
    if official is not None:
        metrics["accuracy_official"] = mean(
            "official",
            choice.OFFICIAL,
            # without a right option no answer is right, as in OmniMedVQA's script
            lambda text, q: official(text, q.options, q.letter) if q.letter else 0.0,
        )
    return Family(
        name=name,
        metrics=metrics,
        headline=_HEADLINE,
        rules=(("accuracy", "accuracy", "accuracy_official"),) if official else (),
        why_they_differ=why,
        measures=_HEADLINE,
        decisive=("accuracy",),
        parse=lambda text, q: choice.parse_choice(text, q.options),
    )


NEAREST_CHOICE = _choice("nearest_choice", choice.official_nearest, choice.WHY_THEY_DIFFER)
CHOICE = _choice("choice", None, "The official score compares the likelihoods of the letters, which a text has not.")

# ---------------------------------------------------------------- MMMU

_MEDICAL = "Health and Medicine"


def _item(question: Question, text: str) -> mmmu.Item:
    return mmmu.Item(text, question.letter or question.references, question.lettered)


def _key_alone(question: Question) -> bool:
    """Only the answer key is there, without options: then the prediction is the letter that was parsed elsewhere."""
    return bool(question.letter) and not question.options


def _official(items: Sequence[Answered]) -> Credits:
    parsed = iter(mmmu.official_scores([_item(q, text) for q, text, _ in items if not _key_alone(q)]))
    found = [float(text.strip() == q.letter) if _key_alone(q) else next(parsed) for q, text, _ in items]
    return [0.0 if item.failed else credit for item, credit in zip(items, found, strict=True)]


def _strict(text: str, question: Question) -> float:
    if _key_alone(question):
        return float(text.strip() == question.letter)
    return mmmu.strict_score(_item(question, text))


def _medical(question: Question) -> bool:
    return question.groups.get("discipline") == _MEDICAL


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
    parse=lambda text, q: text.strip() or None if _key_alone(q) else mmmu.parse_strict(_item(q, text)),
)
