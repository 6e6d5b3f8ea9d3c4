"""`llavamed instruct generate`: a corpus becomes alignment examples and conversations.

In: a corpus folder. Out: a folder with `align.jsonl` (describe this image -> the caption, for every
picture), `instruct.jsonl` (conversations about the selected ones), `report.html` and the manifest that
counts what was dropped and why. Alignment needs no domain: where no pair qualifies for a conversation,
`instruct.jsonl` is empty and a warning says so. A hosted teacher's answers are kept in `journal.jsonl`.

The corpus is read pair by pair and never held: once to select and to count what occurs in it
(`template.Census`), once for the alignment examples, once for the conversations. What is written about a pair is drawn
from a generator seeded with (seed, key), so it does not depend on the pairs around it or on their order.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llavamed import manifest
from llavamed.corpus.store import Corpus
from llavamed.errors import InputError
from llavamed.imaging.thumbnail import thumbnail
from llavamed.instruct import tables
from llavamed.instruct.align import align
from llavamed.instruct.clean import clean
from llavamed.instruct.facts import Facts, of_pair
from llavamed.instruct.journal import NAME as JOURNAL
from llavamed.instruct.journal import Journal
from llavamed.instruct.openai_teacher import OpenAITeacher, TeacherFailed
from llavamed.instruct.select import check_domains, reason_against_align, reason_against_instruct, select
from llavamed.instruct.template import Census, TemplateTeacher
from llavamed.manifest import Manifest
from llavamed.progress import track
from llavamed.recipe import InstructSection
from llavamed.records import Conversation, Message, Pair, write_jsonl
from llavamed.report import Page, new_figure

_ALIGN, _INSTRUCT, _REPORT = "align.jsonl", "instruct.jsonl", "report.html"
_CARDS = 24
_FAILURES_BEFORE_GIVING_UP = 10  # from the first record on: then it is the endpoint, not the records
_TABLES = ("lexicon.yaml", "questions.yaml", "clean.yaml", "prompts/conversation.yaml")


class Teacher(Protocol):
    """Who writes the conversations. `name` and `prompt_hash` go into every record."""

    name: str
    prompt_hash: str

    def converse(self, pair: Pair, mentions: bool, turns: int, rng: random.Random) -> tuple[Message, ...]: ...


@dataclass
class _Tally:
    """What the report says of the conversations, gathered while they are written."""

    images: Counter[str] = field(default_factory=Counter)  # by domain
    turns: Counter[str] = field(default_factory=Counter)  # by domain
    yes: Counter[str] = field(default_factory=Counter)
    no: Counter[str] = field(default_factory=Counter)
    turns_each: list[int] = field(default_factory=list)
    answer_words: list[int] = field(default_factory=list)
    caption_words: list[int] = field(default_factory=list)
    cards: list[tuple[bytes, Pair, Conversation]] = field(default_factory=list)

    def add(self, pair: Pair, conversation: Conversation, seed: int) -> None:
        answers = [m.text for m in conversation.messages if m.role == "assistant"]
        self.images[pair.domain] += 1
        self.turns[pair.domain] += len(answers)
        self.yes[pair.domain] += sum(a.lower().startswith("yes") for a in answers)
        self.no[pair.domain] += sum(a.lower().startswith(("no,", "no.")) for a in answers)
        self.turns_each.append(len(answers))
        self.answer_words += [len(a.split()) for a in answers]
        lot = hashlib.sha256(f"{seed}/card/{pair.key}".encode()).digest()
        self.cards = sorted([*self.cards, (lot, pair, conversation)], key=lambda card: card[0])[:_CARDS]


def generate(corpus: Path, out: Path, section: InstructSection, seed: int) -> Manifest:
    """Write `out` from the corpus, or return its manifest if it is already made from the same input.

    Raises InputError for a folder that is no corpus, a domain that is none, a teacher that cannot be reached, or
    nothing to write about.
    """
    began = time.monotonic()
    check_domains(section.domains)
    store = Corpus(corpus)
    made = Manifest(
        stage="instruct",
        settings={**section.model_dump(mode="json"), "seed": seed, "tables": tables.sha(*_TABLES)},
        inputs={str(corpus): store.fingerprint},
        extra={"images": os.path.relpath(corpus, out), "images_absolute": str(corpus.resolve())},
    )
    if manifest.is_done(out, made):
        print(f"{out}: finished already, skipped", file=sys.stderr)
        before = manifest.read(out)
        assert before is not None
        made.counts, made.funnel, made.files = before["counts"], before["funnel"], before["files"]
        made.seconds = before["seconds"]
        return made
    connected = _connect(section)  # before any work: a misspelt endpoint is known at once

    funnel: Counter[str] = Counter()
    tally = _Tally()
    candidates: list[tuple[str, str]] = []
    census = Census.of(_survey(store, section, candidates, funnel))
    keys, left = select(candidates, section.domains, section.count, seed)
    funnel["instruct: over the count"] += left.total()
    warning = ""
    if not keys:
        warning = f"no pair to write a conversation about; dropped: {_reasons(funnel) or 'the corpus is empty'}"
        if all(reason_against_align(pair) for pair in store.pairs()):
            raise InputError(f"{corpus}: {warning}")
    manifest.begin(out, made.stage)
    teacher: Teacher = connected or TemplateTeacher(census)
    if connected is not None:
        connected.journal = Journal(out / JOURNAL)
    align_count = write_jsonl(out / _ALIGN, _align(store, seed, funnel, tally))
    count = write_jsonl(out / _INSTRUCT, _instruct(store, section, seed, teacher, set(keys), funnel, tally))
    if keys and not count:
        warning = f"the teacher wrote nothing that could be kept; dropped: {_reasons(+funnel)}"
        if not align_count or funnel["instruct: teacher_failed"] == len(keys):  # to be asked again, not to be skipped
            raise InputError(f"{corpus}: {warning}")
    if warning:
        print(f"{out / _INSTRUCT}: empty: {warning}", file=sys.stderr)
    made.counts = {"pairs": len(store), "align": align_count, "instruct": count, "turns": sum(tally.turns_each)}
    made.funnel = dict(sorted((+funnel).items()))
    made.extra |= {"teacher": teacher.name, "prompt_hash": teacher.prompt_hash}
    _report(made, tally, store, section, out, warning)
    made.seconds = time.monotonic() - began
    # not the journal: it is no result, and to lose it must not cost the stage
    made.files = {name: manifest.file_sha256(out / name) for name in (_ALIGN, _INSTRUCT, _REPORT)}
    made.write(out, hash_files=False)
    return made


def _connect(section: InstructSection) -> OpenAITeacher | None:
    """The endpoint, or None for the template teacher, which is made after the corpus was counted."""
    return None if section.teacher == "template" else OpenAITeacher(section.teacher, section.teacher_model)


def _rng(seed: int, key: str, purpose: str) -> random.Random:
    return random.Random(f"{seed}/{key}/{purpose}")


def _source(pair: Pair, teacher: str, prompt_hash: str) -> dict[str, Any]:
    return {
        "pair": pair.key,
        "domain": pair.domain,
        "licence": pair.licence,
        "teacher": teacher,
        "prompt_hash": prompt_hash,
    }


def _survey(
    store: Corpus, section: InstructSection, candidates: list[tuple[str, str]], funnel: Counter[str]
) -> Iterator[Facts]:
    """Fill `candidates` with (key, domain) of the pairs that a conversation may be about; yield their facts."""
    for pair in track(store.pairs(), "reading pairs", total=len(store), unit="pairs"):
        against = reason_against_instruct(pair, section.domains)
        if against:
            funnel[f"instruct: {against}"] += 1
        else:
            candidates.append((pair.key, pair.domain))
            yield of_pair(pair, section.mentions)


def _align(store: Corpus, seed: int, funnel: Counter[str], tally: _Tally) -> Iterator[Conversation]:
    asked = tables.sha("questions.yaml")
    for pair in track(store.pairs(), "alignment examples", total=len(store), unit="pairs"):
        against = reason_against_align(pair)
        if against:
            funnel[f"align: {against}"] += 1
            continue
        tally.caption_words.append(len(pair.caption.split()))
        yield align(pair, _rng(seed, pair.key, "align"), _source(pair, "caption", asked))


def _instruct(
    store: Corpus,
    section: InstructSection,
    seed: int,
    teacher: Teacher,
    keys: set[str],
    funnel: Counter[str],
    tally: _Tally,
) -> Iterator[Conversation]:
    """The second pass: yields conversations in the order of the corpus."""
    wanted = (pair for pair in store.pairs() if pair.key in keys)
    wrote = False
    for pair in track(wanted, "conversations", total=len(keys), unit="pairs"):
        try:
            turns = teacher.converse(pair, section.mentions, section.turns, _rng(seed, pair.key, "instruct"))
        except TeacherFailed as error:
            funnel["instruct: teacher_failed"] += 1
            if not wrote and funnel["instruct: teacher_failed"] >= _FAILURES_BEFORE_GIVING_UP:
                raise InputError(
                    f"{section.teacher}: failed on each of the first {_FAILURES_BEFORE_GIVING_UP} pairs ({error}); "
                    "is it an OpenAI-compatible endpoint, and is it up?"
                ) from None
            continue
        wrote = True
        if not turns:
            funnel["instruct: nothing_to_say"] += 1
            continue
        messages, dropped = clean(turns, num_images=1)
        funnel.update({f"cleaning: {rule}": number for rule, number in dropped.items()})
        if not messages:
            funnel["instruct: no_turn_left"] += 1
            continue
        conversation = Conversation(
            f"{pair.key}-instruct", (pair.key,), messages, _source(pair, teacher.name, teacher.prompt_hash)
        )
        tally.add(pair, conversation, seed)
        yield conversation


def _reasons(funnel: Counter[str]) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in sorted(funnel.items()) if number)


# --- the page ------------------------------------------------------------------------------------------------------


def _report(made: Manifest, tally: _Tally, store: Corpus, section: InstructSection, out: Path, warning: str) -> None:
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
    page.write(out / _REPORT)


def _histogram(name: str, values: list[int]) -> Any:
    figure, axes = new_figure(4.0, 2.6)
    top = max(values, default=1)
    step = max(1, top // 30)
    axes.hist(values, bins=[edge - 0.5 for edge in range(0, top + 2 * step, step)], color="#0b6e8a")
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
