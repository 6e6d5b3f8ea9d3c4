"""`llavamed instruct generate`: a corpus becomes alignment examples and conversations.

In: a corpus folder. Out: a folder with `align.jsonl` (describe this image -> the caption, for every
picture), `instruct.jsonl` (conversations about the selected ones), `report.html` and the manifest that
counts what was dropped and why. Alignment needs no domain: where no pair qualifies for a conversation,
`instruct.jsonl` is empty and a warning says so.

The corpus is read pair by pair and never held: once to select (and, for the template teacher, to count what occurs
in it), once to ask a hosted teacher what its `journal.jsonl` does not hold yet, once for the alignment examples, once
to write the conversations. What is written about a pair is drawn from a generator seeded with (seed, key), so it does
not depend on the pairs around it, on their order, or on the order in which answers come.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from llavamed import manifest
from llavamed.corpus.store import Corpus
from llavamed.errors import InputError
from llavamed.instruct import tables
from llavamed.instruct.align import align
from llavamed.instruct.ask import CUT, DECLINED, FAILED, NOT_IN_FORM, OVER_COST, ask
from llavamed.instruct.clean import clean
from llavamed.instruct.facts import of_pair
from llavamed.instruct.journal import NAME as JOURNAL
from llavamed.instruct.journal import Journal
from llavamed.instruct.judge import TABLE as JUDGE_TABLE
from llavamed.instruct.judge import Judge, Sample
from llavamed.instruct.openai_teacher import OpenAITeacher, TeacherFailed, calls
from llavamed.instruct.page import Tally, write_page
from llavamed.instruct.prices import Bill, price_of
from llavamed.instruct.select import check_domains, reason_against_align, reason_against_instruct, select
from llavamed.instruct.template import Census, TemplateTeacher
from llavamed.manifest import Manifest
from llavamed.progress import track
from llavamed.recipe import InstructSection
from llavamed.records import Conversation, Message, Pair, write_jsonl

STAGE = "instruct"
_ALIGN, _INSTRUCT, _REPORT = "align.jsonl", "instruct.jsonl", "report.html"
_TABLES = ("lexicon.yaml", "questions.yaml", "clean.yaml")
_NOT_WHAT_IS_MADE = {"max_concurrency", "timeout_seconds", "price", "without"}  # settings that change how, and not what


class Teacher(Protocol):
    """Who writes the conversations. `name` and `prompt_hash` go into every record."""

    name: str
    prompt_hash: str
    closed: bool  # asks only yes/no and multiple-choice questions
    by_rule: bool  # and so cannot tell what its source does not say

    def converse(self, pair: Pair, mentions: bool, turns: int, rng: random.Random) -> tuple[Message, ...]: ...


def generate(corpus: Path, out: Path, section: InstructSection, seed: int) -> Manifest:
    """Write `out` from the corpus, or return its manifest if it is already made from the same input.

    Raises InputError for a folder that is no corpus, a domain that is none, a teacher that cannot be reached, or
    nothing to write about.
    """
    began = time.monotonic()
    check_domains(section.domains)
    store = Corpus(corpus)
    connected = connect_teacher(section, store)  # before any work: a misspelt endpoint or prompt is known at once
    judge = Judge(section) if section.judge else None
    settings = section.model_dump(mode="json", exclude=_NOT_WHAT_IS_MADE)
    if connected is not None:
        settings |= {"teacher": connected.where, "teacher_model": connected.name, "prompt": connected.prompt_hash}
    if judge is not None:
        settings |= {"judge": judge.endpoint.where, "judge_prompt": tables.sha(JUDGE_TABLE)}
    made = Manifest(
        stage=STAGE,
        settings={**settings, "seed": seed, "tables": tables.sha(*_TABLES)},
        inputs={str(corpus): store.fingerprint},
        extra={"images": os.path.relpath(corpus, out), "images_absolute": str(corpus.resolve())},
    )
    before = manifest.read(out) if manifest.is_done(out, made) else None
    again = before is not None and connected is not None and _lacking(before["funnel"], out)
    unjudged = before is not None and "stopped" in before.get("extra", {}).get("judged", {})
    if before is not None and not again and not unjudged:
        print(f"{out}: finished already, skipped", file=sys.stderr)
        return Manifest.of(before)
    if again:
        print(f"{out}: {again:,} pairs had no answer; those that may get one are asked again", file=sys.stderr)

    funnel: Counter[str] = Counter()
    tally = Tally()
    sample = Sample(section.judge_sample if judge else 0, seed)
    keys, census = choose(store, section, seed, funnel)
    warning = ""
    if not keys:
        warning = f"no pair to write a conversation about; dropped: {_reasons(funnel) or 'the corpus is empty'}"
        if all(reason_against_align(pair) for pair in store.pairs()):
            raise InputError(f"{corpus}: {warning}")
    with ExitStack() as open_files:  # the journal's lock is held until the manifest stands
        teacher: Teacher = connected or TemplateTeacher(census)
        if connected is not None:
            connected.journal = open_files.enter_context(open_journal(out))
            try:
                tally.bill = _ask(store, section, seed, connected, keys)
            except InputError as error:
                if before is None:
                    raise
                print(f"{out}: left as it was: {error}", file=sys.stderr)  # an endpoint that is gone spoils no result
                return Manifest.of(before)
            for reason, number in connected.outcome.reasons().items():
                print(f"{out}: {number:,} without an answer: {reason}", file=sys.stderr)
            if before is not None and not connected.outcome.answered and not unjudged:
                print(f"{out}: no answer is new; left as it was", file=sys.stderr)
                return Manifest.of(before)
        manifest.begin(out, STAGE)
        align_count = write_jsonl(out / _ALIGN, _align(store, seed, funnel, tally))
        count = write_jsonl(out / _INSTRUCT, _instruct(store, section, seed, teacher, keys, funnel, tally, sample))
        unanswered = sum(number for reason, number in funnel.items() if reason.startswith(_UNANSWERED))
        if keys and not count:
            warning = f"the teacher wrote nothing that could be kept; dropped: {_reasons(+funnel)}"
            if not align_count or unanswered == len(keys):  # to be asked again, not to be skipped
                raise InputError(f"{corpus}: {warning}")
        if funnel[_UNANSWERED + OVER_COST]:
            warning = (
                f"stopped at instruct.max_cost={section.max_cost:g}: {funnel[_UNANSWERED + OVER_COST]:,} of "
                f"{len(keys):,} pairs were not asked about; run it again with more, and only they are asked"
            )
        if warning:
            print(f"{out / _INSTRUCT}: {'' if count else 'empty: '}{warning}", file=sys.stderr)
        if judge is not None and sample.drawn:
            tally.judged = judge.judge(sample, section.mentions, out)
            made.extra["judged"] = tally.judged.summary()
        made.counts = {"pairs": len(store), "align": align_count, "instruct": count, "turns": tally.num_turns}
        made.funnel = dict(sorted((+funnel).items()))
        made.extra |= {"teacher": teacher.name, "prompt_hash": teacher.prompt_hash}
        if connected is not None and tally.bill is not None:
            made.extra["asked"] = connected.outcome.summary() | tally.bill.summary() | connected.endpoint.summary()
        write_page(made, tally, store, section, out / _REPORT, warning)
        made.seconds = time.monotonic() - began
        # not the journal: it is no result, and to lose it must not cost the stage
        made.files = {name: manifest.file_sha256(out / name) for name in (_ALIGN, _INSTRUCT, _REPORT)}
        made.write(out, hash_files=False)
    return made


def _lacking(funnel: dict[str, int], out: Path) -> int:
    """Pairs of a finished folder that the teacher may answer if asked again; without the journal, all would be."""
    missed = sum(funnel.get(_UNANSWERED + kind, 0) for kind in (FAILED, DECLINED, NOT_IN_FORM, CUT))
    return missed if (out / JOURNAL).is_file() else 0


def open_journal(out: Path) -> Journal:
    """The journal of the stage's folder, which is made where it is absent. Nothing else in it is touched before the
    lock is held: a process that is refused leaves the other's work, and its result, as they are."""
    if not (out / JOURNAL).is_file():
        manifest.begin(out, STAGE)
    return Journal(out / JOURNAL)


