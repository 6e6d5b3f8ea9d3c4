"""What a text says about a picture, by rule.

In: a caption or the sentences that cite the figure. Out: `Facts`, each field a canonical word of
`lexicon.yaml` or None where the text does not say. An offline teacher may only ask what is known, so
the reader here is built to stay silent rather than to guess:

* a field on which the text says two different things stays None, and is marked in `conflicts`;
* a finding is affirmed, denied ("without effusion") or in doubt ("possible nodule"). The scope of a
  cue is that of NegEx (Chapman et al. 2001): forward to the next word that ends it, or backward;
* side, size and count belong to the finding, not to the sentence: a number counts only within the
  noun phrase ("two small nodules") or as its predicate ("was solitary"), and a sentence about another
  finding says nothing about this one. A general noun ("the lesion") may stand for the finding but
  never overwrites a specific name.

`of_pair` joins caption and mentions: where both speak, the caption wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

from llavamed.instruct import tables
from llavamed.records import Pair

NONE = "none"  # the finding where the text says that there is none
GENERIC = "lesion"  # the finding where the text names only something general

Count = int | Literal["multiple"]


@dataclass(frozen=True)
class Facts:
    """Canonical values, None where unknown. `finding` is the first of `findings`; "none" means the text
    says that nothing is abnormal; "lesion" that only a general noun was used."""

    modality: str | None = None
    organ: str | None = None
    finding: str | None = None
    side: str | None = None  # left | right | bilateral
    size: str | None = None  # small | large
    count: Count | None = None  # 1, 2, 3 or "multiple"
    findings: tuple[str, ...] = ()  # specific ones that the text affirms, in order
    absent: tuple[str, ...] = ()  # ... that it denies
    unsure: tuple[str, ...] = ()  # ... that it leaves in doubt
    conflicts: tuple[str, ...] = ()  # fields on which it says two things

    @property
    def empty(self) -> bool:
        return self == Facts(absent=self.absent, unsure=self.unsure, conflicts=self.conflicts)


class _Hit(NamedTuple):
    start: int
    end: int
    term: str
    status: Literal["affirmed", "denied", "unsure"] = "affirmed"


def extract(text: str, about: str | None = None) -> Facts:
    """Read `text`. `about` is a finding already known from elsewhere (the caption): side, size and count are
    then read as that finding's, and those of other findings are left alone."""
    sentences = list(_sentences(text))
    findings = [[_judged(s, h) for h in _hits("finding", s)] for s in sentences]
    judged = [h for hits in findings for h in hits]
    affirmed = _unique(h.term for h in judged if h.status == "affirmed" and h.term not in (GENERIC, "normal"))
    unsure = _unique(h.term for h in judged if h.status == "unsure" and h.term != "normal")
    denied = _unique(h.term for h in judged if h.status == "denied" and h.term != "normal")

    finding: str | None = None
    if affirmed:
        finding = affirmed[0]
    elif any(h.term == GENERIC and h.status == "affirmed" for h in judged):
        finding = GENERIC
    elif not unsure and any((h.term, h.status) in {("normal", "affirmed"), (GENERIC, "denied")} for h in judged):
        finding = NONE

    conflicts: list[str] = []
    values: dict[str, Any] = {"modality": _modality(sentences, conflicts), "organ": _one("organ", sentences, conflicts)}
    lexicon = tables.load("lexicon.yaml")
    if values["organ"] is None and "organ" not in conflicts and affirmed:
        values["organ"] = lexicon["finding"]["terms"][affirmed[0]].get("organ")
    primary = about if about not in (None, GENERIC, NONE) else finding
    values["side"] = _side(sentences, findings, primary, conflicts)
    if primary != NONE:
        values["size"] = _size(sentences, findings, primary, conflicts)
        values["count"] = _count(sentences, findings, primary, conflicts)
    return Facts(
        finding=finding,
        findings=affirmed,
        absent=tuple(t for t in denied if t != GENERIC and t not in affirmed and t not in unsure),
        unsure=tuple(t for t in unsure if t != GENERIC and t not in affirmed),
        conflicts=tuple(conflicts),
        **values,
    )


