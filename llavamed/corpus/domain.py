"""What kind of picture a figure is, from its words: LLaVA-Med's five domains, or other.

The paper chose its pairs by words of the caption (Li et al. 2023, section 3). Each domain here is a table
of words with a weight (`domain_words.yaml`); the caption votes fully, all the sentences that cite the figure together
half, the title of the article a quarter, since an article on MRI also shows its histology. The score is
the winner's share of all votes, so 1.0 is "nothing spoke for another domain". Words of weight 1
("specimen", "stained") only support: a map of where specimens were found is no gross photograph.

Charts and drawings speak of images too ("ROC curve of the CT score"); they are flagged apart by their
own table, and what the text says of them is no picture. Of two domains named as strongly, the one that
the caption names first wins: "histology slice, for comparison with MRI".

How often this is right stands in `docs/experiments.md` (`benchmarks/domain.py`); a caption that names no
modality ("Dissected view of the mass") is beyond any table of words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from llavamed.records import Mention


def _whole_words(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)


def _load() -> tuple[dict[str, list[tuple[re.Pattern[str], float]]], re.Pattern[str], re.Pattern[str]]:
    table: dict[str, Any] = yaml.safe_load(
        (resources.files("llavamed.corpus") / "domain_words.yaml").read_text("utf-8")
    )
    parts = {f"<{name}>": f"(?:{'|'.join(words)})" for name, words in table["parts"].items()}

    def pattern(words: list[str]) -> re.Pattern[str]:
        text = "|".join(words)
        for name, part in reversed(parts.items()):  # a later part may hold an earlier one
            text = text.replace(name, part)
        return _whole_words(text)

    domains = {
        name: [(pattern(words), float(weight)) for weight, words in rows.items()]
        for name, rows in table["domains"].items()
    }
    return domains, pattern(table["drawings"]), pattern(table["maybe_drawings"])


_HYPHENS = str.maketrans(dict.fromkeys("\u2010\u2011", "-"))  # "X‐ray" as many publishers set it
_DOMAIN_PATTERNS, _PLOT_PATTERN, _MAYBE_PLOT_PATTERN = _load()

_SUPPORTING = 1.0  # the weight of words that name no domain on their own
_CHART = 3.5
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
    caption = caption.translate(_HYPHENS)
    texts = [(caption, _CAPTION_WEIGHT), (title, _TITLE_WEIGHT)]
    # all that cite it together: a figure of a skull cited ten times, once beside "CT", need not be a CT
    is_plot = _is_plot(caption)
    if is_plot:
        sentences, texts = [], texts[:1]  # what the text says of a chart's data is no picture of it
    texts += [(sentence.translate(_HYPHENS), _MENTION_WEIGHT / len(sentences)) for sentence in sentences]
    votes = dict.fromkeys(_DOMAIN_PATTERNS, 0.0)
    named = {"other"}
    for text, weight in texts:
        for name, words in _DOMAIN_PATTERNS.items():
            # the strongest word of each text counts, once: repeating "CT" five times is no more CT
            strongest = max((w for pattern, w in words if pattern.search(text)), default=0.0)
            votes[name] += weight * strongest
            if strongest > _SUPPORTING:
                named.add(name)
    if _PLOT_PATTERN.search(re.split(r"(?<=[.:]) ", caption, maxsplit=1)[0]):
        votes["other"] += _CHART  # the first sentence says what a figure is: a chart of MRI volumes is no MRI
    total = sum(votes.values())
    ranks = {name: (votes[name], name != "other", -_first(name, caption)) for name in votes if name in named}
    best = max(ranks, key=lambda name: ranks[name])
    best = best if votes[best] > _LEAST_VOTES else "other"
    return Verdict(
        domain=best,
        score=round(votes[best] / total, 4) if total else 0.0,
        is_plot=is_plot,
    )


def _first(name: str, caption: str) -> int:
    """Where the first word of the domain stands that is more than support."""
    found = (pattern.search(caption) for pattern, weight in _DOMAIN_PATTERNS[name] if weight > _SUPPORTING)
    return min((match.start() for match in found if match), default=len(caption))


def _is_plot(caption: str) -> bool:
    if _PLOT_PATTERN.search(caption):
        return True
    names_image = any(w >= 2 and p.search(caption) for words in _DOMAIN_PATTERNS.values() for p, w in words)
    return not names_image and _MAYBE_PLOT_PATTERN.search(caption) is not None