def connect_teacher(section: InstructSection, store: Corpus) -> OpenAITeacher | None:
    """The endpoint, or None for the template teacher, which is made after the corpus was counted."""
    return None if section.teacher == "template" else OpenAITeacher(section, store.image)


def choose(store: Corpus, section: InstructSection, seed: int, funnel: Counter[str]) -> tuple[set[str], Census]:
    """The keys of the pairs to write about, and what occurs in the corpus; what is left out is counted."""
    candidates: list[tuple[str, str]] = []
    found = _survey(store, section, candidates, funnel)
    census = Census.of(of_pair(pair, section.mentions) for pair in found) if section.teacher == "template" else Census()
    for _ in found:  # a language model needs no census
        pass
    keys, left = select(candidates, section.domains, section.count, seed)
    funnel["instruct: over the count"] += left.total()
    return set(keys), census


def generator(seed: int, key: str, purpose: str = "instruct") -> random.Random:
    return random.Random(f"{seed}/{key}/{purpose}")


def _ask(store: Corpus, section: InstructSection, seed: int, teacher: OpenAITeacher, keys: set[str]) -> Bill:
    """Fill the journal with what it lacks."""
    assert teacher.journal is not None
    bill = Bill(teacher.journal, price_of(teacher.name, section.price), section.max_cost)
    teacher.outcome = ask(
        lambda: calls(teacher, chosen(store, keys), section, lambda key: generator(seed, key)),
        teacher.endpoint,
        teacher.journal,
        teacher.right,
        bill=bill,
        at_most=section.max_concurrency,
        total=len(keys),
        title="asking the teacher",
    )
    return bill