def of_pair(pair: Pair, mentions: bool) -> Facts:
    """The facts of a pair's caption and, if asked for, of the sentences that cite its figure."""
    facts = extract(pair.caption)
    if not mentions:
        return facts
    own = [m.sentence for m in pair.mentions if _cites_only(m.sentence)]
    return merge(facts, extract(" ".join(_ended(s) for s in own), about=facts.finding)) if own else facts


def merge(first: Facts, second: Facts) -> Facts:
    """`first` completed by `second`: where both speak, or `first` contradicts itself, `second` is not heard."""
    filled: dict[str, Any] = {}
    for name in ("modality", "organ", "side", "size", "count"):
        if getattr(first, name) is None and name not in first.conflicts:
            filled[name] = getattr(second, name)
    known = {*first.findings, *first.absent, *first.unsure}
    fresh = tuple(f for f in second.findings if f not in known)
    if first.finding is None:
        filled["finding"] = next(iter(fresh), second.finding if not second.findings else None)
    elif first.finding == GENERIC and fresh:
        filled["finding"] = fresh[0]
    if first.finding == NONE:  # the caption's word stands: what the article adds is about another place or time
        filled |= {"size": None, "count": None}
        filled["unsure"] = _unique((*first.unsure, *fresh))
    else:
        filled["findings"] = (*first.findings, *fresh)
    affirmed = (*first.findings, *fresh)
    filled["absent"] = _unique(f for f in (*first.absent, *second.absent) if f not in affirmed)
    filled.setdefault("unsure", _unique((*first.unsure, *(f for f in second.unsure if f not in known))))
    filled["conflicts"] = _unique((*first.conflicts, *second.conflicts))
    return replace(first, **filled)


# --- words -----------------------------------------------------------------------------------------------------


_FIGURE = re.compile(r"\bfig(?:ure)?s?\.?\s*s?\d+\s*[a-z]?\b", re.I)
_CITED = re.compile(r"\bfig(?:ure)?s?\.?\s*(s?\d+)\s*[a-z]?((?:\s*(?:,|and|&|to|[-–])\s*s?\d+[a-z]?\b)*)", re.I)
_ABBREVIATION = re.compile(r"\b(fig|figs|vs|e\.g|i\.e|approx|no|dr|ca|cf|al)\.", re.I)


def _sentences(text: str) -> Iterator[str]:
    """Lower-case sentences with single spaces, "Fig. 2" without its stop, counting phrases rewritten."""
    text = _FIGURE.sub("figure", " ".join(text.split()))
    text = _ABBREVIATION.sub(r"\1", text).lower()
    for phrase, word in tables.load("lexicon.yaml")["count"]["rewrite"].items():
        text = re.sub(rf"\b(?:{phrase})\b", word, text)
    for sentence in re.split(r"(?<=[.!?;])\s+", text):
        if sentence.strip():
            yield sentence


def _cites_only(sentence: str) -> bool:
    """True unless the sentence cites several figures: then nobody knows which of them it speaks about."""
    cited = set()
    for match in _CITED.finditer(sentence):
        cited.add(match[1].lower())
        cited.update(number.lower() for number in re.findall(r"s?\d+", match[2], re.I))
    return len(cited) <= 1


def _ended(sentence: str) -> str:
    sentence = sentence.strip()
    return sentence if sentence.endswith((".", "!", "?")) else sentence + "."


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


@cache
def _pattern(forms: tuple[str, ...]) -> re.Pattern[str]:
    """One expression for alternatives between word boundaries; also right where a form begins with a sign."""
    return re.compile(r"(?<![\w])(?:" + "|".join(f"(?:{form})" for form in forms) + r")(?![\w])")


