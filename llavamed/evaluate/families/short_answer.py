"""VQA v2, TextVQA, GQA and ChartQA: a word or a number as the answer, by several people or by one."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from llavamed.evaluate.families.family import Family, mean
from llavamed.evaluate.metrics import chartqa, gqa, textvqa, vqa_v2
from llavamed.records import Question


def _by_people(name: str, metrics: ModuleType) -> Family:
    """Ten people's answers: the one that most gave (strict), agreement with all of them (official)."""
    return Family(
        name=name,
        metrics={
            "exact": mean("strict", metrics.STRICT, lambda text, q: metrics.strict_exact(text, q.references)),
            "f1": mean("strict", metrics.STRICT, lambda text, q: metrics.strict_f1(text, q.references)),
            "accuracy_official": mean(
                "official", metrics.OFFICIAL, lambda text, q: metrics.official_accuracy(text, q.references)
            ),
        },
        headline=(("exact", "exact match"), ("f1", "token F1")),
        rules=(("accuracy", "exact", "accuracy_official"),),
        why_they_differ=metrics.WHY_THEY_DIFFER,
        measures=(("exact", "exact match"),),
        decisive=("exact",),
        parse=lambda text, q: metrics.parse_strict(text, q.references),
    )


VQA_V2 = _by_people("vqa_v2", vqa_v2)
TEXTVQA = _by_people("textvqa", textvqa)


def _asks(question: Question) -> bool:
    return question.groups.get("structural") == "query"


def _binary(question: Question) -> bool:
    return not _asks(question)


_GQA_KINDS: dict[str, Callable[[Question], bool]] = {
    "accuracy": lambda _: True,
    "binary_accuracy": _binary,
    "open_accuracy": _asks,
}

GQA = Family(
    name="gqa",
    metrics={
        **{
            name: mean("strict", gqa.STRICT, lambda text, q: gqa.strict_exact(text, q.answer), over)
            for name, over in _GQA_KINDS.items()
        },
        **{
            f"{name}_official": mean(
                "official", gqa.OFFICIAL, lambda text, q: gqa.official_accuracy(text, q.answer), over
            )
            for name, over in _GQA_KINDS.items()
        },
    },
    headline=(("accuracy", "accuracy"), ("binary_accuracy", "binary"), ("open_accuracy", "open")),
    rules=tuple((name.replace("_", " "), name, f"{name}_official") for name in _GQA_KINDS),
    why_they_differ=gqa.WHY_THEY_DIFFER,
    measures=(("accuracy", "accuracy"),),
    decisive=("accuracy",),
    parse=lambda text, q: gqa.parse_strict(text, q.answer),
)

CHARTQA = Family(
    name="chartqa",
    metrics={
        "relaxed_accuracy": mean("strict", chartqa.STRICT, lambda text, q: chartqa.strict_relaxed(text, q.answer)),
        "exact": mean("strict", chartqa.STRICT, lambda text, q: chartqa.strict_exact(text, q.answer)),
        "relaxed_accuracy_official": mean(
            "official", chartqa.OFFICIAL, lambda text, q: chartqa.official_relaxed(text, q.answer)
        ),
        "relaxed_accuracy_mistral": mean(
            "official", chartqa.OFFICIAL, lambda text, q: chartqa.official_mistral(text, q.answer)
        ),
    },
    headline=(("relaxed_accuracy", "relaxed accuracy"), ("exact", "exact match")),
    rules=(
        ("relaxed accuracy, pix2struct and lmms-eval", "relaxed_accuracy", "relaxed_accuracy_official"),
        ("relaxed accuracy, mistral-evals and lm-eval", "relaxed_accuracy", "relaxed_accuracy_mistral"),
    ),
    why_they_differ=chartqa.WHY_THEY_DIFFER,
    measures=(("relaxed_accuracy", "relaxed accuracy"),),
    decisive=("relaxed_accuracy",),
)
