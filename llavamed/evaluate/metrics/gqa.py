"""GQA (Hudson & Manning, CVPR 2019): short answers about everyday scenes, and whether they hang together.

*Official* accuracy is string equality (`eval.py`) after LLaVA's conversion (`convert_gqa_for_eval.py`):
final periods off, lower case. Everything else counts, so "No, it is not" and "a dog" are wrong.
`summary` gives accuracy over all, binary and open questions; `distribution`, `consistency` and
`official_belongs` are the script's other measures, for whoever has the files they need (question
groups; predictions for entailed questions; the choices file).

*Strict* reads yes/no questions by the first whole word and compares others by words and numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

from llavamed.evaluate.metrics import strict

OFFICIAL = "gqa_official/1"
STRICT = "gqa_strict/1"
WHY_THEY_DIFFER = (
    "The official score compares whole strings, so that 'No, it is not' or 'a dog' is wrong where 'no' or 'dog' is "
    "asked; the strict score reads the first whole word yes or no, and compares words without articles."
)


def normalize(prediction: str) -> str:
    """LLaVA's conversion."""
    return prediction.rstrip(".").lower()


def official_accuracy(prediction: str, reference: str) -> float:
    return float(normalize(prediction) == reference)


def parse_strict(prediction: str, reference: str) -> str | None:
    """yes or no where the question asks for that, else the whole answer; None is a parse failure."""
    return strict.parse_yes_no(prediction) if strict.is_yes_no(reference) else prediction.strip() or None


def strict_exact(prediction: str, reference: str) -> float:
    parsed = parse_strict(prediction, reference)
    return strict.strict_exact(parsed, reference) if parsed else 0.0


def summary(rows: Iterable[tuple[float, str]]) -> dict[str, float]:
    """{accuracy, binary, open}, 0-1, of rows (credit, structural type); a kind without questions has no entry.

    Questions of the structural type "query" are open, all others binary.
    """
    credits: dict[str, list[float]] = defaultdict(list)
    for credit, structural in rows:
        for name in ("accuracy", "open" if structural == "query" else "binary"):
            credits[name].append(credit)
    return {name: sum(values) / len(values) for name, values in credits.items()}


def official_belongs(prediction: str, choices: Collection[str], detailed_type: str) -> bool:
    """Validity and plausibility: whether the answer is among the question's choices.

    Questions that ask what things have in common have three choices whatever the file says.
    """
    common = "Common" in detailed_type
    return normalize(prediction) in (("color", "material", "shape") if common else choices)


def consistency(entailed: Mapping[str, Collection[str]], credits: Mapping[str, float]) -> float | None:
    """Of the questions answered right, the mean share of the questions they entail that are right too.

    `entailed` maps a question id to the ids it entails, itself not counted; `credits` has all of them.
    None if no question answered right entails another.
    """
    shares = []
    for question, others in entailed.items():
        counted = [credits[other] for other in others if other != question]
        if credits[question] == 1.0 and counted:
            shares.append(sum(counted) / len(counted))
    return sum(shares) / len(shares) if shares else None


def distribution(rows: Iterable[tuple[str, str, str]]) -> float | None:
    """Chi-square distance of the answers given from the gold ones, as the script prints it (lower is better).

    Rows are (global group, gold, predicted) of the questions that have a group; the groups are weighted by
    their questions. Answers that are gold nowhere in the group do not enter. None without rows.
    """
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for group, right, predicted in rows:
        gold[group][right] += 1
        given[group][normalize(predicted)] += 1
    weighted = sum(
        counts.total() * sum((given[group][answer] - count) ** 2 / count for answer, count in counts.items())
        for group, counts in gold.items()
    )
    questions = sum(counts.total() for counts in gold.values())
    return weighted / questions / 100 if questions else None
