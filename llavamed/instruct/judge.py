"""A second model reads a sample of conversations beside their source and says which answers the source supports.

In: conversations drawn while they were written. Out: the share of grounded answers with its interval, and the worst
conversations to look at. Judges fail too: a verdict that cannot be read, or a turn that was passed over, is counted
as not judged and left out of the share; it is never filled in. Raw verdicts stand in `judge.jsonl`, whose lines are
paid for once.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llavamed.errors import InputError
from llavamed.instruct import answer, tables
from llavamed.instruct.ask import ask
from llavamed.instruct.call import Call, known_answer
from llavamed.instruct.endpoint import JUDGE_KEY, Endpoint, connect
from llavamed.instruct.journal import Journal
from llavamed.instruct.prices import Bill, not_taken, price_of
from llavamed.recipe import InstructSection
from llavamed.records import Conversation, Pair

NAME = "judge.jsonl"
TABLE = "judge.yaml"
_RESAMPLES = 1000


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    turn: int
    grounded: bool
    why: str = ""


class Verdicts(BaseModel):
    model_config = ConfigDict(extra="forbid")
    verdicts: list[Verdict]


@dataclass
class Sample:
    """The `size` conversations whose lot is lowest, whatever the order in which they come."""

    size: int
    seed: int
    drawn: list[tuple[bytes, Pair, Conversation]] = field(default_factory=list)

    def add(self, pair: Pair, conversation: Conversation) -> None:
        lot = hashlib.sha256(f"{self.seed}/judge/{pair.key}".encode()).digest()
        if len(self.drawn) < self.size or (self.drawn and lot < self.drawn[-1][0]):
            self.drawn = sorted([*self.drawn, (lot, pair, conversation)], key=lambda item: item[0])[: self.size]


@dataclass
class Judged:
    """What the judge said, by conversation: [(turn, grounded, why)]."""

    model: str
    items: list[tuple[Pair, Conversation, list[tuple[int, bool, str]]]]
    unjudged: int  # conversations without a verdict that can be read
    cost: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        low, high = self.interval
        share = {"grounded": round(self.share, 4), "low": round(low, 4), "high": round(high, 4)} if self.scored else {}
        return {"model": self.model, "prompt_hash": tables.sha(TABLE), "conversations": self.conversations,
                "answers": self.scored, "unjudged": self.unjudged, **share, **self.cost}  # fmt: skip

    @property
    def conversations(self) -> int:
        return len(self.items) + self.unjudged

    @property
    def scored(self) -> int:
        return sum(len(verdicts) for _, _, verdicts in self.items)

    @property
    def share(self) -> float:
        """Of the judged answers those that are grounded, 0 to 1."""
        return self._share([[good for _, good, _ in verdicts] for _, _, verdicts in self.items])

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, by drawing conversations again: the answers of one conversation stand or fall together."""
        each = [[good for _, good, _ in verdicts] for _, _, verdicts in self.items]
        if not each:
            return 0.0, 1.0
        rng = random.Random(0)
        shares = sorted(self._share(rng.choices(each, k=len(each))) for _ in range(_RESAMPLES))
        return shares[int(0.025 * _RESAMPLES)], shares[int(0.975 * _RESAMPLES) - 1]

    @staticmethod
    def _share(each: list[list[bool]]) -> float:
        scored = sum(map(len, each))
        return sum(map(sum, each)) / scored if scored else 0.0

    def worst(self, count: int) -> Iterator[tuple[Pair, Conversation, list[tuple[int, str]]]]:
        """Conversations with an answer that is not grounded, those with most of them first."""
        found = [item for item in self.items if not all(good for _, good, _ in item[2])]
        found.sort(key=lambda item: (sum(good for _, good, _ in item[2]) / len(item[2]), item[0].key))
        for pair, conversation, verdicts in found[:count]:
            yield pair, conversation, [(n, f"{'' if good else 'not '}grounded. {why}") for n, good, why in verdicts]


class Judge:
    """The second model, known before any work begins."""

    def __init__(self, section: InstructSection) -> None:
        assert section.judge is not None
        self.endpoint: Endpoint = connect(
            section.judge,
            section.judge_model,
            "instruct.judge",
            JUDGE_KEY,
            section.timeout_seconds,
            not_taken(section.judge_model),
        )
        self._at_most = section.max_concurrency

    def call(self, pair: Pair, conversation: Conversation, mentions: bool) -> Call:
        table = tables.load(TABLE)
        texts = [message.text for message in conversation.messages]
        turns = [
            {"turn": number, "question": question, "answer": said}
            for number, (question, said) in enumerate(zip(texts[::2], texts[1::2], strict=True), 1)
        ]
        given = {"label": pair.label, "caption": pair.caption}
        if mentions:
            given["mentions"] = [mention.sentence for mention in pair.mentions]  # type: ignore[assignment]
        body = {
            "model": self.endpoint.model,
            "messages": [
                {"role": "system", "content": table["system"]},
                {"role": "user", "content": json.dumps({"source": given, "turns": turns}, ensure_ascii=False)},
            ],
            "temperature": 0.0,
            "max_tokens": table["max_tokens"],
            "seed": 0,
            "response_format": answer.response_format(Verdicts),
        }
        return Call(pair.key, self.endpoint.where, body)

    def judge(self, sample: Sample, mentions: bool, folder: Path) -> Judged:
        """Ask about every conversation of the sample that `folder`/judge.jsonl does not hold."""
        calls = {pair.key: self.call(pair, conversation, mentions) for _, pair, conversation in sample.drawn}
        with ExitStack() as open_files:
            journal = open_files.enter_context(Journal(folder / NAME))
            bill = Bill(journal, price_of(self.endpoint.model))
            stopped: dict[str, Any] = {}
            try:
                ask(
                    calls.values,
                    self.endpoint,
                    journal,
                    lambda text: read(text) is not None,
                    bill=bill,
                    at_most=self._at_most,
                    total=len(calls),
                    title="asking the judge",
                )
            except InputError as error:  # the teacher's work is done: a judge that is down does not take it away
                print(f"{folder}: the judge did not end its work, run it again: {error}", file=sys.stderr)
                stopped = {"stopped": str(error)}
            judged = Judged(self.endpoint.model, [], 0, bill.summary() | stopped)
            for _, pair, conversation in sample.drawn:
                text = known_answer(calls[pair.key], journal, lambda text: read(text) is not None).text
                verdicts = self._of(conversation, text)
                if verdicts:
                    judged.items.append((pair, conversation, verdicts))
                else:
                    judged.unjudged += 1
        return judged

    @staticmethod
    def _of(conversation: Conversation, text: str | None) -> list[tuple[int, bool, str]]:
        """The verdicts on turns that the conversation has, each turn's first."""
        found = read(text) if text is not None else None
        by_turn: dict[int, Verdict] = {}
        for verdict in found.verdicts if found else ():
            if 1 <= verdict.turn <= len(conversation.messages) // 2:
                by_turn.setdefault(verdict.turn, verdict)
        return [(turn, verdict.grounded, verdict.why) for turn, verdict in sorted(by_turn.items())]


def read(text: str) -> Verdicts | None:
    """The verdicts in a judge's reply; None if there are none."""
    for value in answer.json_values(text):
        try:
            found = Verdicts.model_validate(value)
        except ValidationError:
            continue
        return found if found.verdicts else None
    return None
