"""What a judge is asked, and what its reply says: pure functions, no network.

A *protocol* (`judge_protocols.yaml`) is a prompt, the orders in which the two answers are shown, and a form of reply:

*two_numbers*: "8 7" on the first line, as LLaVA-Med asks for. The original splits that line at spaces and
crashes on "8, 7" or "Assistant 1: 8, Assistant 2: 7"; here both are read, and nothing is guessed:
a first line with other numbers, or numbers outside 1-10, is no verdict.

*rubric*: one JSON object of a fixed schema with grades for both answers and a preference. A Markdown fence around it is
taken off; anything else that is not this object is no verdict.

What is no verdict is an `Unreadable` with the reason. It is asked again by the caller, then counted, never filled in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from llavamed.engine import Request
from llavamed.errors import InputError
from llavamed.evaluate.chat_questions import ChatQuestion
from llavamed.manifest import fingerprint
from llavamed.records import Message, user

Order = Literal["reference_first", "candidate_first"]
_TABLE = "judge_protocols.yaml"
_FIELD = re.compile(r"\{(label|caption|context|question|first|second)\}")
_NUMBER = r"(\d+(?:\.\d+)?)(?:\s*/\s*10)?"
_PAIR = re.compile(rf"\W*{_NUMBER}(?:\s*[,;|&]\s*|\s+and\s+|\s+){_NUMBER}\W*", re.IGNORECASE)
_NAMED = re.compile(
    rf"\W*assistant\s*1\W+(?:score\W+)?{_NUMBER}\W+assistant\s*2\W+(?:score\W+)?{_NUMBER}\W*",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)  # local models put it before their answer
_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)


class Unreadable(ValueError):
    """The reply is not of the form asked for."""


@dataclass(frozen=True)
class Verdict:
    """The judge's grades, 1-10. `better` is None where the protocol does not ask for it."""

    reference: float
    candidate: float
    better: Literal["reference", "candidate", "tie"] | None = None
    reason: str = ""


Grade = Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


class _Grades(BaseModel):
    model_config = ConfigDict(extra="forbid")
    accuracy: Grade
    relevance: Grade
    helpfulness: Grade
    detail: Grade
    overall: Grade


class _Rubric(BaseModel):
    model_config = ConfigDict(extra="forbid")
    reason: str  # first: a model that must explain before it grades has thought
    A: _Grades
    B: _Grades
    better: Literal["A", "B", "tie"]


@dataclass(frozen=True)
class Protocol:
    """One entry of the table."""

    name: str
    about: str
    orders: tuple[Order, ...]
    reply: Literal["two_numbers", "rubric"]
    mentions: Literal["as_python", "as_sentences"]
    keeps_image_mark: bool
    temperature: float
    max_new_tokens: int
    system: str
    user: str

    @property
    def hash(self) -> str:
        """Changes when anything changes that the judge is sent."""
        about = {"name", "about"}
        entry = {key: value for key, value in vars(self).items() if key not in about}
        return fingerprint([entry, self.response_format])

    @property
    def response_format(self) -> dict[str, Any] | None:
        """What the endpoint is told of the reply's form; None for plain text."""
        if self.reply == "two_numbers":
            return None
        schema = {"name": "verdict", "strict": True, "schema": _Rubric.model_json_schema()}
        return {"type": "json_schema", "json_schema": schema}

    def request(self, question: ChatQuestion, answer: str, order: Order, attempt: int = 0) -> Request:
        """What the judge is asked about `answer`. A further attempt differs in its seed: the same request would often
        get the same reply."""
        shown = (question.reference, answer) if order == "reference_first" else (answer, question.reference)
        filled = {
            "label": question.label,
            "caption": question.caption,
            "context": str(question.mentions) if self.mentions == "as_python" else question.mentions_as_sentences,
            "question": question.text if self.keeps_image_mark else question.question,
            "first": shown[0],
            "second": shown[1],
        }
        text = _FIELD.sub(lambda match: filled[match[1]], self.user)  # one pass: an answer may hold "{first}"
        messages = (Message("system", ({"type": "text", "text": self.system},)), user(text))
        return Request(messages, max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=attempt or None)

    def read(self, reply: str, order: Order) -> Verdict:
        """The verdict in a reply. Raises Unreadable."""
        text = _THOUGHT.sub("", reply, count=1).strip()
        verdict = _two_numbers(text) if self.reply == "two_numbers" else _rubric(text)
        if order == "reference_first":
            return verdict
        turned = {"reference": "candidate", "candidate": "reference", "tie": "tie"}
        better: Any = verdict.better and turned[verdict.better]
        return Verdict(verdict.candidate, verdict.reference, better, verdict.reason)


@cache
def protocols() -> Mapping[str, Protocol]:
    text = (resources.files("llavamed.evaluate") / _TABLE).read_text(encoding="utf-8")
    return {
        name: Protocol(name=name, **{**entry, "orders": tuple(entry["orders"])})
        for name, entry in yaml.safe_load(text).items()
    }


def protocol(name: str) -> Protocol:
    """Raises InputError for a name that is not in the table."""
    if name not in protocols():
        raise InputError(f"protocol {name!r}: unknown; give one of {', '.join(protocols())}")
    return protocols()[name]


def _two_numbers(text: str) -> Verdict:
    first, _, rest = text.partition("\n")
    match = _PAIR.fullmatch(first) or _NAMED.fullmatch(first)
    if match is None:
        raise Unreadable(f"the first line is not two numbers: {first[:80]!r}")
    grades = float(match[1]), float(match[2])
    if not all(1 <= grade <= 10 for grade in grades):
        raise Unreadable(f"a grade outside 1-10: {first[:80]!r}")
    return Verdict(*grades, reason=rest.strip())


def _rubric(text: str) -> Verdict:
    fenced = _FENCE.fullmatch(text)
    try:
        found = _Rubric.model_validate_json(fenced[1] if fenced else text)
    except ValidationError as error:
        raise Unreadable(f"not the JSON asked for ({error.error_count()} problems): {text[:80]!r}") from None
    names: dict[str, Any] = {"A": "reference", "B": "candidate", "tie": "tie"}
    return Verdict(found.A.overall, found.B.overall, names[found.better], found.reason)
