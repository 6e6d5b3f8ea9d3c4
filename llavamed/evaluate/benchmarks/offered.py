"""What a closed question offers: its own options, read from its words.

The files of VQA-RAD, SLAKE and PathVQA list no options. A question answered by yes or no has those two. The
others (all 21 in VQA-RAD's test, 60 of 61 in SLAKE's English one) name theirs beside "or": "Which organ is abnormal,
heart or lung?", "Is this a T1 weighted, T2 weighted, or FLAIR image?".

The hard thing is where an option begins and ends. Behind "Which ...," the rest of the question is the list; elsewhere
the first option is the last word before a comma or "or", and the last one the first word behind "or", articles and
"just" aside. A noun that two options end with, "transverse plane or coronal plane", tells nothing apart and is left
out. Whether this was read well the reference tells: it must name exactly one of the options, or else there are none.
"""

from __future__ import annotations

import re

from llavamed.evaluate.metrics.strict import parse_option, strict_tokens

YES_NO = ("yes", "no")

_LAST_WORDS = re.compile(r"[?.\s]+$")
_BETWEEN = re.compile(r"\s*,?\s*\bor\b\s*|\s*,\s*", re.IGNORECASE)
_OR = re.compile(r"\bor\b", re.IGNORECASE)
_LISTED_BEHIND = re.compile(r"(?:which|what|where|who)\b[^,]*,", re.IGNORECASE)
_BEFORE_AN_OPTION = re.compile(r"^(?:(?:an?|the|just|only)\s+)+", re.IGNORECASE)


def yes_no_options(answer: str, closed: bool) -> tuple[str, ...]:
    """A closed question answered by yes or no has those two."""
    return YES_NO if closed and answer.casefold().rstrip(".") in YES_NO else ()


def closed_options(question: str, answer: str, closed: bool) -> tuple[str, ...]:
    """The options of a closed question; none where its words do not tell them."""
    if known := yes_no_options(answer, closed):
        return known
    named = _named_beside_or(question) if closed else ()
    return named if len(named) > 1 and parse_option(answer, named) else ()


def _named_beside_or(question: str) -> tuple[str, ...]:
    asked = _LAST_WORDS.sub("", question)
    if not _OR.search(asked):
        return ()
    if behind := _LISTED_BEHIND.match(asked):
        named = [_BEFORE_AN_OPTION.sub("", part) for part in _BETWEEN.split(asked[behind.end() :].strip())]
    else:
        *before, last = ([*_BEFORE_AN_OPTION.sub("", part).split()] for part in _BETWEEN.split(asked))
        # of "a T1 weighted or T2 weighted image" both words, of "the left or right side" one
        words = 1 + any(len(last) > 1 and part[-1:] == last[1:2] for part in before)
        named = [" ".join(part[-_length(part, before, words) :]) for part in before] + [" ".join(last[:words])]
    return _without_shared_noun([option for option in named if strict_tokens(option)])


def _length(part: list[str], others: list[list[str]], words: int) -> int:
    """Words of an option at the end of `part`: two where its last one ends another option too."""
    return 2 if sum(other[-1:] == part[-1:] for other in others) > 1 else words


def _without_shared_noun(options: list[str]) -> tuple[str, ...]:
    """'transverse plane', 'coronal plane' -> 'transverse', 'coronal'; never to nothing."""
    ends = [option.casefold().split()[-1] for option in options]
    shared = {end for end in ends if ends.count(end) > 1}
    if any(len(option.split()) == 1 and end in shared for option, end in zip(options, ends, strict=True)):
        return tuple(options)
    return tuple(
        " ".join(option.split()[:-1]) if end in shared else option for option, end in zip(options, ends, strict=True)
    )
