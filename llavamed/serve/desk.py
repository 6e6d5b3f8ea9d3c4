"""The desk: one question answered at a time, a short line before it, and a clear word when the line is full.

In go requests from the API and from the chat page; out come the pieces of each answer, as they are made.

The hard thing is that a model generates in a blocking loop while a web server must never block. So one thread owns
the engine and works through the line; each asker holds a `Job` and awaits its pieces on its own event loop. Who walks
away (closes the connection, presses stop) cancels the job: a waiting one leaves the line at once, a running one ends
before its next piece, because closing the engine's iterator is how an answer is stopped. What a model raises goes to
the one who asked, and the next in line is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass

from llavamed.engine.request import Engine, Request
from llavamed.errors import InputError
from llavamed.records import user

log = logging.getLogger(__name__)

MAX_WAITING = 16  # questions in line behind the one that is being answered
_FIRST_GUESS_SECONDS = 5.0  # how long an answer takes, until some were timed


class Busy(Exception):
    """The line is full; `retry_after` is a guess, in seconds, of when it is worth coming back."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} questions are waiting already; try again in about {retry_after} s")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt, image tokens included, and of the answer's text, tokenised again."""

    prompt: int
    answer: int


class Job:
    """One question in the line. `async for piece in job` gives the answer; made inside the asker's event loop."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self.usage: Usage | None = None  # once the answer is whole, if the engine can count
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | Exception | None] = asyncio.Queue()

    def put(self, item: str | Exception | None) -> None:
        """From the desk's thread: a piece, the error that ended the answer, or None for its end."""
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, item)
        except RuntimeError:  # the asker's event loop is closed: nobody reads this any more
            self.cancelled.set()

    def __aiter__(self) -> Job:
        return self

    async def __anext__(self) -> str:
        item = await self._pieces.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item


class Desk:
    """The engine, its thread and the line before it. `close` once at the end."""

    def __init__(self, engine: Engine, max_waiting: int = MAX_WAITING) -> None:
        self.engine = engine
        self._max_waiting = max_waiting
        self._line: deque[Job] = deque()
        self._current: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._answer_seconds = _FIRST_GUESS_SECONDS
        self._thread = threading.Thread(target=self._work, name="llavamed-desk", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """True while the thread lives and there is room in the line."""
        return self._thread.is_alive() and not self._closed and not self._is_full

    @property
    def is_busy(self) -> bool:
        return self._current is not None or bool(self._line)

    @property
    def _is_full(self) -> bool:
        return self._current is not None and len(self._line) >= self._max_waiting

    def check_room(self) -> None:
        """Raise Busy if the line is full: worth asking before the costly reading of a question's images."""
        if self._is_full:
            waiting = len(self._line)
            raise Busy(waiting, max(1, round(self._answer_seconds * (waiting + 1))))

    def submit(self, request: Request) -> Job:
        """Put a question in the line. Raises Busy if that is full, RuntimeError if the desk is closed."""
        job = Job(request)
        with self._changed:
            if self._closed:
                raise RuntimeError("the server is shutting down")
            self.check_room()
            self._line.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Stop an answer, or take a waiting question out of the line. Does nothing to a finished one."""
        job.cancelled.set()
        with self._changed, contextlib.suppress(ValueError):
            self._line.remove(job)

    def close(self, patience_seconds: float = 5.0) -> None:
        """Cancel everything and let the thread end."""
        with self._changed:
            self._closed = True
            if self._current is not None:
                self._current.cancelled.set()
            for job in self._line:
                job.put(RuntimeError("the server is shutting down"))
            self._line.clear()
            self._changed.notify()
        self._thread.join(patience_seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._current = None
                while not self._line and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job = self._current = self._line.popleft()
            began = time.monotonic()
            try:
                self._answer(job)
            except InputError as error:
                job.put(error)
            except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to who asked, not to the desk
                _log_without_words(error)
                job.put(error)
            self._answer_seconds += 0.3 * (time.monotonic() - began - self._answer_seconds)

    def _answer(self, job: Job) -> None:
        pieces = self.engine.stream(job.request)
        text = ""
        try:
            for piece in pieces:
                if job.cancelled.is_set():
                    break
                if piece:
                    text += piece
                    job.put(piece)
        finally:
            if (close := getattr(pieces, "close", None)) is not None:  # a generator; a plain iterator has none
                close()
        # Counted here, in the engine's one thread: a tokenizer in use may not be used by another.
        if not job.cancelled.is_set() and (count := getattr(self.engine, "count_tokens", None)) is not None:
            empty, said = (count(Request((user(words),))) for words in ("", text))
            job.usage = Usage(count(job.request), said - empty)
        job.put(None)


def _log_without_words(error: Exception) -> None:
    """Log where an error came from and its type, not its message: that may quote a prompt, and those are private."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    log.error("the model failed: %s at %s", type(error).__name__, places)
