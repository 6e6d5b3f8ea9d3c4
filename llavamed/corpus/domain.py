"""What kind of picture a figure is, from its words: LLaVA-Med's five domains, or other.

The paper chose its pairs by words of the caption (Li et al. 2023, section 3). Each domain here is a table
of words with a weight (`domain_words.yaml`); the caption votes fully, all the sentences that cite the figure together
half, the title of the article a quarter, since an article on MRI also shows its histology. The score is
the winner's share of all votes, so 1.0 is "nothing spoke for another domain". Words of weight 1
("specimen", "stained") only support: a map of where specimens were found is no gross photograph. Words of a
weight below 0 speak against one domain alone: what is operated on through a port is not seen by the naked eye.

Gross pathology is hardest, since captions of all kinds tell of operations. Only what a caption begins with
counts for it (`_BEGINNING`): "Intraoperative photograph of ..." is one, "... as the operation showed" is a report.

Charts and drawings speak of images too ("ROC curve of the CT score"); they are flagged apart by their
own table, and what the text says of them is no picture. Of two domains named as strongly, the one that
the caption names first wins: "histology slice, for comparison with MRI".

To try some 400 patterns at every letter is slow. `_read` goes through a text once and tries, where a word starts,
only those a match of which may begin with the letters there; the beginnings are told from the parsed patterns, so
a new word in the table needs no more than its line.

How often this is right stands in `docs/experiments.md` (`benchmarks/domain.py`); a caption that names no
modality ("Dissected view of the mass") is beyond any table of words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from re import _parser  # type: ignore[attr-defined]  # private, but `re` has no other way to look into a pattern
from typing import Any

import yaml

from llavamed.records import DOMAINS, Mention

_OTHER_HYPHENS = str.maketrans(dict.fromkeys("\u2010\u2011", "-"))  # "X\u2010ray" as many publishers set it
# what IGNORECASE takes for other letters beyond `str.lower`: one for one, so that places stay the same
_ALIKE = str.maketrans("\u0130\u0131\u017f\u00b5", "iis\u03bc")
_HEAD = 4  # letters; more make no difference

_Kind = tuple[str, float]  # what a word speaks for: a domain and its weight, or one of these
_DRAWING: _Kind = ("drawings", 0.0)
_MAYBE_DRAWING: _Kind = ("maybe_drawings", 0.0)
_Filed = tuple[_Kind, re.Pattern[str]]


def _fold(text: str) -> str:
    return text.translate(_ALIKE).lower()


def _heads(pattern: Sequence[tuple[Any, Any]], size: int = _HEAD) -> set[str]:
    """How a match of the parsed pattern may begin, folded: `size` letters, or fewer where anything may follow."""
    if not pattern or not size:
        return {""}
    (op, value), rest = pattern[0], pattern[1:]
    if op is _parser.LITERAL or (op is _parser.IN and all(kind is _parser.LITERAL for kind, _ in value)):
        letters = [value] if op is _parser.LITERAL else [letter for _, letter in value]
        return {_fold(chr(letter)) + tail for letter in letters for tail in _heads(rest, size - 1)}
    if op is _parser.SUBPATTERN:
        return _heads([*value[-1], *rest], size)
    if op is _parser.BRANCH:
        return set().union(*(_heads([*branch, *rest], size) for branch in value[1]))
    if op is _parser.MAX_REPEAT:
        least, most, repeated = value
        again = rest if most == 1 else [(_parser.ANY, None)]  # the same once more, or what follows
        return _heads([*repeated, *again], size) | (_heads(rest, size) if least == 0 else set())
    if op in (_parser.AT, _parser.ASSERT, _parser.ASSERT_NOT):
        return _heads(rest, size)
    return {""}


def _load() -> tuple[dict[str, list[_Filed]], list[tuple[set[str], _Filed]]]:
    """The patterns by their heads; and those that any letter may begin, with strings of which each match holds one."""
    table: dict[str, Any] = yaml.safe_load(
        (resources.files("llavamed.corpus") / "domain_words.yaml").read_text("utf-8")
    )
    parts = {f"<{name}>": f"(?:{'|'.join(words)})" for name, words in table["parts"].items()}
    rows = [((name, float(w)), words) for name, rows in table["domains"].items() for w, words in rows.items()]
    rows += [(kind, table[kind[0]]) for kind in (_DRAWING, _MAYBE_DRAWING)]
    index: dict[str, list[_Filed]] = defaultdict(list)
    headless = []
    for kind, words in rows:
        for word in words:
            for name, part in reversed(parts.items()):  # a later part may hold an earlier one
                word = word.replace(name, part)
            pattern = re.compile(rf"(?<!\w)(?:{word})(?!\w)", re.IGNORECASE)
            parsed = _parser.parse(word, re.IGNORECASE)
            heads, *later = (_heads(parsed[at:]) for at in range(len(parsed)))
            if "" in heads:
                held = max([heads, *later], key=lambda some: min(map(len, some)))
                headless.append((held, (kind, pattern)))
            else:
                for head in heads:
                    index[head].append((kind, pattern))
    return dict(index), headless


_INDEX, _HEADLESS = _load()
_SIZES = sorted({len(head) for head in _INDEX})
_WORD_START = re.compile(r"(?<!\w)\S")
_ABBREVIATIONS = re.compile(r"\babbreviations? ?:", re.IGNORECASE)
_FIRST_SENTENCE = re.compile(r"(?<=[.:]) ")


def _read(text: str) -> dict[_Kind, int]:
    """Where the first word of each kind stands. Only the patterns that may begin so are tried at a place."""
    first: dict[_Kind, int] = {}
    folded = _fold(text)
    for start in [match.start() for match in _WORD_START.finditer(text)]:
        head = folded[start : start + _HEAD]
        for size in _SIZES:
            for kind, pattern in _INDEX.get(head[:size], ()):
                if kind not in first and pattern.match(text, start):
                    first[kind] = start
    for held, (kind, pattern) in _HEADLESS:
        if any(one in folded for one in held) and (match := pattern.search(text)):
            first[kind] = min(match.start(), first.get(kind, len(text)))
    return first


_SUPPORTING = 1.0  # the weight of words that name no domain on their own
_CHART = 3.5
_BEGINNING = 60  # characters of the caption; an operation named later is a report on a picture of another kind
_LEAST_VOTES = 0.75  # what half of the sentences that cite a figure give, or the title alone: words in passing
_CAPTION_WEIGHT, _MENTION_WEIGHT, _TITLE_WEIGHT = 1.0, 0.5, 0.25


@dataclass(frozen=True)
class Verdict:
    """`score` is the winner's share of the votes, 0-1; 0 where no word of any domain was found."""

    domain: str
    score: float
    is_plot: bool


