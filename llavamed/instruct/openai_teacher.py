"""A language model as teacher: any endpoint that speaks OpenAI's chat completions.

Blind, as in LLaVA-Med, it reads caption and mentions and writes as if it saw the image; sighted, as in PubMedVision, it
gets the image too. Asking and writing are two steps. `call` says what is asked about a pair; `ask.ask` asks it and
keeps the answer in the journal. `converse` then reads the journal, and asks nobody: what it writes depends on the
answers alone, and not on when or in which order they came, or whether a batch file brought them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from llavamed.engine.request import public_name
from llavamed.errors import InputError
from llavamed.instruct import answer, prompts, sight
from llavamed.instruct.ask import FAILED, OVER_COST, Outcome
from llavamed.instruct.call import Call, known_answer
from llavamed.instruct.endpoint import TEACHER_KEY, Endpoint, connect
from llavamed.instruct.journal import Journal
from llavamed.instruct.prices import not_taken
from llavamed.recipe import InstructSection
from llavamed.records import Message, Pair, assistant, user

URL_VARIABLE, MODEL_VARIABLE = "LLAVAMED_TEACHER_URL", "LLAVAMED_TEACHER_MODEL"  # of --teacher env
FROM_ENVIRONMENT = "env"


class TeacherFailed(RuntimeError):
    """There is no answer about one record; `kind` is why, a word for the funnel."""

    def __init__(self, kind: str, why: str = "") -> None:
        super().__init__(why or kind)
        self.kind = kind


class OpenAITeacher:
    """`image` gives the bytes of a pair's image; only a sighted teacher asks for them."""

    by_rule = False

    def __init__(self, section: InstructSection, image: Callable[[str], bytes]) -> None:
        url, model = resolve(section)
        without = section.without or not_taken(model)
        self.endpoint: Endpoint = connect(url, model, "instruct.teacher", TEACHER_KEY, section.timeout_seconds, without)
        self.prompt = prompts.load(section.prompt or ("60k-im" if section.mentions else "60k"))
        if section.prompt and section.mentions and not self.prompt.mentions:
            raise InputError(f"prompt {section.prompt}: has no words for mentions; add --without-mentions")
        self.name, self.prompt_hash, self.where = model, self.prompt.hash, self.endpoint.where
        self.closed = self.prompt.style == "closed"
        self._sighted, self._image = section.sighted, image
        self.journal: Journal | None = None
        self.outcome = Outcome()

    def call(self, pair: Pair, mentions: bool, turns: int, rng: random.Random) -> Call:
        """What is asked about the pair."""
        messages = self.prompt.messages(pair, mentions, turns, self._sighted)
        fill = None
        if self._sighted:
            known = pair.sha256 or self._sha256(pair.key)
            text = {"type": "text", "text": messages[-1]["content"]}
            messages[-1] = {"role": "user", "content": [sight.placeholder(known), text]}
            fill = partial(self._fill, pair.key)
        body = {
            "model": self.name,
            "messages": messages,
            "temperature": self.prompt.temperature,
            "max_tokens": self.prompt.max_tokens,
            "seed": rng.getrandbits(31),
            "response_format": answer.response_format(),
        }
        return Call(pair.key, self.where, body, fill)

    def right(self, text: str) -> bool:
        """Whether the text holds a conversation."""
        return answer.read(text) is not None

    def converse(self, pair: Pair, mentions: bool, turns: int, rng: random.Random) -> tuple[Message, ...]:
        """At most `turns` questions with their answers, the first with the image; () if the teacher found nothing
        to ask. Raises TeacherFailed if the journal holds no answer."""
        assert self.journal is not None
        text = known_answer(self.call(pair, mentions, turns, rng), self.journal, self.right).text
        if text is None:
            not_asked = (OVER_COST if self.outcome.over_cost else FAILED, "")
            raise TeacherFailed(*self.outcome.failed.get(pair.key, not_asked))
        told = answer.read(text)
        assert told is not None
        messages: list[Message] = []
        for number, turn in enumerate(told.turns[: self.prompt.turns or turns]):
            messages += [user(turn.question.strip(), images=int(number == 0)), assistant(turn.answer.strip())]
        return tuple(messages)

    def _sha256(self, key: str) -> str:
        """Of the image's bytes. Where there are none the record alone is lost, and when it is sent: `_fill` raises."""
        try:
            return sight.sha256(self._image(key))
        except InputError:
            return ""

    def _fill(self, key: str, body: dict[str, object]) -> dict[str, object]:
        return sight.filled(body, self._image(key), key)


def resolve(section: InstructSection) -> tuple[str, str]:
    """The teacher's URL and model; `env` takes them from the environment."""
    if section.teacher != FROM_ENVIRONMENT:
        if not section.teacher.startswith(("http://", "https://")):
            raise InputError(
                f'instruct.teacher {public_name(section.teacher)!r}: give "template", "env", or a URL such as '
                "http://localhost:8000/v1"
            )
        return section.teacher, section.teacher_model
    url = os.environ.get(URL_VARIABLE, "")
    if not url:
        raise InputError(f"instruct.teacher env: set {URL_VARIABLE} to the base URL of an OpenAI-compatible endpoint")
    return url, section.teacher_model or os.environ.get(MODEL_VARIABLE, "")


def calls(
    teacher: OpenAITeacher, pairs: Iterable[Pair], section: InstructSection, rng: Callable[[str], random.Random]
) -> Iterator[Call]:
    """What is asked about each of the pairs."""
    for pair in pairs:
        yield teacher.call(pair, section.mentions, section.turns, rng(pair.key))
