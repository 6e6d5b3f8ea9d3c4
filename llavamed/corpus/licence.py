"""What may be done with an article: its licence as an SPDX-like id, and who may use it.

Licences are written in five places: a `license_code` in PubMed Central's metadata, a URL on
`<license>`, a `<license_ref>`, a link inside the text, or prose alone ("distributed under the terms
of the Creative Commons Attribution License"). About half of the older articles have only the prose,
so it must be read; it is read strictly: a restriction in the publisher's own words ("no commercial use") counts beside
the licence's name, a sentence that denies the licence names none, and what is not recognised is "unknown", which no
policy but `any` accepts. Where an article says several things, or its metadata says another than its XML, the narrowest
holds, and a waiver of the rights in its *data* says nothing about its figures.

An id carries a version where one is stated (`CC-BY-4.0`) and none where it is not (`CC-BY`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from llavamed.errors import InputError

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

# Searched in lower case, with every run of spaces and hyphens as one space.
_ATTRIBUTION = re.compile(
    r"(creative commons )?attribution((?:[ ,/]+(?:and )?(?:non ?commercial|share ?alike|no ?deriv\w*(?: works?)?))*)|"
    r"\bcc[ /]?by((?:[ /]+(?:nc|nd|sa))*)\b"
)
_TERMS = {"NC": r"non ?commercial|\bnc\b", "SA": r"share ?alike|\bsa\b", "ND": r"no ?deriv|\bnd\b"}  # as in an id
_VERSION = re.compile(r"[a-z ]*?\(?\b(?:version |v)?([1-4]\.\d)\b")
_DEDICATIONS = (
    (r"\bcc ?0\b|creative commons zero|public domain dedication", "CC0-1.0"),
    (r"creative commons public domain declaration", "CC-PDDC"),
)
_PUBLIC_DOMAIN = frozenset({"CC0", "CC-PDM", "CC-PDDC"})
_DATA = re.compile(r"\bdata(?:sets?|bases?)?\b")
# Restrictions that hold wherever they stand: "Attribution License, for non-commercial use only".
_FORBIDDEN = r"(?:is |are )?(?:not (?:permitted|allowed)|prohibited|forbidden|excluded|restricted)\b"
_ASKED = r"(?:permissions?|consent|agreement|fee|license fee|separate licen[cs]e)"
_RESTRICTED = {
    "NC": re.compile(
        r"\bnon ?commercial|\bno commercial|"
        r"(?:\bnot|\bcannot) (?!restrict|limit|prohibit|exclude)(?:\w+ ){0,8}?commercial|"
        rf"\bcommercial(?:ly)?\b[^.;]{{0,40}}? {_FORBIDDEN}|"
        rf"\bcommercial\b[^.;]{{0,40}}? (?:requires? (?:\w+ ){{0,4}}{_ASKED}|please contact)|"
        rf"\bcommercial\b[^.;]{{0,60}}? (?<!no ){_ASKED} (?:is required|must be|should be|has to be)"
    ),
    "ND": re.compile(r"\bno ?derivatives?\b|\bno modifications?\b|\b(?:not|cannot) be (?:changed|altered|modified)\b"),
}
_ANY_USE = re.compile(
    r"\bcommercial(?: and | or | as well as | ?/ ?)non ?commercial|non ?commercial (?:and|or) commercial|"
    r"\bwhether or not (?:\w+ ){0,3}commercial|\bnot (?:only|just|limited to) (?:for )?(?:non ?)?commercial"
)
# A sentence that names a licence to say that it is not, or no longer, the article's.
_DENIED = re.compile(
    r"\b(?:not|never|neither|no longer|previously|formerly) (?:\w+ ){0,8}"
    r"(?:under|covered by|subject to|part of|included in|governed by)\b"
)
# The licence of the words, but not of the pictures.
_NOT_FIGURES = re.compile(
    r"\btext only\b|\bonly (?:applies )?to (?:the )?text\b|"
    r"\b(?:except(?:ing)?|excluding|exclusive of|with the exception of|not) (?:for )?(?:the |all |any |its )*"
    r"(?:figures?|images?|illustrations?|photographs?)\b|"
    r"\b(?:figures?|images?|illustrations?|photographs?) (?:(?:is |are |remains? )+(?:copyright|excluded|"
    r"not (?:covered|included|licen[cs]ed|part))|(?:is |are )?(?:©|\(c\)))"
)
_RESERVED = "all rights reserved"


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
    """The licence that prose names, by URL or by words: of all that it names, the narrowest.

    A text that says "Attribution License" but speaks of non-commercial use only is taken at its
    narrower word.
    """
    return identify((), text)


def _named(sentence: str) -> list[str]:
    """Every licence that one sentence names as the one that holds."""
    plain = _plain(sentence)
    if _DENIED.search(plain):
        return []
    found = [from_url(match[0]) for match in _URL.finditer(sentence)]
    found += [licence for pattern, licence in _DEDICATIONS if re.search(pattern, plain)]
    if _DATA.search(plain):
        found = [licence for licence in found if family(licence) not in _PUBLIC_DOMAIN]
    for match in _ATTRIBUTION.finditer(plain):
        words = match[2] or match[3] or ""
        if match[1] or words or match[0].startswith("cc"):
            version = _VERSION.match(plain, match.end())
            terms = {term for term, pattern in _TERMS.items() if re.search(pattern, words)}
            found.append(_with_terms(_versioned("CC-BY", version[1] if version else None), terms))
    return found


def _plain(text: str) -> str:
    return re.sub(r"[\s\-‐‑–—]+", " ", text.lower())


def _with_terms(licence: str, terms: Collection[str]) -> str:
    """An attribution licence with these terms as well: ("CC-BY-SA-4.0", {"NC"}) -> "CC-BY-NC-SA-4.0"."""
    name = family(licence)
    if not name.startswith("CC-BY"):
        return licence
    both = {*name.split("-")[2:], *terms}
    both -= {"SA"} if "ND" in both else set()  # what may not be changed need not be shared alike
    return "-".join(["CC-BY", *(term for term in ("NC", "SA", "ND") if term in both)]) + licence.removeprefix(name)


def from_code(code: str) -> str:
    """PubMed Central's `license_code` ("CC BY", "CC0", "CC BY-NC-ND", "TDM", "CC BY 4.0") as an id.

    `TDM` (text mining of an author manuscript) is kept by that name: it is known, and in no policy.
    """
    name = re.sub(r"[\s_-]+", "-", code.strip().upper())
    match = re.fullmatch(r"(CC-?0|CC-BY[A-Z-]*?|TDM)(?:-(\d\.\d))?(?:-(?:IGO|INTL?|INTERNATIONAL|UNPORTED))?", name)
    if match is None:
        return UNKNOWN
    found = "CC0" if match[1] in {"CC0", "CC-0"} else match[1]
    if found == "CC0":
        return "CC0-1.0"
    return _versioned(found, match[2]) if found in _FAMILIES else UNKNOWN


def identify(urls: Iterable[str], text: str) -> str:
    """The licence of one `<license>` element, by its links and its words together: the narrowest they name; unknown
    where the words leave the pictures out, or keep all rights and no link says otherwise."""
    found = [from_url(url) for url in urls]
    plain = _plain(text)
    if _NOT_FIGURES.search(plain) or (_RESERVED in plain and all(one == UNKNOWN for one in found)):
        return UNKNOWN
    if _DATA.search(plain):  # a link to CC0 may be that of the data
        found = [licence for licence in found if family(licence) not in _PUBLIC_DOMAIN]
    found += [licence for sentence in re.split(r"(?<=[.;])\s+", text) for licence in _named(sentence)]
    use = _ANY_USE.sub(" ", plain)
    return _with_terms(narrowest(found), {term for term, words in _RESTRICTED.items() if words.search(use)})


def narrowest(found: Iterable[str]) -> str:
    """Of several statements about one article, the one that permits least (with its version, if one of them gives
    it); unknown ones do not count beside a known one (a publisher's own text-mining terms stand next to the Creative
    Commons licence)."""
    known = [licence for licence in found if licence != UNKNOWN]
    return max(
        known, key=lambda licence: (_FAMILIES.index(family(licence)), licence != family(licence)), default=UNKNOWN
    )


def combine(code: str, stated: str) -> str:
    """The narrower of the metadata's `license_code` and what the XML states; a code that names no licence ("NO-CC
    CODE": none that a machine can read) leaves it to the XML."""
    return narrowest((from_code(code), stated))


