"""Many requests to one endpoint: as many under way as it takes, each tried again where that helps.

In: items, a function that sends one and blocks until its reply, and a function that says what an error means.
Out: (place, reply or the error that remained) of every item, as they come.

Each attempt has a thread of its own, a daemon: an interrupted program does not wait for replies. All decisions
are taken by the thread that reads the outcomes, so there are no locks: it starts what `Pace` allows, waits for an end,
tells the pace, and goes on. An attempt that is to be repeated gives up its place and waits in a heap, not in a thread,
so that others go on meanwhile.
"""

from __future__ import annotations

import heapq
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from llavamed.engine.ahead import ahead
from llavamed.engine.pace import Pace, wait_seconds

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 16  # items made before they are sent
LONGEST_WAIT_SECONDS = 600.0  # who asks for more is not waited for


class Trouble(NamedTuple):
    """What an error means: the endpoint is busy; the request ran out of time; it got lost or failed there, and may
    succeed the next time; or it never will. `seconds`: how long the endpoint asks to wait."""

    kind: Literal["busy", "late", "lost", "final"]
    seconds: float | None = None


@dataclass(order=True)
class _Attempt:
    due: float
    place: int
    item: Any = field(compare=False)
    vain: int = field(default=0, compare=False)  # attempts so far
    answers: int = field(default=0, compare=False)  # that others had when this one was last refused
    outcome: Any = field(default=None, compare=False)


def dispatch(
    items: Iterable[T],
    send: Callable[[T], R],
    trouble: Callable[[Exception], Trouble],
    pace: Pace,
    retries: int,
    chance: random.Random | None = None,
) -> Iterator[tuple[int, R | Exception]]:
    """The outcome of every item. One that fails is tried again `retries` times; being refused does not count while
    others are answered. What `items` raises is raised once all that is under way has come back."""
    chance = chance or random.Random()
    fresh = ahead(enumerate(items), _AHEAD)
    ended: queue.SimpleQueue[_Attempt] = queue.SimpleQueue()
    again: list[_Attempt] = []  # a heap
    broken: Exception | None = None
    answers = 0

    def work(attempt: _Attempt) -> None:
        try:
            attempt.outcome = send(attempt.item)
        except Exception as error:  # noqa: BLE001 - `trouble` looks at it, in the reader's thread
            attempt.outcome = error
        ended.put(attempt)

    def take() -> _Attempt | None:
        nonlocal broken
        try:
            new = next(fresh, None)
        except Exception as error:  # noqa: BLE001 - raised at the end
            broken, new = error, None
        return None if new is None else _Attempt(0.0, *new)

    coming = take()
    while pace.under_way or again or coming is not None:
        now = time.monotonic()
        while pace.may_start(now):
            if again and again[0].due <= now:
                attempt = heapq.heappop(again)
            elif coming is not None:
                attempt, coming = coming, None
            else:
                break
            pace.started()
            threading.Thread(target=work, args=(attempt,), name="request", daemon=True).start()
            coming = coming or take()
        try:
            attempt = ended.get(timeout=_until_something_is_due(pace, again, now))
        except queue.Empty:
            continue
        now = time.monotonic()
        if not isinstance(attempt.outcome, Exception):
            answers += 1
            pace.answered()
            yield attempt.place, attempt.outcome
            continue
        kind, seconds = trouble(attempt.outcome)
        if kind == "busy":
            pace.refused(now, seconds)
            if answers > attempt.answers:
                attempt.vain, attempt.answers = 0, answers
        elif kind == "late":
            pace.ran_out_of_time()
        else:
            pace.failed()
        attempt.vain += 1
        if kind == "final" or attempt.vain > retries or (seconds or 0) > LONGEST_WAIT_SECONDS:
            yield attempt.place, attempt.outcome
        else:
            attempt.due = now + wait_seconds(attempt.vain, seconds, chance)
            heapq.heappush(again, attempt)
    if broken is not None:
        raise broken


def _until_something_is_due(pace: Pace, again: list[_Attempt], now: float) -> float | None:
    """Seconds until an attempt may be started although none ends; None: only an end can start one."""
    if now < pace.shut_until:
        return pace.shut_until - now
    if again and pace.may_start(now):
        return max(0.0, again[0].due - now)
    return None
