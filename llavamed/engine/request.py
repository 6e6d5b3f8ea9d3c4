"""What is asked of a model, what answers, and what is said when there is no answer: the nouns of this floor.

An engine is anything with `generate` (a batch, each answer whole) and `stream` (one answer, piece by
piece). `local.LocalEngine` runs a folder's model in this process; `remote.RemoteEngine` asks an
OpenAI-compatible endpoint. `connect` picks one by how the model is written. Both have more, which is used where it
is there: `each(requests, batch_size)` takes any number of requests and gives (place, answer or error) as they end;
`LocalEngine.count_tokens(request)` is the length of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL.Image import Image

from llavamed.errors import InputError
from llavamed.printing import public_name as public_name  # what an engine is called goes through it
from llavamed.records import Message


@dataclass(frozen=True)
class Request:
    """One conversation to go on with. `images` are RGB, one for each image part of `messages`, in their order."""

    messages: tuple[Message, ...]
    images: tuple[Image, ...] = ()
    max_new_tokens: int = 256
    temperature: float = 0.0  # 0: the most likely token each time
    top_p: float = 1.0  # sample among the most likely tokens of this probability together
    seed: int | None = None  # of the sampling; None: a new one each time
    stop: tuple[str, ...] = ()  # the answer ends before the first of these
    choices: tuple[str, ...] = ()  # the answer is the likeliest of these, each of one token; local models alone

    def __post_init__(self) -> None:
        parts = sum(message.num_images for message in self.messages)
        if parts != len(self.images):
            raise InputError(f"{len(self.images)} images for {parts} image parts; give each image one part")
        if not self.messages or self.messages[-1].role != "user":
            raise InputError("the last message must be the user's; there is nothing to answer")
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"max_new_tokens={self.max_new_tokens}, temperature={self.temperature}, top_p={self.top_p}: "
                "these must be at least 1, at least 0, and in (0, 1]"
            )


class Unanswered(RuntimeError):
    """No answer to a request. Where it was one of a batch, `answers` is the batch's outcome, in order: the text of
    each request, or the reason why it has none."""

    def __init__(self, reason: str, answers: Sequence[str | Unanswered] = ()) -> None:
        super().__init__(reason)
        self.answers = tuple(answers)


class Engine(Protocol):
    """`generate` and `stream` may raise Unanswered. Closing the iterator of `stream` ends that answer; `close` gives
    back what the engine holds."""

    @property
    def name(self) -> str: ...

    def generate(self, requests: Sequence[Request]) -> list[str]: ...

    def stream(self, request: Request) -> Iterator[str]: ...

    def close(self) -> None: ...
