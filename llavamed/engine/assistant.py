"""The short way in: load a model, show it an image, ask.

    assistant = Assistant.load("runs/tiny")
    assistant.ask("scan.png", "What is shown?")

    talk = assistant.chat("scan.png")
    talk.say("What is shown?"); talk.say("On which side?")

An image is a path, the bytes of a file, or a PIL image; paths and bytes are decoded by
`imaging.decode`, which refuses what is damaged or too large.
"""

from __future__ import annotations

from pathlib import Path

from PIL.Image import Image

from llavamed.engine import connect
from llavamed.engine.request import Engine, Request
from llavamed.imaging.decode import decode, read
from llavamed.records import Message, assistant, user


class Assistant:
    """An engine that one can talk to."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def load(cls, model: str | Path) -> Assistant:
        """From a run, stage or model folder, or an endpoint URL."""
        return cls(connect(str(model)))

    def ask(self, image: str | Path | bytes | Image | None, question: str, max_new_tokens: int = 256) -> str:
        """One question, one answer. Raises InputError if the image cannot be read."""
        return self.chat(image).say(question, max_new_tokens)

    def chat(self, image: str | Path | bytes | Image | None = None) -> Chat:
        """A conversation about an image, or about none."""
        return Chat(self.engine, () if image is None else (_open(image),))


class Chat:
    """Turns so far in `messages`; the images stand in the first question."""

    def __init__(self, engine: Engine, images: tuple[Image, ...]) -> None:
        self._engine, self._images = engine, images
        self.messages: tuple[Message, ...] = ()

    def say(self, text: str, max_new_tokens: int = 256) -> str:
        """Ask on. A question that fails is not remembered."""
        question = user(text, images=0 if self.messages else len(self._images))
        asked = (*self.messages, question)
        answer = self._engine.generate([Request(asked, self._images, max_new_tokens)])[0]
        self.messages = (*asked, assistant(answer))
        return answer


def _open(image: str | Path | bytes | Image) -> Image:
    if isinstance(image, Image):
        return image.convert("RGB")
    return decode(image) if isinstance(image, bytes) else read(Path(image))
