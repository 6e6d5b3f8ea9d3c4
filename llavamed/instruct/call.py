"""One question to a model, and what the journal knows of its answer.

A question is known by the hash of everything that decides its answer. One whose answer came in another form than asked
for is put again with another seed and some temperature, twice at most: its variants, each a question of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from llavamed.instruct.answer import json_values
from llavamed.instruct.endpoint import LENGTH, estimate
from llavamed.instruct.journal import Journal
from llavamed.manifest import fingerprint

VARIANTS = 3  # times that one question is put in all, as long as the answer is not in the form asked for
_VARIANT_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Call:
    """A question to a model: the body of a chat completion, about the pair `key`. Images stand in the body by their
    hash; `fill` puts them in when it is sent."""

    key: str
    where: str  # the endpoint's public URL
    body: dict[str, Any]
    fill: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    @cached_property
    def id(self) -> str:
        """Everything that decides the answer, as a hash; `max_tokens` only decides where it is cut."""
        return fingerprint({"url": self.where, **{k: v for k, v in self.body.items() if k != "max_tokens"}})

    @property
    def max_tokens(self) -> int:
        """The longest answer; 0 if that is left to the endpoint."""
        return int(self.body.get("max_tokens", 0))

    def variant(self, number: int) -> Call:
        """The same question put so that another answer may come; number 0 is this one."""
        if number == 0:
            return self
        body = {**self.body, "seed": self.body.get("seed", 0) + number, "temperature": _VARIANT_TEMPERATURE}
        return Call(self.key, self.where, body, self.fill)

    @cached_property
    def tokens(self) -> int:
        """About how many tokens the question has."""
        return estimate(str(self.body["messages"]))

    @property
    def sent(self) -> dict[str, Any]:
        """The body with its images. Raises InputError if one cannot be read."""
        return self.fill(self.body) if self.fill else self.body


class Known(NamedTuple):
    """What the journal knows of a call."""

    text: str | None  # the answer in the right form
    ask: int | None  # the variant to ask next; None if there is an answer, or no use in asking
    cut: bool = False  # the answer that is there was cut at max_tokens, of now or of then


def known_answer(call: Call, journal: Journal, right: Callable[[str], bool]) -> Known:
    for number in range(VARIANTS):
        row = journal.row(call.variant(number).id)
        if row is None:
            return Known(None, number)
        text = closed(row["answer"], row.get("finish", ""))
        if right(text):
            return Known(text, None)
        if row.get("finish") == LENGTH:
            more = call.max_tokens > row.get("max_tokens", 0)
            return Known(None, number if more else None, cut=True)
    return Known(None, None)


def closed(text: str, finish: str) -> str:
    """What of an answer is whole: of one that was cut its JSON, where that was closed; half a conversation in prose
    looks like a whole one."""
    return text if finish != LENGTH else "\n".join(json.dumps(value) for value in json_values(text))
