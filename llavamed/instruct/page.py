"""The report of `instruct generate`: what was made, what was dropped, what it cost, and what it looks like.

`Tally` gathers what the page needs while conversations are written, in constant memory: counts, and the few
conversations that were drawn for reading.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llavamed.corpus.store import Corpus
from llavamed.imaging.thumbnail import thumbnail
from llavamed.instruct.prices import Bill
from llavamed.manifest import Manifest
from llavamed.recipe import InstructSection
from llavamed.records import Conversation, Pair
from llavamed.report import Page, new_figure

_CARDS = 30


@dataclass
class Tally:
    """What the report says of the conversations."""

    images: Counter[str] = field(default_factory=Counter)  # by domain
    turns: Counter[str] = field(default_factory=Counter)  # by domain
    yes: Counter[str] = field(default_factory=Counter)
    no: Counter[str] = field(default_factory=Counter)
    turns_each: Counter[int] = field(default_factory=Counter)
    answer_words: Counter[int] = field(default_factory=Counter)
    caption_words: Counter[int] = field(default_factory=Counter)
    cards: list[tuple[bytes, Pair, Conversation]] = field(default_factory=list)
    bill: Bill | None = None  # of a hosted teacher

    @property
    def num_turns(self) -> int:
        return self.turns.total()

    def add(self, pair: Pair, conversation: Conversation, seed: int) -> None:
        answers = [m.text for m in conversation.messages if m.role == "assistant"]
        self.images[pair.domain] += 1
        self.turns[pair.domain] += len(answers)
        self.yes[pair.domain] += sum(a.lower().startswith("yes") for a in answers)
        self.no[pair.domain] += sum(a.lower().startswith(("no,", "no.")) for a in answers)
        self.turns_each[len(answers)] += 1
        self.answer_words.update(len(a.split()) for a in answers)
        lot = hashlib.sha256(f"{seed}/card/{pair.key}".encode()).digest()
        self.cards = sorted([*self.cards, (lot, pair, conversation)], key=lambda card: card[0])[:_CARDS]


def write_page(made: Manifest, tally: Tally, store: Corpus, section: InstructSection, path: Path, warning: str) -> None:
    yes, no = tally.yes.total(), tally.no.total()
    page = Page(
        "Conversations",
        f"Written by {made.extra['teacher']} from {store.folder.name}, "
        f"{'with' if section.mentions else 'without'} the sentences that cite the figures."
        + (f" No conversation: {warning}." if warning else ""),
        {
            "pairs": f"{made.counts['pairs']:,}",
            "alignment examples": f"{made.counts['align']:,}",
            "conversations": f"{made.counts['instruct']:,}",
            "turns": f"{made.counts['turns']:,}",
            "of closed answers are yes": f"{100 * yes / (yes + no):.0f} %" if yes + no else "-",
        },
    )
    page.table(
        "What was dropped, and why",
        ("reason", "count"),
        [(reason, f"{number:,}") for reason, number in made.funnel.items()],
        "Pairs under align and instruct; single turns or phrases under cleaning.",
    )
    page.table(
        "Domains",
        ("domain", "images", "turns", "closed: yes", "closed: no"),
        [(d, *(f"{c[d]:,}" for c in (tally.images, tally.turns, tally.yes, tally.no))) for d in sorted(tally.images)],
    )
    page.figures(
        "Lengths",
        [
            _histogram("turns per conversation", tally.turns_each),
            _histogram("words per answer", tally.answer_words),
            _histogram("words per caption", tally.caption_words),
        ],
    )
    page.cards(
        "Conversations beside their source",
        [_card(store, pair, conversation) for _, pair, conversation in tally.cards],
        f"{len(tally.cards)} drawn at random. The teacher read caption and mentions; it did not see the image.",
    )
    page.write(path)


def _histogram(name: str, counts: Counter[int]) -> Any:
    figure, axes = new_figure(4.0, 2.6)
    top = max(counts, default=1)
    step = max(1, top // 30)
    edges = [edge - 0.5 for edge in range(0, top + 2 * step, step)]
    axes.hist(list(counts), bins=edges, weights=list(counts.values()), color="#0b6e8a")
    axes.set_xlabel(name)
    return figure


def _card(store: Corpus, pair: Pair, conversation: Conversation) -> dict[str, Any]:
    lines = [("caption", pair.caption), *(("mention", m.sentence) for m in pair.mentions)]
    lines += [("Q" if m.role == "user" else "A", m.text) for m in conversation.messages]
    return {
        "image": thumbnail(store.image(pair.key), pair.key),
        "title": f"{pair.key} ({pair.domain}, {pair.licence})",
        "lines": lines,
    }