def conflict(code: str, stated: str) -> bool:
    """Whether metadata and XML name licences of two families."""
    return UNKNOWN not in (named := {family(from_code(code)), family(stated)}) and len(named) > 1


def strictest(article: str, part: str) -> str:
    """What holds for the text of an article together with a part of it that has its own licence: the narrower, and
    unknown if either is."""
    return UNKNOWN if UNKNOWN in (article, part) else narrowest((article, part))


def url(licence: str) -> str:
    """Where the licence can be read, or "" for one whose version is not stated (each has its own text)."""
    name = family(licence)
    version = licence[len(name) + 1 :]
    path = {found: path for path, found in _URL_NAMES.items()}
    if name in path and name != "CC-PDDC":
        return f"https://creativecommons.org/publicdomain/{path[name]}/1.0/"
    if not version or not name.startswith("CC-BY"):
        return ""
    return f"https://creativecommons.org/licenses/{name.removeprefix('CC-').lower()}/{version}/"


def family(licence: str) -> str:
    """`CC-BY-4.0` -> `CC-BY`."""
    return re.sub(r"-\d+(\.\d+)*$", "", licence)


def allowed(licence: str, policy: str) -> bool:
    """True if `licence` may be used under a policy: commercial, noncommercial, any, families by name ("CC-BY-ND",
    "TDM"), or several of these with commas between."""
    return family(licence) in check_policy(policy)


@lru_cache(maxsize=64)
def check_policy(policy: str) -> frozenset[str]:
    """The families that a policy permits. Raises InputError naming the nearest word for one that is not known."""
    found: set[str] = set()
    for word in policy.split(","):
        name = word.strip()
        if name.lower() in _POLICIES:
            found |= _POLICIES[name.lower()]
        elif family(from_code(name)) != UNKNOWN:
            found.add(family(from_code(name)))
        else:
            known = (*_POLICIES, *_FAMILIES[:-1])
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"licence policy {name!r}: unknown; {hint}Give some of {', '.join(known)}")
    return frozenset(found)


def _versioned(name: str, version: str | None) -> str:
    return f"{name}-{version}" if version else name
