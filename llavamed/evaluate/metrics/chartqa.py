"""ChartQA (Masry et al., ACL Findings 2022): relaxed accuracy, of which two incompatible versions are public.

A numeric answer is right within 5 % of the reference, any other on exact match. What a number is differs:

*official_relaxed* (pix2struct, Qwen-VL, lmms-eval) takes the answer as it stands. "10%" is 0.1; "1,000",
"$5" and "Yes." are not what they look like, and a reference of 0 must be written as it is.

*official_mistral* (mistral-evals, lm-evaluation-harness) strips commas, dollar signs and final
punctuation, tries a percentage both ways, and needs only the first letter where the reference is one.
lm-evaluation-harness asks for "Final Answer: ..." and scores what follows: `official_final_answer`.

Both accept the year 2019 for 2010. *strict_relaxed* keeps the benchmark's 5 % for quantities but wants
years exact and words whole; *strict_exact* has no tolerance. The benchmark reports the mean over 1,250
human and 1,250 augmented questions; name the version with the number.
"""

from __future__ import annotations

import re
import string

from llavamed.evaluate.metrics import strict

OFFICIAL = "chartqa_official/1"
STRICT = "chartqa_strict/2"
WHY_THEY_DIFFER = (
    "Both public versions of relaxed accuracy take the year 2019 for 2010, being within 5 %; the older one takes "
    "'1,000' for a word and '10%' for 0.1, the newer one forgives both and needs only the first letter of an answer "
    "to a one-letter reference. The strict scores read numbers by value, want years exact, and one has no tolerance."
)

_TOLERANCE = 0.05
_SMALLEST = 1e-10  # what mistral-evals divides by where the reference is 0
_END_MARKS = frozenset(string.punctuation) - {"%"}
_YEAR = re.compile(r"(?:19|20)\d\d")
_ANSWER_MARK = re.compile(r"([aA]nswer)\**:\**")
_MARKDOWN = re.compile(r"[*_\[\]()]")

# ---------------------------------------------------------------- official, pix2struct


def official_relaxed(prediction: str, reference: str) -> float:
    ours, theirs = _float(prediction), _float(reference)
    if ours is not None and theirs:
        return float(abs(ours - theirs) / abs(theirs) <= _TOLERANCE)
    return float(prediction.lower() == reference.lower())


def _float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


# ---------------------------------------------------------------- official, mistral-evals


def official_mistral(prediction: str, reference: str) -> float:
    pred, ref = _unwrap(prediction), _unwrap(reference)
    (ours, ours_percent), (theirs, theirs_percent) = _value(pred), _value(ref)
    if ours is not None and theirs is not None:
        tries = [(ours, theirs)]
        if ours_percent or theirs_percent:
            tries.append((ours / 100 if ours_percent else ours, theirs))
            tries.append((ours, theirs / 100 if theirs_percent else theirs))
        return float(any(abs(a - b) / max(abs(b), _SMALLEST) <= _TOLERANCE for a, b in tries))
    if len(ref) == 1 and ref.isalpha() and pred:
        return float(pred[0].lower() == ref.lower())
    return float(pred.rstrip(string.punctuation).lower() == ref.lower())


def parse_final_answer(prediction: str) -> str | None:
    """The first line after the last "answer:", without markdown; None is a parse failure."""
    text = _ANSWER_MARK.sub(r"\1:", prediction)
    at = text.lower().rfind("answer:")
    if at == -1:
        return None
    lines = (line.strip() for line in text[at + len("answer:") :].split("\n"))
    return _MARKDOWN.sub("", next(filter(None, lines), "")) or None


def official_final_answer(prediction: str, reference: str) -> float:
    """`relaxed_match` of lm-evaluation-harness: `official_mistral` of the final answer, 0 without one."""
    final = parse_final_answer(prediction)
    return official_mistral(final, reference) if final else 0.0


def _unwrap(text: str) -> str:
    if not any(character.isdigit() for character in text):
        quoted = any(text.startswith(quote) and text.endswith(quote) for quote in "\"'")
        return text[1:-1] if quoted else text
    end = len(text)
    while end and (text[end - 1] in _END_MARKS or text[end - 1].isspace()):
        end -= 1
    return text[:end].replace(",", "").replace("$", "")


def _value(text: str) -> tuple[float | None, bool]:
    """The number and whether it is a percentage."""
    bare = text.strip()
    try:
        return float(bare.rstrip("%")), bare.endswith("%")
    except ValueError:
        return None, False


# ---------------------------------------------------------------- strict


def strict_exact(prediction: str, reference: str) -> float:
    """Equal numbers or equal words."""
    return strict.strict_exact(prediction, reference)


def strict_relaxed(prediction: str, reference: str) -> float:
    """Within 5 % for quantities (currency, commas and % signs aside); years, zero and words exact."""
    ours, theirs = strict.number(prediction), strict.number(reference)
    if ours is None or not theirs or _YEAR.fullmatch(reference.strip()):
        return strict.strict_exact(prediction, reference)
    return float(abs(ours - theirs) <= _TOLERANCE * abs(theirs))
