"""Progress with rate and time left, on standard error, for anything over two seconds.

    for article in track(articles, "reading articles", total=len(articles)): ...

On a terminal it is one live line; in a log file it is a line every few seconds, so that a batch
job's output can be read while it runs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")

_LOG_EVERY_SECONDS = 5.0
SPEAKS = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, one speaks for all


def clock(seconds: float) -> str:
    """90.0 -> "1:30"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Counts `advance`d units of work; `note` is appended to the line (a loss, a temperature...)."""

    def __init__(self, title: str, total: int | None = None, unit: str = "it", start: int = 0) -> None:
        self.title, self.total, self.unit, self.count, self.note = title, total, unit, start, ""
        self._start_count, self._began = start, time.monotonic()
        self._live = sys.stderr.isatty()
        self._shown = self._began

    def advance(self, by: int = 1, note: str = "") -> None:
        self.count += by
        self.note = note or self.note
        now = time.monotonic()
        if now - self._shown >= (0.1 if self._live else _LOG_EVERY_SECONDS):
            self._shown = now
            self._write(self.line())

    def line(self) -> str:
        elapsed = max(time.monotonic() - self._began, 1e-9)
        rate = (self.count - self._start_count) / elapsed
        text = f"{self.title}: {self.count:,}"
        if self.total is not None:
            text += f"/{self.total:,} ({100 * self.count / max(self.total, 1):.0f}%)"
        text += f", {rate:,.1f} {self.unit}/s"
        if self.total is not None and rate > 0 and self.count < self.total:
            text += f", {clock((self.total - self.count) / rate)} left"
        return text + (f", {self.note}" if self.note else "")

    def close(self) -> None:
        elapsed = time.monotonic() - self._began
        if elapsed >= 2 or self._live:
            self._write(f"{self.line()}, took {clock(elapsed)}", last=True)

    def _write(self, text: str, last: bool = False) -> None:
        if not SPEAKS:
            return
        sys.stderr.write(f"\r\x1b[2K{text}" + ("\n" if last else "") if self._live else text + "\n")
        sys.stderr.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def track(items: Iterable[T], title: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yield `items`, showing progress. `total` is taken from `len` where there is one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(title, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()
