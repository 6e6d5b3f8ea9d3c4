"""The verb and the thing of a sentence: "Describe the image in detail." -> (describe, image).

The paper shows its data by the pairs of root verb and direct object of questions and answers (Li et al. 2023, figure
2), found by a parser. A parser is a large model and a dependency; for a picture of what is asked and told a rule
does: the first verb that says something, then the last noun of the first phrase after it, else of the last before it.
Where a sentence has no verb of the list ("A CT scan.") there is no pair, and the picture says for how many that is
so.
"""

from __future__ import annotations

import re
from functools import cache

from llavamed.instruct import tables

_TABLE = "verbnoun.yaml"
_BEFORE_A_NOUN = ("the", "a", "an", "this", "of", "your", "which", "what", "many")


def pair(sentence: str) -> tuple[str, str] | None:
    """(verb, noun) in their base forms, or None."""
    words = re.findall(r"[a-z][a-z'-]*|[.,;:?!]", _first_sentence(sentence).lower())
    verbs = [(place, _verbs()[word]) for place, word in enumerate(words) if _is_verb(words, place)]
    if not verbs:
        return None
    weak = set(tables.load(_TABLE)["weak"])
    place, verb = next(((p, v) for p, v in verbs if v not in weak), verbs[0])
    noun = _noun(words[place + 1 :]) or _noun(words[:place][::-1], backwards=True)
    return (verb, noun) if noun else None


def _is_verb(words: list[str], place: int) -> bool:
    """A word that may be one, and does not stand where only a noun can: "the display", "which stain"."""
    return words[place] in _verbs() and not (place and words[place - 1] in _BEFORE_A_NOUN)


def _first_sentence(text: str) -> str:
    """Of several sentences the first, but for a bare yes or no."""
    rest = re.sub(r"^\s*(?:yes|no)\b[.,;:!]?\s*", "", text, flags=re.IGNORECASE)
    return re.split(r"(?<=[.?!])\s", rest or text, maxsplit=1)[0]


def _noun(words: list[str], backwards: bool = False) -> str | None:
    """The last noun of the first phrase in `words`; backwards, the first that comes."""
    stops, adjectives = _stops()
    phrase: list[str] = []
    for word in words:
        ends = word in stops or not word[0].isalpha() or word in _verbs()
        if ends and phrase:
            break
        if not ends and not (word in adjectives or word.endswith(("ly", "ical", "ous", "ular", "ened"))):
            phrase.append(word)
            if backwards:
                break
        elif word in ("?", ".", ";", ":"):
            break
    return _singular(phrase[-1]) if phrase else None


def _singular(noun: str) -> str:
    for ending, base in (("ies", "y"), ("sses", "ss"), ("xes", "x")):
        if noun.endswith(ending) and len(noun) > len(ending) + 2:
            return noun[: -len(ending)] + base
    plain = len(noun) > 3 and noun.endswith("s") and not noun.endswith(("ss", "us", "is"))
    return noun[:-1] if plain else noun


@cache
def _stops() -> tuple[frozenset[str], frozenset[str]]:
    table = tables.load(_TABLE)
    return frozenset(table["stops"]), frozenset(table["adjectives"])


@cache
def _verbs() -> dict[str, str]:
    """Every form of a listed verb and the verb."""
    forms: dict[str, str] = {}
    for verb, irregular in tables.load(_TABLE)["verbs"].items():
        stem = verb.removesuffix("e")
        regular = [verb, f"{verb}s", f"{stem}ed", f"{stem}ing", f"{verb}ing"]
        forms |= {form: verb for form in (*regular, *irregular)}
    return forms