@cache
def _terms(category: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """(canonical name, pattern) of a category; the name is "" for what must be ignored."""
    table: Mapping[str, Any] = tables.load("lexicon.yaml")[category]
    terms = [(name, _pattern(tuple(t["forms"]))) for name, t in table["terms"].items()]
    if category == "finding":
        terms.append((GENERIC, _pattern(tuple(table["generic"]["forms"]))))
        terms.append(("normal", _pattern(tuple(table["normal"]))))
        terms.append(("", _pattern(tuple(table["normal_ignore"]))))
    if "ignore" in table:
        terms.append(("", _pattern(tuple(table["ignore"]))))
    return tuple(terms)


@lru_cache(maxsize=4096)  # every reader below asks for the hits of the same sentences
def _hits(category: str, sentence: str) -> tuple[_Hit, ...]:
    """Where the category's words stand, the longest at each place winning, in order."""
    found = [_Hit(*m.span(), name) for name, pattern in _terms(category) for m in pattern.finditer(sentence)]
    taken: list[_Hit] = []
    for hit in sorted(found, key=lambda h: (h.start - h.end, h.start, h.term)):
        if all(hit.end <= other.start or hit.start >= other.end for other in taken):
            taken.append(hit)
    return tuple(sorted(h for h in taken if h.term))


# --- is it said, denied, or in doubt -----------------------------------------------------------------------------


def _judged(sentence: str, hit: _Hit) -> _Hit:
    cues = tables.load("lexicon.yaml")["negation"]
    before, after = sentence[: hit.start], sentence[hit.end :]
    events: list[tuple[int, int, str]] = []  # (start, end, kind); where two overlap, the longer is meant
    for kind, name in (("", "not_a_cue"), ("denied", "before"), ("unsure", "unsure_before"), ("stop", "stop")):
        events += [(*m.span(), kind) for m in _pattern(tuple(cues[name])).finditer(before)]
    events = [
        e for e in events if not any(o is not e and o[0] <= e[0] and e[1] <= o[1] and o[:2] != e[:2] for o in events)
    ]
    events = [e for e in events if e[2]]
    last = max(events, default=(0, 0, "stop"))[2]
    if last == "denied":
        return hit._replace(status="denied")
    stop = re.search(r"[,;:]|\b(?:but|which|that|and (?:a|an|the|two|three))\b", after)
    near = after[: stop.start()] if stop else after
    later = min((h.start for h in _hits("finding", near) if h.term != "normal"), default=len(near))
    for kind, name in (("unsure", "unsure_after"), ("denied", "after")):
        match = _pattern(tuple(cues[name])).search(near)
        # "a nodule or effusion is not seen" denies both; "a nodule with an effusion that was not seen" only one
        if match and (match.start() <= later or near.lstrip().startswith(("or ", "nor "))):
            return hit._replace(status=kind)  # type: ignore[arg-type]
    return hit._replace(status="unsure") if last == "unsure" else hit


# --- one value or none -------------------------------------------------------------------------------------------


def _settle(name: str, values: Iterable[Any], conflicts: list[str]) -> Any:
    """The only value, None if there is none; two different ones are a conflict."""
    different = list(dict.fromkeys(values))
    if len(different) > 1:
        conflicts.append(name)
    return different[0] if len(different) == 1 else None


def _one(category: str, sentences: list[str], conflicts: list[str]) -> str | None:
    said = [h.term for s in sentences for h in _hits(category, s) if _judged(s, h).status == "affirmed"]
    value: str | None = _settle(category, said, conflicts)
    return value


def _modality(sentences: list[str], conflicts: list[str]) -> str | None:
    table = tables.load("lexicon.yaml")["modality"]
    said = {h.term for s in sentences for h in _hits("modality", s) if _judged(s, h).status == "affirmed"}
    general = {table["terms"][term].get("kind_of") for term in said}
    value: str | None = _settle("modality", sorted(said - general), conflicts)
    return "chest X-ray" if value == "X-ray" and _only_chest(sentences) else value


def _only_chest(sentences: list[str]) -> bool:
    """Whether the chest is the one part of the body that the text names."""
    table = tables.load("lexicon.yaml")["modality"]
    organs = {h.term for s in sentences for h in _hits("organ", s)}
    chest, elsewhere = (
        any(_pattern(tuple(table[name])).search(s) for s in sentences) for name in ("chest", "elsewhere")
    )
    return chest and not elsewhere and organs <= {*table["chest_organs"]}


def _relevant(
    findings: list[list[_Hit]], sentences: list[str], primary: str | None
) -> tuple[list[tuple[str, list[_Hit]]], list[tuple[str, list[_Hit]]]]:
    """Sentences that speak of the finding (by name or by a general noun), and those that name no finding."""
    own, silent = [], []
    for sentence, hits in zip(sentences, findings, strict=True):
        terms = {h.term for h in hits if h.status != "denied"}
        if primary in terms or GENERIC in terms or (primary == NONE and hits):
            own.append((sentence, hits))
        elif not hits:
            silent.append((sentence, hits))
    return own, silent


def _others(hits: list[_Hit], primary: str | None) -> bool:
    return any(h.term not in (primary, GENERIC, "normal") and h.status == "affirmed" for h in hits)


def _side(sentences: list[str], findings: list[list[_Hit]], primary: str | None, conflicts: list[str]) -> str | None:
    for group in _relevant(findings, sentences, primary):
        said = [h.term for sentence, _ in group for h in _hits("side", sentence)]
        if said:
            value: str | None = _settle("side", said, conflicts)
            return value
    return None


def _size(sentences: list[str], findings: list[list[_Hit]], primary: str | None, conflicts: list[str]) -> str | None:
    own, silent = _relevant(findings, sentences, primary)
    bound = [
        h.term
        for sentence, hits in own
        for start, end in _phrases(sentence, hits, primary)
        for h in _hits("size", sentence)
        if start <= h.start and h.end <= end
    ]
    loose = [
        h.term for sentence, hits in (*own, *silent) if not _others(hits, primary) for h in _hits("size", sentence)
    ]
    value: str | None = _settle("size", bound or loose, conflicts)
    return value


def _count(sentences: list[str], findings: list[list[_Hit]], primary: str | None, conflicts: list[str]) -> Count | None:
    table = tables.load("lexicon.yaml")["count"]
    numbers: dict[str, Count] = {str(word): value for value, words in table["words"].items() for word in words}
    own, silent = _relevant(findings, sentences, primary)
    spoken: list[Count] = []
    article = False
    for sentence, hits in own:
        for start, end in _phrases(sentence, hits, primary):
            words = re.findall(r"[\w.%µ-]+", sentence[start:end])
            for word, following in zip(words, (*words[1:], ""), strict=True):
                if word in numbers and following not in table["units"]:
                    spoken.append(numbers[word])
            article |= bool(words) and words[0] in table["articles"]
    any_number = "|".join(re.escape(word) for word in sorted(numbers, key=len, reverse=True))
    for sentence, hits in (*own, *silent):
        if not _others(hits, primary):
            for form in table["predicates"]:
                spoken += [numbers[m[1]] for m in re.finditer(form.replace("#", any_number), sentence)]
    if spoken:
        value: Count | None = _settle("count", spoken, conflicts)
        return value
    return 1 if article else None


def _phrases(sentence: str, hits: list[_Hit], primary: str | None) -> Iterator[tuple[int, int]]:
    """The spans of the noun phrases whose head is the finding or a general noun standing for it."""
    table = tables.load("lexicon.yaml")["phrase"]
    previous_end = 0
    for hit in hits:
        if hit.term in (primary, GENERIC) and hit.status == "affirmed":
            words = list(re.finditer(r"[\w.%µ&'-]+|[^\s\w]", sentence[: hit.start]))
            start = hit.start
            for position in range(len(words) - 1, max(len(words) - 8, -1), -1):
                word = words[position]
                carried = word[0] == "of" and position > 0 and words[position - 1][0] in table["carriers"]
                if word.start() < previous_end and not carried:
                    break
                if not carried and (word[0] in table["stops"] or (not re.match(r"[\w,]", word[0]))):
                    break
                start = word.start()
            yield start, hit.end
        previous_end = hit.end if hit.term != GENERIC else previous_end
