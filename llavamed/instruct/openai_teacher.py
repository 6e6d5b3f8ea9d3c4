"""A language model as teacher: any endpoint that speaks OpenAI's chat completions.

As in LLaVA-Med the teacher is blind: it reads caption and mentions and writes as if it saw the image.
The prompt is data (`prompts/conversation.yaml`) and its hash goes into every record. The answer is asked
for as JSON with a schema and then validated, never split on speaker marks. One bad answer concerns one
record: it is raised as `TeacherFailed`, which the caller counts, and its neighbours do not notice. A good
one is written to the journal and never asked for again.
"""

from __future__ import annotations

import json
import os
import random
import re
from typing import Any
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, ConfigDict, ValidationError

from llavamed.errors import InputError
from llavamed.instruct import tables
from llavamed.instruct.journal import Journal
from llavamed.records import Message, Pair, assistant, user

KEY_VARIABLE = "LLAVAMED_TEACHER_KEY"  # for whatever endpoint the recipe names
OPENAI_KEY_VARIABLE = "OPENAI_API_KEY"  # for OpenAI alone: a key is not shown to another host than the one it is for
_OPENAI_HOST = "api.openai.com"
_PROMPT = "prompts/conversation.yaml"


class TeacherFailed(RuntimeError):
    """The teacher gave nothing usable for one record."""


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    question: str
    answer: str


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    turns: list[_Turn]


class OpenAITeacher:
    """Asks `model` at `base_url`. The key is that of KEY_VARIABLE, or at OpenAI itself that of OPENAI_KEY_VARIABLE, and
    is never shown; local servers need none. Busy or silent endpoints are tried again by the client, `max_retries`
    times. With a `journal` an answer that stands there is not asked for."""

    def __init__(self, base_url: str, model: str, timeout_seconds: float = 120.0, max_retries: int = 4) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise InputError(
                f'instruct.teacher {base_url!r}: give "template" or a URL such as http://localhost:8000/v1'
            )
        if not model:
            raise InputError(f"instruct.teacher {base_url}: set instruct.teacher_model to the name of its model")
        self.name = model
        self.prompt_hash = tables.sha(_PROMPT)
        self._url = base_url
        self.journal: Journal | None = None
        self._key = os.environ.get(KEY_VARIABLE) or (
            os.environ.get(OPENAI_KEY_VARIABLE) if _is_openai(base_url) else ""
        )
        self._client = openai.OpenAI(  # the client insists on some key
            base_url=base_url, api_key=self._key or "none", timeout=timeout_seconds, max_retries=max_retries
        )

    def converse(self, pair: Pair, mentions: bool, turns: int, rng: random.Random) -> tuple[Message, ...]:
        """At most `turns` questions with their answers, the first with the image; () if the teacher found nothing
        to ask. Raises TeacherFailed for this record, InputError for what would fail every record."""
        body: dict[str, Any] = {
            "model": self.name,
            "messages": prompt(pair, mentions, turns),
            "temperature": tables.load(_PROMPT)["temperature"],
            "seed": rng.getrandbits(31),
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "conversation", "strict": True, "schema": _Answer.model_json_schema()},
            },
        }
        request = {"url": self._url, **body}
        known = self.journal.answer(request) if self.journal is not None else None
        text = self._ask(body) if known is None else known
        try:
            answer = _Answer.model_validate_json(_unfenced(text))
        except ValidationError as error:
            raise TeacherFailed(f"not the JSON asked for ({error.error_count()} problems): {text[:80]!r}") from None
        if self.journal is not None and known is None:
            self.journal.keep(request, pair.key, text)
        messages: list[Message] = []
        for number, turn in enumerate(answer.turns[:turns]):
            messages += [user(turn.question.strip(), images=int(number == 0)), assistant(turn.answer.strip())]
        return tuple(messages)

    def _ask(self, body: dict[str, Any]) -> str:
        try:
            completion = self._client.chat.completions.create(**body)
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            variables = f"{KEY_VARIABLE} or {OPENAI_KEY_VARIABLE}" if _is_openai(self._url) else KEY_VARIABLE
            raise InputError(f"{self._url}: the key was refused; set {variables} to one that is valid") from None
        except openai.NotFoundError:
            raise InputError(
                f"{self._url}: no model {self.name!r} there (404); mend instruct.teacher or instruct.teacher_model"
            ) from None
        except openai.OpenAIError as error:
            raise TeacherFailed(self._without_key(error)) from None
        return (completion.choices[0].message.content or "") if completion.choices else ""

    def _without_key(self, error: Exception) -> str:
        text = " ".join(str(error).split())
        return (text.replace(self._key, "[key]") if self._key else text)[:300] or type(error).__name__


def _is_openai(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" and parts.hostname == _OPENAI_HOST


def prompt(pair: Pair, mentions: bool, turns: int) -> list[dict[str, str]]:
    """The chat messages for one pair: instructions, worked examples, then what the article says."""
    table = tables.load(_PROMPT)
    messages = [{"role": "system", "content": table["system"].format(turns=turns)}]
    for example in table["examples"]:
        messages.append({"role": "user", "content": _json(example["given"])})
        messages.append({"role": "assistant", "content": _json({"turns": example["turns"]})})
    said = [m.sentence for m in pair.mentions] if mentions else []
    messages.append(
        {"role": "user", "content": _json({"label": pair.label, "caption": pair.caption, "mentions": said})}
    )
    return messages


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _unfenced(text: str) -> str:
    """Servers that ignore the schema often wrap JSON in a Markdown fence."""
    match = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    return match[1] if match else text
