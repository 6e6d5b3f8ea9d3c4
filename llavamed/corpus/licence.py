"""What may be done with an article: its licence as an SPDX-like id, and who may use it.

Licences are written in five places: a `license_code` in PubMed Central's metadata, a URL on
`<license>`, a `<license_ref>`, a link inside the text, or prose alone ("distributed under the terms
of the Creative Commons Attribution License"). About half of the older articles have only the prose,
so it must be read; it is read strictly, and what is not recognised is "unknown", which no policy
but `any` accepts.

An id carries a version where one is stated (`CC-BY-4.0`) and none where it is not (`CC-BY`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

UNKNOWN = "unknown"

# Families from the freest to the narrowest. ND licences are in no policy: a caption turned into a
# conversation and a figure cropped to a model's input size are adaptations.
_FAMILIES = (
    "CC0", "CC-PDM", "CC-PDDC", "CC-BY", "CC-BY-SA", "CC-BY-NC", "CC-BY-NC-SA", "CC-BY-ND", "CC-BY-NC-ND",
    "TDM", UNKNOWN,
)  # fmt: skip
_COMMERCIAL = frozenset({"CC0", "CC-PDM", "CC-PDDC", "CC-BY", "CC-BY-SA"})
_POLICIES = {
    "commercial": _COMMERCIAL,
    "noncommercial": _COMMERCIAL | {"CC-BY-NC", "CC-BY-NC-SA"},
    "any": frozenset(_FAMILIES),
}

_URL = re.compile(r"creativecommons\.org/(?:licen[sc]es|publicdomain)/([a-z-]+)(?:/(\d\.\d))?", re.IGNORECASE)
_URL_NAMES = {"zero": "CC0", "mark": "CC-PDM", "publicdomain": "CC-PDDC"}

# The first that occurs decides. Searched in lower case, with every run of spaces and hyphens as one space.
_PROSE = (
    (r"\bcc ?0\b|creative commons zero|public domain dedication", "CC0"),
    (r"creative commons public domain declaration", "CC-PDDC"),
    (r"attribution non ?commercial no ?deriv|\bcc by nc nd\b", "CC-BY-NC-ND"),
    (r"attribution non ?commercial share ?alike|\bcc by nc sa\b", "CC-BY-NC-SA"),
    (r"attribution no ?deriv|\bcc by nd\b", "CC-BY-ND"),
    (r"creative commons attribution non ?commercial|\bcc by nc\b", "CC-BY-NC"),
    (r"attribution share ?alike|\bcc by sa\b", "CC-BY-SA"),
    (r"creative commons attribution\b|\bcc by\b", "CC-BY"),
)
_PROSE_VERSION = re.compile(r"(?:\bcc by(?: nc| sa| nd)*|attribution[a-z ]*?)\s*\(?\b(?:version |v)?([1-4]\.\d)\b")
_NONCOMMERCIAL = re.compile(r"\bnon ?commercial\b")


def from_url(url: str) -> str:
    """`https://creativecommons.org/licenses/by-nc/4.0/` -> `CC-BY-NC-4.0`; anything else is "unknown"."""
    match = _URL.search(url)
    if match is None:
        return UNKNOWN
    name, version = match[1].lower().strip("-"), match[2]
    found = _URL_NAMES.get(name, f"CC-{name.upper()}")
    if found in {"CC0", "CC-PDM"}:
        version = "1.0"
    return _versioned(found, version) if found in _FAMILIES else UNKNOWN


def from_text(text: str) -> str:
    """The licence that prose names, by URL or by words.

    A text that says "Attribution License" but speaks of non-commercial use only is taken at its
    narrower word.
    """
    linked = from_url(text)
    if linked != UNKNOWN:
        return linked
    plain = re.sub(r"[\s\-‐‑–—]+", " ", text.lower())
    for pattern, found in _PROSE:
        if re.search(pattern, plain):
            if found == "CC-BY" and _NONCOMMERCIAL.search(plain):
                found = "CC-BY-NC"
            version = _PROSE_VERSION.search(plain)
            return "CC0-1.0" if found == "CC0" else _versioned(found, version[1] if version else None)
    return UNKNOWN


def from_code(code: str) -> str:
    """PubMed Central's `license_code` ("CC BY", "CC0", "CC BY-NC-ND", "TDM", "CC BY 4.0") as an id.

    `TDM` (text mining of an author manuscript) is kept by that name: it is known, and in no policy.
    """
    name = re.sub(r"[\s_-]+", "-", code.strip().upper())
    match = re.fullmatch(r"(CC-?0|CC-BY[A-Z-]*?|TDM)(?:-(\d\.\d))?", name)
    if match is None:
        return UNKNOWN
    found = "CC0" if match[1] in {"CC0", "CC-0"} else match[1]
    if found == "CC0":
        return "CC0-1.0"
    return _versioned(found, match[2]) if found in _FAMILIES else UNKNOWN


def identify(urls: Iterable[str], text: str) -> str:
    """The licence of one `<license>` element: its links decide before its words."""
    for url in urls:
        found = from_url(url)
        if found != UNKNOWN:
            return found
    return from_text(text)


def narrowest(found: Iterable[str]) -> str:
    """Of several statements about one article, the one that permits least; unknown ones do not count
    beside a known one (a publisher's own text-mining terms stand next to the Creative Commons licence)."""
    known = [licence for licence in found if licence != UNKNOWN]
    return max(known, key=lambda licence: _FAMILIES.index(family(licence)), default=UNKNOWN)


def combine(code: str, stated: str) -> str:
    """The metadata's `license_code` wins over what the XML states; the XML adds the version if they agree."""
    named = from_code(code)
    return stated if family(named) == family(stated) else named


def family(licence: str) -> str:
    """`CC-BY-4.0` -> `CC-BY`."""
    return re.sub(r"-\d+(\.\d+)*$", "", licence)


def allowed(licence: str, policy: str) -> bool:
    """True if `licence` may be used under the recipe's policy: commercial, noncommercial or any."""
    return policy == "any" or family(licence) in _POLICIES[policy]


def _versioned(name: str, version: str | None) -> str:
    return f"{name}-{version}" if version else name
