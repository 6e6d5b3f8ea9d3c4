"""An engine that says what the test wants, and a real server around it on the loopback address."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from PIL import Image

from llavamed.engine.request import Request
from llavamed.errors import InputError

WORDS = ("The ", "lungs ", "are ", "clear, ", "größer ", "als ", "1 < 2.")


class FakeEngine:
    """Says WORDS; a question holding "slow" is answered one word a tenth of a second without end, "wrong" is an
    InputError, "broken" raises in the middle. Keeps the requests it got."""

    name = "fake-model"

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.closed = threading.Event()  # an answer was stopped before its end
        self.started = threading.Event()

    def generate(self, requests: Sequence[Request]) -> list[str]:
        return ["".join(self.stream(request)) for request in requests]

    def count_tokens(self, request: Request) -> int:
        return sum(len(message.text.split()) + 4 * message.num_images for message in request.messages)

    def close(self) -> None:
        """Nothing to give back."""

    def stream(self, request: Request) -> Iterator[str]:
        self.requests.append(request)
        self.started.set()
        asked = request.messages[-1].text
        if "wrong" in asked:
            raise InputError("the question is too long; shorten it")
        try:
            while "slow" in asked:
                yield "slowly "
                time.sleep(0.1)
            if "broken" in asked:
                yield "half "
                raise ZeroDivisionError("secret detail of the prompt")
            yield from WORDS[: request.max_new_tokens]
        except GeneratorExit:
            self.closed.set()
            raise


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of a live server for `app`."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def png(width: int = 24, height: int = 16, colour: str = "navy") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
