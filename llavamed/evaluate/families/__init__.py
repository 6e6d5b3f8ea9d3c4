"""The families of benchmarks by name: `FAMILIES[benchmark.family]` says what is counted."""

from __future__ import annotations

from llavamed.evaluate.families.choice import (
    GMAI_MMBENCH,
    MEDMCQA,
    MEDMCQA_LIKELIHOOD,
    MMMU,
    MMMU_MED,
    OMNIMED_VQA,
    PMC_VQA,
)
from llavamed.evaluate.families.family import Answered, Family, Metric, Total
from llavamed.evaluate.families.llava_med import LLAVA_MED
from llavamed.evaluate.families.report import REPORT
from llavamed.evaluate.families.short_answer import CHARTQA, GQA, TEXTVQA, VQA_V2
from llavamed.evaluate.families.yes_no import MME, POPE

__all__ = ["FAMILIES", "Answered", "Family", "Metric", "Total"]

# visual chat is judged, not scored: nothing is counted
_CHAT = Family(name="chat", metrics={})

_ALL = (
    *(LLAVA_MED, PMC_VQA, OMNIMED_VQA, GMAI_MMBENCH, MEDMCQA, MEDMCQA_LIKELIHOOD, MMMU, MMMU_MED, REPORT, _CHAT),
    *(VQA_V2, TEXTVQA, GQA, CHARTQA, POPE, MME),
)
FAMILIES = {family.name: family for family in _ALL}