def chosen(store: Corpus, keys: set[str]) -> Iterator[Pair]:
    return (pair for pair in store.pairs() if pair.key in keys)


def _source(pair: Pair, teacher: str, prompt_hash: str) -> dict[str, Any]:
    return {
        "pair": pair.key,
        "article": pair.article,
        "domain": pair.domain,
        "licence": pair.licence,
        "teacher": teacher,
        "prompt_hash": prompt_hash,
    }


def _survey(
    store: Corpus, section: InstructSection, candidates: list[tuple[str, str]], funnel: Counter[str]
) -> Iterator[Pair]:
    """Yield the pairs that a conversation may be about, and fill `candidates` with their (key, domain)."""
    for pair in track(store.pairs(), "reading pairs", total=len(store), unit="pairs"):
        against = reason_against_instruct(pair, section.domains)
        if against is None and not store.has_image(pair.key):
            against = "no_image"
        if against:
            funnel[f"instruct: {against}"] += 1
        else:
            candidates.append((pair.key, pair.domain))
            yield pair


def _align(store: Corpus, seed: int, funnel: Counter[str], tally: Tally) -> Iterator[Conversation]:
    asked = tables.sha("questions.yaml")
    for pair in track(store.pairs(), "alignment examples", total=len(store), unit="pairs"):
        against = reason_against_align(pair)
        if against is None and not store.has_image(pair.key):
            against = "no_image"
        if against:
            funnel[f"align: {against}"] += 1
            continue
        tally.caption_words[len(pair.caption.split())] += 1
        yield align(pair, generator(seed, pair.key, "align"), _source(pair, "caption", asked))


_UNANSWERED = "instruct: teacher_"


def _instruct(
    store: Corpus,
    section: InstructSection,
    seed: int,
    teacher: Teacher,
    keys: set[str],
    funnel: Counter[str],
    tally: Tally,
    sample: Sample,
) -> Iterator[Conversation]:
    """Yields conversations in the order of the corpus."""
    for pair in track(chosen(store, keys), "conversations", total=len(keys), unit="pairs"):
        try:
            turns = teacher.converse(pair, section.mentions, section.turns, generator(seed, pair.key))
        except TeacherFailed as error:
            funnel[f"{_UNANSWERED}{error.kind}"] += 1
            continue
        if not turns:
            funnel["instruct: nothing_to_say"] += 1
            continue
        read = (pair.caption, *(mention.sentence for mention in pair.mentions))
        messages, dropped = clean(turns, num_images=1, written=not teacher.by_rule, closed=teacher.closed, source=read)
        funnel.update({f"cleaning: {rule}": number for rule, number in dropped.items()})
        if not messages:
            funnel["instruct: no_turn_left"] += 1
            continue
        conversation = Conversation(
            f"{pair.key}-instruct", (pair.key,), messages, _source(pair, teacher.name, teacher.prompt_hash)
        )
        tally.add(pair, conversation, seed)
        sample.add(pair, conversation)
        yield conversation


def _reasons(funnel: Counter[str]) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in sorted(funnel.items()) if number)
