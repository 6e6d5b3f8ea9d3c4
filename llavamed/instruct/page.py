"""The report of `instruct generate`: what was made, what was dropped, what it cost, and what it looks like.

It begins with the paper's figure for this data (Li et al. 2023, figure 2): what is asked and what is told, by verb
and noun, and how many images and turns each domain has. `Tally` gathers what the page needs while conversations are
written, in constant memory: counts, and the few conversations that were drawn for reading.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from math import cos, radians, sin
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavamed.corpus.store import Corpus
from llavamed.errors import InputError
from llavamed.imaging.thumbnail import thumbnail
from llavamed.instruct import verbnoun
from llavamed.instruct.prices import Bill
from llavamed.manifest import Manifest
from llavamed.recipe import InstructSection
from llavamed.records import Conversation, Pair
from llavamed.report import Page, new_figure

if TYPE_CHECKING:
    from llavamed.instruct.judge import Judged

_CARDS = 30
_VERBS, _NOUNS = 12, 8  # of the sunburst: verbs, and nouns of each
_WORST = 10  # conversations by the judge's score
_COLOURS = ("#0b6e8a", "#e08e45", "#7a9e7e", "#b5546a", "#6a6fb3", "#c9a63d", "#4f8fc0", "#9a6b4f", "#5aa6a0",
            "#d27d9b", "#8a8f3c", "#7d7d7d")  # fmt: skip

_GREY = "#d5dbe1"
_NAMES = {"chest_xray": "chest X-ray", "ct_scan": "CT", "mri": "MRI", "gross": "gross pathology"}

VerbNouns = Counter[tuple[str, str] | None]


@dataclass
class Tally:
    """What the report says of the conversations."""

    images: Counter[str] = field(default_factory=Counter)  # by domain
    turns: Counter[str] = field(default_factory=Counter)  # by domain
    yes: Counter[str] = field(default_factory=Counter)
    no: Counter[str] = field(default_factory=Counter)
    asked: VerbNouns = field(default_factory=Counter)
    told: VerbNouns = field(default_factory=Counter)
    turns_each: Counter[int] = field(default_factory=Counter)
    question_words: Counter[int] = field(default_factory=Counter)
    answer_words: Counter[int] = field(default_factory=Counter)
    caption_words: Counter[int] = field(default_factory=Counter)
    cards: list[tuple[bytes, Pair, Conversation]] = field(default_factory=list)
    bill: Bill | None = None  # of a hosted teacher
    judged: Judged | None = None

    @property
    def num_turns(self) -> int:
        return self.turns.total()

    def add(self, pair: Pair, conversation: Conversation, seed: int) -> None:
        questions = [m.text for m in conversation.messages if m.role == "user"]
        answers = [m.text for m in conversation.messages if m.role == "assistant"]
        self.images[pair.domain] += 1
        self.turns[pair.domain] += len(answers)
        self.yes[pair.domain] += sum(a.lower().startswith("yes") for a in answers)
        self.no[pair.domain] += sum(a.lower().startswith(("no,", "no.")) or a.lower() == "no" for a in answers)
        self.asked.update(map(verbnoun.pair, questions))
        self.told.update(map(verbnoun.pair, answers))
        self.turns_each[len(answers)] += 1
        self.question_words.update(len(q.split()) for q in questions)
        self.answer_words.update(len(a.split()) for a in answers)
        lot = hashlib.sha256(f"{seed}/card/{pair.key}".encode()).digest()
        if len(self.cards) < _CARDS or lot < self.cards[-1][0]:
            self.cards = sorted([*self.cards, (lot, pair, conversation)], key=lambda card: card[0])[:_CARDS]


def write_page(made: Manifest, tally: Tally, store: Corpus, section: InstructSection, path: Path, warning: str) -> None:
    yes, no = tally.yes.total(), tally.no.total()
    asked = made.extra.get("asked", {})
    read = "caption and the sentences that cite the figure" if section.mentions else "caption"
    saw = "it saw the image too" if section.sighted else "it did not see the image"
    facts = {
        "pairs": f"{made.counts['pairs']:,}",
        "alignment examples": f"{made.counts['align']:,}",
        "conversations": f"{made.counts['instruct']:,}",
        "turns": f"{made.counts['turns']:,}",
        "of closed answers are yes": f"{100 * yes / (yes + no):.0f} %" if yes + no else "-",
    }
    if "cost" in asked:
        facts["cost"] = f"{asked['cost']:,.2f} {asked['currency']}"
    if tally.judged is not None and tally.judged.scored:
        facts["of judged answers are grounded"] = f"{100 * tally.judged.share:.0f} %"
    page = Page(
        "Conversations",
        f"Written by {made.extra['teacher']} from {store.folder.name}: it read the {read}; {saw}. "
        f"Prompt {made.extra['prompt_hash']}, seed {made.settings['seed']}."
        + (f" {'No conversation' if not made.counts['instruct'] else 'Note'}: {warning}." if warning else ""),
        facts,
    )
    if tally.num_turns:
        page.figures(
            "What is asked and what is told",
            [_sunburst("questions", tally.asked), _sunburst("answers", tally.told)],
            "Inner ring: the verb of the sentence; outer ring: its noun, by rule "
            f"({_found(tally.asked)} of the questions and {_found(tally.told)} of the answers have both). "
            "Pale: all other nouns of the verb.",
        )
        page.figures(
            "Images and turns per domain",
            [_domains(tally), _histogram("turns per conversation", tally.turns_each, 3.9, 3.4)],
        )
    page.table(
        "What was dropped, and why",
        ("reason", "count"),
        [(reason, f"{number:,}") for reason, number in made.funnel.items()] or [("nothing", "0")],
        "Pairs under align and instruct; single turns or phrases under cleaning.",
    )
    page.table(
        "Domains",
        ("domain", "images", "turns", "closed: yes", "closed: no"),
        [
            (_NAMES.get(d, d), *(f"{c[d]:,}" for c in (tally.images, tally.turns, tally.yes, tally.no)))
            for d in sorted(tally.images)
        ],
    )
    if asked:
        page.table(
            "Calls and cost",
            ("what", "number"),
            _cost(asked),
            "Calls and records are of this run; tokens and cost of everything in the journal, earlier runs included.",
        )
    if asked.get("unanswered"):
        page.table(
            "Pairs without an answer",
            ("why, in the endpoint's words", "count"),
            [(reason, f"{number:,}") for reason, number in asked["unanswered"].items()],
            "The commonest reasons; how many there are of each kind stands under what was dropped.",
        )
    page.figures(
        "Lengths",
        [
            _histogram("words per question", tally.question_words),
            _histogram("words per answer", tally.answer_words),
            _histogram("words per caption", tally.caption_words),
        ],
    )
    if tally.judged is not None:
        _judged(page, tally.judged, store)
    page.cards(
        "Conversations beside their source",
        [_card(store, pair, conversation) for _, pair, conversation in tally.cards],
        f"{len(tally.cards)} drawn at random. The teacher read the {read}; {saw}.",
    )
    page.write(path)


def _cost(asked: dict[str, Any]) -> list[tuple[str, str]]:
    names = {"calls": "calls", "answered": "records answered", "tokens_in": "tokens in", "tokens_out": "tokens out",
             "lost": "calls that were cut off and may have cost"}  # fmt: skip
    rows = [(said, f"{asked[name]:,}") for name, said in names.items() if name in asked]
    rows += [(f"calls: {kind}", f"{number:,}") for kind, number in asked.get("broken", {}).items()]
    rows.append(("cost", _price(asked)))
    if asked.get("given_up"):
        rows.append(("not understood by the endpoint", ", ".join(asked["given_up"])))
    return rows


def _price(bill: dict[str, Any]) -> str:
    return f"{bill['cost']:,.4f} {bill['currency']}" if "cost" in bill else "no price is known"


# --- figures -----------------------------------------------------------------------------------------------------


def _sunburst(title: str, counts: VerbNouns) -> Any:
    """Two rings: verbs, and the nouns of each. What is rare is grey."""
    figure, axes = new_figure(5.5, 5.5)
    axes.grid(visible=False)
    by_verb: dict[str, Counter[str]] = {}
    for found, number in counts.items():
        if found is not None:
            by_verb.setdefault(found[0], Counter())[found[1]] += number
    verbs = sorted(by_verb, key=lambda verb: (-by_verb[verb].total(), verb))
    total = sum(nouns.total() for nouns in by_verb.values()) or 1
    inner: list[tuple[str, int, str]] = []
    outer: list[tuple[str, int, str]] = []
    for verb, colour in zip(verbs[:_VERBS], _COLOURS, strict=False):
        inner.append((verb, by_verb[verb].total(), colour))
        nouns = by_verb[verb].most_common(_NOUNS)
        outer += [(noun, number, colour) for noun, number in nouns]
        outer.append(("", by_verb[verb].total() - sum(number for _, number in nouns), colour))
    rest = sum(by_verb[verb].total() for verb in verbs[_VERBS:])
    inner.append(("other", rest, _GREY))
    outer.append(("", rest, _GREY))
    for ring, radius, width, smallest in ((inner, 0.62, 0.36, 0.02), (outer, 1.0, 0.37, 0.012)):
        shown = [(name, number, colour) for name, number, colour in ring if number > 0] or [("", 1, _GREY)]
        wedges, _ = axes.pie(
            [number for _, number, _ in shown],
            radius=radius,
            colors=[colour for _, _, colour in shown],
            startangle=90,
            counterclock=False,
            wedgeprops={"width": width, "edgecolor": "white", "linewidth": 0.7},
        )
        for (name, number, colour), wedge in zip(shown, wedges, strict=True):
            wedge.set_alpha(1.0 if ring is inner else 0.75 if name else 0.35)
            if name and number / total >= smallest:
                dark = ring is inner and colour != _GREY
                _label(axes, name, wedge, radius - width / 2, "white" if dark else "#1c2733")
    axes.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02))
    axes.set_title(title, fontsize=11)
    return figure


def _label(axes: Any, name: str, wedge: Any, radius: float, colour: str) -> None:
    """The word along the middle of its wedge, readable from the right."""
    angle = (wedge.theta1 + wedge.theta2) / 2
    turned = angle if -90 <= (angle + 180) % 360 - 180 <= 90 else angle + 180
    x, y = radius * cos(radians(angle)), radius * sin(radians(angle))
    axes.text(x, y, name, rotation=turned, ha="center", va="center", fontsize=7.5, color=colour)


def _domains(tally: Tally) -> Any:
    figure, axes = new_figure(4.2, 3.4)
    names = sorted(tally.images, key=lambda domain: tally.turns[domain])
    places = range(len(names))
    axes.barh([p + 0.2 for p in places], [tally.turns[d] for d in names], 0.38, color="#0b6e8a", label="turns")
    axes.barh([p - 0.2 for p in places], [tally.images[d] for d in names], 0.38, color="#e08e45", label="images")
    for place, name in zip(places, names, strict=True):
        axes.text(tally.turns[name], place + 0.2, f" {tally.turns[name]:,}", va="center", fontsize=8)
        axes.text(tally.images[name], place - 0.2, f" {tally.images[name]:,}", va="center", fontsize=8)
    axes.set_yticks(list(places), [_NAMES.get(name, name) for name in names])
    axes.margins(x=0.16)
    axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def _found(counts: VerbNouns) -> str:
    return f"{100 * (1 - counts[None] / max(counts.total(), 1)):.0f} %"


def _histogram(name: str, counts: Counter[int], width: float = 2.7, height: float = 2.2) -> Any:
    figure, axes = new_figure(width, height)
    top = max(counts, default=1)
    step = max(1, top // 30)
    edges = [edge - 0.5 for edge in range(0, top + 2 * step, step)]
    axes.hist(list(counts), bins=edges, weights=list(counts.values()), color="#0b6e8a")
    axes.locator_params(axis="x", integer=True, nbins=8)
    axes.set_xlabel(name)
    return figure


# --- cards --------------------------------------------------------------------------------------------------------


def _judged(page: Page, judged: Judged, store: Corpus) -> None:
    low, high = judged.interval
    page.table(
        "Groundedness, by a second model",
        ("what", "number"),
        [
            ("judge", judged.model),
            ("conversations judged", f"{judged.conversations:,}"),
            ("answers scored", f"{judged.scored:,}"),
            ("of them grounded", f"{100 * judged.share:.1f} % (95 %: {100 * low:.1f}-{100 * high:.1f})"),
            ("conversations without a verdict", f"{judged.unjudged:,}"),
            ("tokens in and out", f"{judged.cost['tokens_in']:,} and {judged.cost['tokens_out']:,}"),
            ("cost", _price(judged.cost)),
        ],
        "An answer is grounded if the judge finds it supported by the source text. What could not be judged is left "
        "out and never filled in.",
    )
    page.cards(
        "The worst by the judge",
        [
            _card(store, pair, conversation, [("judge", f"{n}: {verdict}") for n, verdict in verdicts])
            for pair, conversation, verdicts in judged.worst(_WORST)
        ],
    )


def _card(
    store: Corpus, pair: Pair, conversation: Conversation, more: list[tuple[str, str]] | None = None
) -> dict[str, Any]:
    image, why = _image(store, pair.key)
    lines = [("image", why)] if why else []
    lines += [("caption", pair.caption), *(("mention", m.sentence) for m in pair.mentions)]
    lines += [("Q" if m.role == "user" else "A", m.text) for m in conversation.messages]
    return {
        "image": image,
        "title": f"{pair.key} ({pair.domain}, {pair.licence})",
        "lines": [*lines, *(more or [])],
    }


def _image(store: Corpus, key: str) -> tuple[str, str]:
    """A small copy as a data URL and "", or "" and why there is none."""
    try:
        url = thumbnail(store.image(key), key)
    except InputError as error:
        return "", f"cannot be shown: {error}"
    return url, "" if url else "cannot be shown: its bytes are no image that can be decoded"
