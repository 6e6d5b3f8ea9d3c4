"""ChartQA, both public relaxed accuracies."""

from __future__ import annotations

OFFICIAL = "chartqa_official/1"
STRICT = "chartqa_strict/1"
WHY_THEY_DIFFER = "to be written"


def official_relaxed(prediction: str, reference: str) -> float:
    """pix2struct / Qwen-VL / lmms-eval."""
    raise NotImplementedError("being written on the branch metrics")


def official_mistral(prediction: str, reference: str) -> float:
    """mistral-evals / lm-evaluation-harness."""
    raise NotImplementedError("being written on the branch metrics")


def strict_exact(prediction: str, reference: str) -> float:
    """Equal numbers or equal words."""
    raise NotImplementedError("being written on the branch metrics")


def strict_relaxed(prediction: str, reference: str) -> float:
    """Within 5 %, percent against percent, years exact."""
    raise NotImplementedError("being written on the branch metrics")
