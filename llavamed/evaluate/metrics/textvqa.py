"""TextVQA as M4C's evaluator scores it (`m4c_evaluator.py` in LLaVA, from facebookresearch/mmf).

*Official* takes exactly ten answers. Both sides pass through EvalAI's answer processor, which differs
from the VQA v2 script's (`vqa_v2.py`) in two ways: commas, question marks and `'s` are split off first,
and the references are normalised like the prediction. The score of an answer is the leave-one-out
agreement with the ten: 0.3 if one person gave it, 0.6 for two, 0.9 for three, 1 from four on.

*Strict* is that of VQA v2: the answer most people gave.
"""

from __future__ import annotations

from collections.abc import Sequence

from llavamed.evaluate.metrics import vqa_v2
from llavamed.evaluate.metrics.vqa_words import map_words, strip_punctuation

OFFICIAL = "textvqa_official/1"
STRICT = "textvqa_strict/2"
WHY_THEY_DIFFER = (
    "The official score gives partial credit for an answer that only one, two or three of the ten annotators gave "
    "and compares whole normalised strings; the strict score asks for the answer most annotators gave, by words "
    "and numbers."
)

ANNOTATORS = 10

parse_strict = vqa_v2.parse_strict
strict_exact = vqa_v2.strict_exact
strict_f1 = vqa_v2.strict_f1


def normalize(text: str) -> str:
    """EvalAI's answer processor: 'The Coca-Cola' -> 'coca cola', "Levi's" -> "levi 's", '7,500' -> '7500'."""
    tokens = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return map_words(strip_punctuation(tokens.replace("\n", " ").replace("\t", " ").strip()))


def official_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Soft agreement with the ten answers, 0-1. Raises ValueError for any other number of them."""
    if len(references) != ANNOTATORS:
        raise ValueError(f"references: {len(references)}; M4C's evaluator is defined for exactly {ANNOTATORS}")
    answer = normalize(prediction)
    return vqa_v2.leave_one_out([normalize(text) == answer for text in references])
