"""Generated reports (MIMIC-CXR): how many words, in which order, they share with the written ones.

BLEU is of the whole corpus (sums of counts over reports), ROUGE-L and CIDEr are means over reports; CIDEr is 0 to
10 and is given times 100, as papers do. Resampling keeps CIDEr's document frequencies, which are the test's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llavamed.errors import InputError
from llavamed.evaluate.families.family import Answered, Array, Credits, Family, Metric, Mode, Total, mean
from llavamed.evaluate.metrics import meteor, report

Tokens = Callable[[str], str]
PerReport = Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]]

_ORDERS = (1, 2, 3, 4)


def _texts(items: Sequence[Answered], tokens: Tokens) -> tuple[list[str], list[list[str]]]:
    """A failed request has no words; tokens of the empty text may have (R2Gen's has a full stop)."""
    return ["" if item.failed else tokens(item.text) for item in items], [
        [tokens(text) for text in item.question.references] for item in items
    ]


def _bleu_rows(tokens: Tokens) -> Callable[[Sequence[Answered]], Array]:
    def rows(items: Sequence[Answered]) -> Array:
        counts = (report.bleu_counts(text, given) for text, given in zip(*_texts(items, tokens), strict=True))
        return np.array([(c.length, c.reference_length, *c.matched, *c.possible) for c in counts], dtype=np.float64)

    return rows


def _bleu(order: int) -> Callable[[Array], Array]:
    def value(sums: Array) -> Array:
        rows = sums.reshape(-1, sums.shape[-1]).astype(int)
        found = [
            report.bleu([report.BleuCounts(row[0], row[1], tuple(row[2:6]), tuple(row[6:10]))])[order - 1]
            for row in rows.tolist()
        ]
        return 100 * np.array(found).reshape(sums.shape[:-1])

    return value


def _per_report(mode: Mode, scorer: str, tokens: Tokens, score: PerReport, most: int = 100) -> Metric:
    def credits(items: Sequence[Answered]) -> Credits:
        found = score(*_texts(items, tokens))
        return [0.0 if item.failed else value for item, value in zip(items, found, strict=True)]

    return Metric(mode, scorer, credits, most=most)


def _lexical(suffix: str, mode: Mode, scorer: str, tokens: Tokens) -> dict[str, Metric]:
    rows = _bleu_rows(tokens)
    return {
        **{f"bleu_{n}{suffix}": Metric(mode, scorer, total=Total(rows, _bleu(n))) for n in _ORDERS},
        f"rouge_l{suffix}": _per_report(mode, scorer, tokens, report.rouge_l),
        f"cider{suffix}": _per_report(mode, scorer, tokens, report.cider, most=1000),
    }


def _meteor(items: Sequence[Answered]) -> dict[str, Any]:
    """METEOR of the corpus by its authors' program, or why it is not there. It cannot be drawn again without asking it
    a thousand times, so it has no interval and stands in the provenance."""
    if reason := meteor.missing():
        return {"meteor_official": reason}
    try:
        found = meteor.meteor(*_texts(items, report.clean))
    except InputError as error:  # the other scores are not lost with it
        return {"meteor_official": str(error)}
    return {"meteor_official": {"value": round(100 * found.corpus, 4), "n": len(items), "scorer": meteor.SCORER}}


_NAMES = tuple(_lexical("", "strict", "", str))

REPORT = Family(
    name="report",
    metrics={
        "f1": mean("strict", report.STRICT, lambda text, q: report.strict_f1(text, q.answer)),
        **_lexical("", "strict", report.STRICT, report.plain),
        **_lexical("_official", "official", report.OFFICIAL, report.clean),
    },
    headline=(("f1", "token F1"), ("rouge_l", "ROUGE-L"), ("cider", "CIDEr")),
    rules=tuple((name.replace("_", "-").upper(), name, f"{name}_official") for name in _NAMES),
    why_they_differ=report.WHY_THEY_DIFFER,
    measures=(("f1", "token F1"),),
    decisive=("f1", "rouge_l"),
    also=_meteor,
)
