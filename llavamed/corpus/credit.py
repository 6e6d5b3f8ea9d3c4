"""Whose picture a figure is: the credit lines that say that it is not the article's to give away.

An open-access article may print figures of others. The publisher's licence leaves them out ("unless indicated otherwise
in a credit line to the material"), so a corpus that takes the article's licence for them all gives away what is not
its own. What indicates otherwise is a sentence, in the caption, in an `<attrib>` or in a `<copyright-statement>`:

    Reprinted from Smith et al. (2004), with permission from Elsevier.       third party
    Illustration by Kirsten Carlson, © MBARI 2001.                           third party
    © The Authors 2019.      © Smith et al.                                  the article's own
    Published with the patient's permission.                                 consent, no copyright
    Modified from Rogers et al., 2013. Photo courtesy of J. Pinhassi.        the article's own: redrawn, or given to it

A line that names a Creative Commons licence gives the figure that one. Most captions have none of the words, so these
are looked for first.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from llavamed.corpus import licence, sentences

# In lower case: without one of these there is no credit line.
_SIGNS = (
    "permission", "©", "copyright", "(c) 19", "(c) 20", "reprinted from", "republished from", "reproduced from",
    "rights reserved", "creative commons", "cc by", "cc-by",
)  # fmt: skip
_AGAIN = (
    r"\b(?:reproduc|re-?print|re-?publish|publish|adapt|modif|redraw|re-?use|used|borrowed|copied|excerpt|courtesy)\w*|"
    r"^\W*(?:from|source|after|figure|image|photo\w*|picture|illustration|with)\b|permission[.)]*$"
)
_PERMISSION = re.compile(
    r"\b(?:with|by|under|through|after)\b(?: [\w'’]+){0,4}? permissions?\b|"
    r"\bpermissions? (?:was |were |is |has been )?(?:granted|obtained|given|from|of|by)\b",
    re.IGNORECASE,
)
# Permission of these is consent, or leave to work somewhere; it is no copyright.
_WHO = (
    r"(?:(?:patient|parent|guardian|famil|relative|mother|father|husband|wife|widow|subject|participant|volunteer|donor|"
    r"individual|ethic|committee|authorit|ministr)\w*|(?:kin|owners?|review board|IRB|parks?)\b)"
)
_CONSENT = re.compile(
    rf"permissions? (?:[\w'’]+ ){{0,4}}?(?:from|of|by) (?:[\w'’]+ ){{0,3}}?{_WHO}|"
    rf"\b{_WHO}['’]?s?['’]? (?:[\w'’]+ ){{0,4}}?permissions?",
    re.IGNORECASE,
)
_TAKEN = re.compile(
    r"\b[Rr]e(?:printed|published) from\b|"
    r"\b[Rr]eproduced from (?:\[|\(?(?:ref|Ref|(?!Tab|Fig|Pan|Vid|Mov|Sup|Add|App|MR|CT|PET)[A-Z][a-z]))"
)
# A sign between words: "Photoshop©" is a name, "(C)" a panel.
_COPYRIGHT = re.compile(
    r"(?<![\w)])©\s*(?=[\dA-ZÀ-Þ]|by |the )|\([cC]\)\s?(?=(?:19|20)\d\d)|\b[Cc]opyrighted by|\ball rights reserved\b|"
    r"\b(?:[Cc]opyright|COPYRIGHT)\s*(?:(?:©|\([cC]\)|:|is (?:held|owned) by|held by|owned by|of|by|holders?:?)\s*)*"
    r"(?=(?:the )?[\dA-ZÀ-Þ]|the )"
)
_NO_COPYRIGHT = re.compile(
    r"\b(?:no|not|free (?:of|from)(?: all)?|without|out of|expired) (?:under )?copyright", re.IGNORECASE
)
_AUTHORS = re.compile(r"\bauthors?\b|\b(?:this|the present) (?:article|work|study|paper)\b", re.IGNORECASE)
_HOLDER = re.compile(r"[^;]{0,80}")  # behind the sign


@dataclass(frozen=True)
class Credit:
    """What credit lines say: `licence` is one they name, "unknown" for the figure of a third party, "" if they leave it
    to the article; `line` are the sentences that say so."""

    licence: str = ""
    line: str = ""


NONE = Credit()


def may_have(text: str) -> bool:
    """False for nearly every caption: it has no word of a credit line."""
    lower = text.lower()
    return any(sign in lower for sign in _SIGNS)


def read(text: str, names: Collection[str] = (), statements: Collection[str] = ()) -> Credit:
    """The credit in a caption, an `<attrib>` or a copyright statement. `names` are the surnames of the article's
    authors and `statements` its own copyright lines: what names these is the article's."""
    if not may_have(text):
        return NONE
    own = {_holder(statement) for statement in statements} - {""}
    licences, lines, taken, held = [], [], [], []
    for start, end in sentences.spans(text):
        sentence = text[start:end]
        if _holder(sentence) in own:
            continue
        if (named := licence.from_text(sentence)) != licence.UNKNOWN:
            licences.append(named)
            lines.append(sentence)
        elif _is_taken(sentence):
            taken.append(sentence)
        elif _is_held(text, start, end, names):
            held.append(sentence)
    if taken or (held and not licences):  # "© X 2010. Licensed under CC BY 4.0." is CC BY
        return Credit(licence.UNKNOWN, " ".join([*taken, *held]))
    return Credit(licence.narrowest(licences), " ".join([*held, *lines])) if licences else NONE


def _is_taken(sentence: str) -> bool:
    """Whether it says that the picture was published elsewhere, and that its owner was asked."""
    if _TAKEN.search(sentence):
        return True
    if _PERMISSION.search(sentence) is None or _CONSENT.search(sentence):
        return False
    return re.search(_AGAIN, sentence, re.IGNORECASE) is not None


def is_own(statement: str, names: Collection[str], statements: Collection[str]) -> bool:
    """Whether a copyright statement, or the holder's bare name, says that the article's authors or its own holder
    have the rights, or names nobody ("© 2019")."""
    holder = _holder(statement)
    return (
        not holder
        or any(holder == _holder(one) for one in statements)
        or _names(statement, names)
        or _AUTHORS.search(statement) is not None
    )


def _is_held(text: str, start: int, end: int, names: Collection[str]) -> bool:
    """Whether the sentence there names a copyright holder who is no author of the article. Initials may have cut it
    ("© J. Smith"), so the name may stand behind its end."""
    if _NO_COPYRIGHT.search(text, start, end):
        return False
    for sign in _COPYRIGHT.finditer(text, start, end):
        behind = _HOLDER.match(text, sign.end())
        if not (
            _names(behind[0] if behind else "", names)
            or _AUTHORS.search(text, sign.end(), min(sign.end() + 40, len(text)))
        ):
            return True
    return False


def _names(text: str, names: Collection[str]) -> bool:
    words = set(re.findall(r"[^\W\d_]+", text))
    return any(words.issuperset(re.findall(r"[^\W\d_]+", name)) for name in names)


def _holder(statement: str) -> str:
    """Letters alone, without the year: "© 2010 Elsevier Ltd." -> "elsevierltd"."""
    return re.sub(r"\(c\)|copyright|[\W\d_]", "", statement.lower())
