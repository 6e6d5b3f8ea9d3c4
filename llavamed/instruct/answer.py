"""What a teacher is asked to write, and how it is read from what it wrote.

`Answer` is the one model for both ways: its JSON schema goes to endpoints that can hold a language model to it, and
what the others send is searched for the same thing: JSON inside prose or a Markdown fence, after a model's thoughts,
or a conversation with speaker marks ("User: ... Assistant: ...", "Q1: ... A1: ..."). All of it ends in `Answer`, or
in no answer at all: half of a conversation is never taken for the whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    turns: list[Turn]


_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.S | re.I)  # to the end, if cut off in thought
_END_OF_THOUGHTS = re.compile(r"</think(?:ing)?>", re.I)
# no two neighbours of this pattern can match the same character: it takes time in proportion to the text
_MARK = re.compile(
    r"^[ \t>*#_-]*(?P<who>user|human|person|question|q|assistant|answer|a|gpt|ai)"
    r"(?:[ \t]*turn)?(?:[ \t]*\d+)?[ \t*_]*[:.)][ \t]*[*_]*",
    re.M | re.I,
)
_RULED = frozenset(" \t\r-*_#>")  # of lines that only part two turns
_ASKS = ("user", "human", "person", "question", "q")


@cache
def response_format(model: type[BaseModel] = Answer) -> dict[str, Any]:
    """The parameter that holds a language model to `model`. Treat it as read-only."""
    schema = {"name": model.__name__.lower(), "strict": True, "schema": _strict(model.model_json_schema())}
    return {"type": "json_schema", "json_schema": schema}


def read(text: str) -> Answer | None:
    """The conversation in `text`, or None if there is none in it."""
    for found in (*map(_turns, json_values(text)), _marked(_without_thoughts(text))):
        if found is not None:
            try:
                return Answer.model_validate(found)
            except ValidationError:
                continue
    return None


def json_values(text: str) -> Iterator[Any]:
    """The JSON objects and arrays in a reply, outermost first, from left to right."""
    text = _without_thoughts(text)
    decoder = json.JSONDecoder(strict=False)  # a line break inside a string is a common slip
    place = 0
    while (match := re.compile(r"[{\[]").search(text, place)) is not None:
        try:
            value, place = decoder.raw_decode(text, match.start())
        except json.JSONDecodeError:
            place = match.end()
            continue
        except RecursionError:  # a model that repeats a bracket
            return
        yield value


def _without_thoughts(text: str) -> str:
    """The reply after its thoughts. Their beginning may be the template's, and so not in the reply."""
    return _END_OF_THOUGHTS.split(_THOUGHTS.sub("", text))[-1].strip()


def _turns(value: Any) -> Any:
    """What of a JSON value could be an answer. What else a model wrote beside question and answer is passed over."""
    turns = value.get("turns") if isinstance(value, dict) else value
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return None
    if turns is value and not (turns and all("question" in turn for turn in turns)):
        return None
    return {"turns": [{key: turn[key] for key in Turn.model_fields if key in turn} for turn in turns]}


def _marked(text: str) -> dict[str, Any] | None:
    """Turns by speaker marks at the beginning of lines; None unless they alternate and all are whole."""
    marks = list(_MARK.finditer(text))
    if not marks or len(marks) % 2:
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    said = [
        (mark["who"].lower() in _ASKS, _trimmed(text[mark.end() : end])) for mark, end in zip(marks, ends, strict=True)
    ]
    if [asks for asks, _ in said] != [True, False] * (len(said) // 2):
        return None
    return {"turns": [{"question": q, "answer": a} for (_, q), (_, a) in zip(said[::2], said[1::2], strict=True)]}


def _trimmed(said: str) -> str:
    lines = said.split("\n")
    while lines and _RULED.issuperset(lines[-1]):
        lines.pop()
    return "\n".join(lines).strip(" \r\n\t*_")


def _strict(schema: Any) -> Any:
    """The schema without what strict modes refuse: titles and lengths."""
    if isinstance(schema, dict):
        return {key: _strict(value) for key, value in schema.items() if key not in ("title", "minLength")}
    return [_strict(value) for value in schema] if isinstance(schema, list) else schema