def classify(caption: str, mentions: Iterable[Mention] = (), title: str = "") -> Verdict:
    """The domain that a figure's words speak for, one of `records.DOMAINS`."""
    sentences = list(dict.fromkeys(mention.sentence for mention in mentions))
    caption = _ABBREVIATIONS.split(caption.translate(_OTHER_HYPHENS), maxsplit=1)[0]
    read = _read(caption)
    is_plot = _is_plot(read)
    texts = [(read, _CAPTION_WEIGHT)]
    if not is_plot:  # what the text says of a chart's data is no picture of it
        texts.append((_read(title), _TITLE_WEIGHT))
        # all that cite it together: a figure of a skull cited ten times, once beside "CT", need not be a CT
        share = _MENTION_WEIGHT / max(len(sentences), 1)
        texts += [(_read(sentence.translate(_OTHER_HYPHENS)), share) for sentence in sentences]
    votes = dict.fromkeys(DOMAINS, 0.0)
    named = {"other"}
    for found, weight in texts:
        for name, strongest in _strongest(found, _BEGINNING if found is read else None).items():
            votes[name] += weight * strongest
            if strongest > _SUPPORTING:
                named.add(name)
    # the first sentence says what a figure is: a chart of MRI volumes is no MRI
    if read.get(_DRAWING, len(caption)) < len(_FIRST_SENTENCE.split(caption, maxsplit=1)[0]):
        votes["other"] += _CHART
    total = sum(votes.values())
    ranks = {name: (votes[name], name != "other", -_first(name, read, caption)) for name in votes if name in named}
    best = max(ranks, key=lambda name: ranks[name])
    best = best if votes[best] > _LEAST_VOTES else "other"
    return Verdict(
        domain=best,
        score=round(votes[best] / total, 4) if total else 0.0,
        is_plot=is_plot,
    )


def _strongest(found: dict[_Kind, int], beginning: int | None) -> dict[str, float]:
    """What a text says of each domain: its strongest word, once, less what speaks against it."""
    best: dict[str, float] = {}  # repeating "CT" five times is no more CT
    against: dict[str, float] = {}
    for (name, weight), start in found.items():
        if name not in DOMAINS:
            continue
        if name == "gross" and beginning is not None and start >= beginning:
            weight = min(weight, _SUPPORTING)
        if weight < 0:
            against[name] = min(weight, against.get(name, 0.0))
        else:
            best[name] = max(weight, best.get(name, 0.0))
    return {name: max(0.0, weight + against.get(name, 0.0)) for name, weight in best.items()}


def _first(name: str, read: dict[_Kind, int], caption: str) -> int:
    """Where the first word of the domain stands that is more than support."""
    found = (start for (kind, weight), start in read.items() if kind == name and weight > _SUPPORTING)
    return min(found, default=len(caption))


def _is_plot(read: dict[_Kind, int]) -> bool:
    names_image = any(weight >= 2 for _, weight in read)
    return _DRAWING in read or (_MAYBE_DRAWING in read and not names_image)
