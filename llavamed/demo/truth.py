"""What a phantom picture shows, written down before it is drawn.

`SCENES` is the whole world: which organs each domain shows, which findings each can have, and
which of side, size and count vary there. `sample` draws a `Truth` from it. Everything else (the
drawing, the captions, the questions) is a function of a `Truth` and a seed.

Sides follow the radiological convention: the patient's left is on the right of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DOMAIN_NAMES = {
    "chest_xray": "chest X-ray",
    "ct_scan": "CT",
    "mri": "MRI",
    "histology": "histology",
    "gross": "gross pathology",
}
SIDES = ("left", "right")
SIZES = ("small", "large")
COUNTS = (1, 2, 3)
NONE = "none"


@dataclass(frozen=True)
class Finding:
    """Which attributes of a finding vary. A finding without a side lies anywhere in its organ."""

    name: str
    sided: bool = False
    sized: bool = False
    counted: bool = False


SCENES: dict[tuple[str, str], tuple[Finding, ...]] = {
    ("chest_xray", "lung"): (
        Finding("nodule", sided=True, sized=True, counted=True),
        Finding("effusion", sided=True, sized=True),
        Finding("opacity", sided=True, sized=True),
    ),
    ("ct_scan", "brain"): (Finding("haemorrhage", sided=True, sized=True),),
    ("ct_scan", "kidney"): (
        Finding("stone", sided=True, counted=True),
        Finding("cyst", sided=True, sized=True),
    ),
    ("ct_scan", "liver"): (
        Finding("cyst", sized=True, counted=True),
        Finding("tumour", sized=True),
    ),
    ("mri", "brain"): (
        Finding("tumour", sided=True, sized=True),
        Finding("infarct", sided=True, sized=True),
    ),
    ("mri", "spine"): (Finding("disc herniation", counted=True),),
    ("histology", "colon"): (
        Finding("inflammation", counted=True),
        Finding("tumour", sized=True),
    ),
    ("histology", "liver"): (Finding("necrosis", sized=True),),
    ("gross", "kidney"): (
        Finding("tumour", sized=True, counted=True),
        Finding("haemorrhage", sized=True),
    ),
    ("gross", "liver"): (Finding("tumour", sized=True, counted=True),),
    ("gross", "spleen"): (Finding("infarct", sized=True),),
}
NORMAL_SHARE = 0.25


@dataclass(frozen=True)
class Truth:
    """One picture's ground truth; `side`, `size` are "" and `count` is 0 where they do not apply."""

    domain: str
    organ: str
    finding: str = NONE
    side: str = ""
    size: str = ""
    count: int = 0

    @property
    def normal(self) -> bool:
        return self.finding == NONE


def findings_of(domain: str) -> tuple[str, ...]:
    """The findings that occur in a domain: what a fair "is there a ...?" may name."""
    names = (f.name for (d, _), fs in SCENES.items() if d == domain for f in fs)
    return tuple(dict.fromkeys(names))


def organs_of(domain: str) -> tuple[str, ...]:
    return tuple(organ for d, organ in SCENES if d == domain)


def varying(truth: Truth) -> Finding:
    """The table's row for a truth that has a finding."""
    return next(f for f in SCENES[truth.domain, truth.organ] if f.name == truth.finding)


def sample(rng: np.random.Generator) -> Truth:
    """A truth: domains equally often, then organs, then findings; a quarter is normal."""
    domain = str(rng.choice(list(DOMAIN_NAMES)))
    organ = str(rng.choice(organs_of(domain)))
    if rng.random() < NORMAL_SHARE:
        return Truth(domain, organ)
    findings = SCENES[domain, organ]
    finding = findings[rng.integers(len(findings))]
    return Truth(
        domain,
        organ,
        finding.name,
        side=str(rng.choice(SIDES)) if finding.sided else "",
        size=str(rng.choice(SIZES)) if finding.sized else "",
        count=int(rng.choice(COUNTS)) if finding.counted else 1,
    )
