"""What can be done about a hosted teacher's calls without making them: count them, and carry them in batch files.

`plan` is `--dry-run`: how many calls, how many tokens, at what price. `export_batch` and `import_batch` are the two
halves of a half-price run. All three look into the journal of the stage's folder: what stands there is not counted,
exported or paid again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavamed import manifest
from llavamed.corpus.store import Corpus
from llavamed.errors import InputError
from llavamed.instruct import batch
from llavamed.instruct.call import Call, known_answer
from llavamed.instruct.endpoint import CONCESSIONS, estimate
from llavamed.instruct.generate import STAGE, choose, chosen, connect_teacher, generator, open_journal
from llavamed.instruct.journal import NAME as JOURNAL
from llavamed.instruct.journal import Journal
from llavamed.instruct.openai_teacher import OpenAITeacher, calls
from llavamed.instruct.prices import price_of
from llavamed.instruct.select import check_domains
from llavamed.recipe import InstructSection

_IMAGE_TOKENS = 1105  # of 1024 x 1024 pixels by OpenAI's tiles; others differ


@dataclass(frozen=True)
class Plan:
    """The calls that a run would make now."""

    pairs: int
    answered: int  # in the journal already
    given_up: int  # in the journal too, but of no use, and asking again would bring the same
    calls: int
    tokens_in: int
    tokens_out: int
    basis: str  # what the tokens of an answer were taken from
    cost: float | None
    batch_cost: float | None
    currency: str
    price: str

    def table(self) -> tuple[list[str], list[list[Any]]]:
        cost: list[list[Any]] = [
            ["cost", "unknown" if self.cost is None else f"{self.cost:.2f} {self.currency}"],
            ["cost as batch files", "unknown" if self.batch_cost is None else f"{self.batch_cost:.2f} {self.currency}"],
            ["price", self.price],
        ]
        counted: list[list[Any]] = [
            ["pairs", self.pairs],
            ["answered already", self.answered],
            *([["answered, but of no use", self.given_up]] if self.given_up else []),
            ["calls", self.calls],
            ["tokens in, about", self.tokens_in],
            ["tokens out, about", self.tokens_out],
            ["tokens of an answer from", self.basis],
        ]
        return ["what", "count"], counted + (cost if self.calls or self.answered or self.given_up else [])


def plan(corpus: Path, out: Path, section: InstructSection, seed: int) -> Plan:
    """What `generate` would ask now; nothing is sent and nothing is written."""
    store, teacher, keys = _prepare(corpus, section, seed)
    if teacher is None:
        return Plan(len(keys), 0, 0, 0, 0, 0, "no calls: the template teacher is offline", None, None, "", "none")
    with Journal(out / JOURNAL, writable=False) as journal:
        answered = given_up = count = tokens_in = cut = tokens_cut = 0
        for call in _calls(store, teacher, keys, section, seed):
            known = known_answer(call, journal, teacher.right)
            if known.ask is None:
                answered += known.text is not None
                given_up += known.text is None
                continue
            count += 1
            if known.cut:  # it will be longer than others, and nobody knows how much
                cut, tokens_cut = cut + 1, tokens_cut + call.max_tokens
            tokens_in += call.tokens + (_IMAGE_TOKENS if section.sighted else 0)
        out_each, basis = _answer_tokens(teacher, section, journal)
    tokens_out = round((count - cut) * out_each) + tokens_cut
    if cut:
        basis += f"; max_tokens of {cut:,} that were cut before"
    price = price_of(teacher.name, section.price)
    if price is None:
        return Plan(
            len(keys), answered, given_up, count, tokens_in, tokens_out, basis, None, None, "",
            f"{teacher.name} has no entry; set instruct.price=[INPUT,OUTPUT], per million tokens",
        )  # fmt: skip
    cost = price.of(tokens_in, tokens_out)
    said = f"{price.input:g} / {price.output:g} {price.currency} per million tokens in / out" + (
        f", read {price.read}" if price.read else ""
    )
    return Plan(
        len(keys), answered, given_up, count, tokens_in, tokens_out, basis, cost, cost * price.batch, price.currency,
        said,
    )  # fmt: skip


def export_batch(corpus: Path, out: Path, section: InstructSection, seed: int, folder: Path) -> tuple[list[Path], int]:
    """Write what `generate` would ask now as batch files into `folder`; returns the files and the number of
    requests."""
    store, teacher, keys = _prepare(corpus, section, seed)
    _needs_endpoint(teacher)
    assert teacher is not None
    with Journal(out / JOURNAL, writable=False) as journal:
        return batch.write_requests(
            folder, _calls(store, teacher, keys, section, seed), journal, teacher.right, teacher.endpoint.given_up
        )


def import_batch(
    corpus: Path, out: Path, section: InstructSection, seed: int, results: Sequence[Path]
) -> tuple[Counter[str], int]:
    """Put result files into the journal of `out`. Returns what was in them, and how many calls are still missing. What
    the endpoint refused for a parameter is told with the setting that leaves it out."""
    store, teacher, keys = _prepare(corpus, section, seed)
    _needs_endpoint(teacher)
    assert teacher is not None
    with open_journal(out) as journal:
        manifest.begin(out, STAGE)
        counts, refused = batch.read_results(results, journal, teacher.name, teacher.endpoint.given_up)
        asked = _calls(store, teacher, keys, section, seed)
        missing = sum(known_answer(call, journal, teacher.right).ask is not None for call in asked)
    named = [name for name, _ in CONCESSIONS if name in {*refused, *teacher.endpoint.given_up}]
    if refused:
        why = f"{max(refused.values()):,} requests were refused for a parameter that the model does not take"
        print(f'{out}: {why}; export again with --set "instruct.without=[{",".join(named)}]"', file=sys.stderr)
    return counts, missing


def _prepare(corpus: Path, section: InstructSection, seed: int) -> tuple[Corpus, OpenAITeacher | None, set[str]]:
    check_domains(section.domains)
    store = Corpus(corpus)
    teacher = connect_teacher(section, store)
    return store, teacher, choose(store, section, seed, Counter())[0]


def _needs_endpoint(teacher: OpenAITeacher | None) -> None:
    if teacher is None:
        raise InputError("instruct.teacher: the template teacher makes no calls; batch files need an endpoint's URL")


def _calls(
    store: Corpus, teacher: OpenAITeacher, keys: set[str], section: InstructSection, seed: int
) -> Iterator[Call]:
    return calls(teacher, chosen(store, keys), section, lambda key: generator(seed, key))


def _answer_tokens(teacher: OpenAITeacher, section: InstructSection, journal: Journal) -> tuple[float, str]:
    """About how many tokens an answer has: as the journal's have had, else as the prompt's examples have."""
    if len(journal) >= 20:
        return journal.tokens[1] / len(journal), f"the journal's {len(journal):,} answers"
    turns = [turn for example in teacher.prompt.examples for turn in example.turns]
    each = estimate("".join(f'{{"question": "{t.question}", "answer": "{t.answer}"}}, ' for t in turns)) / len(turns)
    return each * (teacher.prompt.turns or section.turns) + 4, "the prompt's examples"
