"""How many requests an endpoint is given at a time: as many as it takes, and hardly more.

Nobody says how many that are: a server that batches wants a hundred, one that does not wants one, a hosted one
counts tokens a minute. So `Pace` feels its way, much as TCP does (Jacobson 1988):

* It begins with a few and, as long as all are answered, lets one more under way for every answer, which doubles the
  number in the time of one answer, up to a ceiling.
* A refusal (status 429 or 503) says that those under way are all that the endpoint takes: that is the new limit. But it
  may be chance, for hosted endpoints refuse some at any load, and the limit grows on. Only when about a sixth of late
  were refused it grows by one with every twelfth answer, and no faster again: an endpoint with N places keeps N
  requests under way and refuses one in thirteen, and one that refuses fewer at random is asked no less.
* One that was refused alone says that there is nothing to be had: nothing is sent until the time is over that the
  endpoint asks for. Then it begins again.
* A request that ran out of time halves the limit, once for those that were sent together: the endpoint has put it at
  the end of too long a queue.

`wait_seconds` says how long to wait before a request is tried again; random parts keep many clients from coming back
together. Pure bookkeeping: no threads, no clock but the `now` it is given.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

CEILING = 128
START = 32  # few enough for any endpoint
GROWTH = 1 / 12  # an answer, once it was too often
_TOO_OFTEN = 0.15  # refused, of the last attempts
_LAST = 32
LONGEST_WAIT_SECONDS = 60.0  # of our own accord; an endpoint may ask for more
_SHUT_SECONDS = 1.0  # after a refusal that names no time


class Pace:
    """`under_way` requests of at most `limit`; `may_start` and `started` before each, one of the four as it ends."""

    def __init__(self, ceiling: int = CEILING, start: float = START) -> None:
        self.ceiling = ceiling
        self.limit = float(min(start, ceiling))
        self.under_way = 0
        self.shut_until = 0.0
        self._growth = 1.0  # an answer
        self._refused = 0.0  # share of the last attempts
        self._sent_before = 0  # of those under way, the limit was halved

    def may_start(self, now: float) -> bool:
        return self.under_way < int(self.limit) and now >= self.shut_until

    def started(self) -> None:
        self.under_way += 1

    def answered(self) -> None:
        if self.under_way >= int(self.limit):
            self.limit = min(self.ceiling, self.limit + self._growth)
        self._ended()

    def refused(self, now: float, seconds: float | None) -> None:
        self._ended(refused=True)
        self.limit = max(1.0, min(self.limit, self.under_way + self.limit % 1))
        if self._refused > _TOO_OFTEN:
            self._growth = GROWTH
        if not self.under_way:
            self._growth, self._refused = 1.0, 0.0
            self.shut_until = now + (_SHUT_SECONDS if seconds is None else seconds)

    def ran_out_of_time(self) -> None:
        is_first = not self._sent_before
        self._ended()
        if is_first:
            self._growth = GROWTH
            self.limit = max(1.0, self.limit / 2)
            self._sent_before = self.under_way

    def failed(self) -> None:
        """Ended otherwise, which says nothing about the pace."""
        self._ended()

    def _ended(self, refused: bool = False) -> None:
        self.under_way -= 1
        self._refused += (refused - self._refused) / _LAST
        self._sent_before = max(0, self._sent_before - 1)


def wait_seconds(attempt: int, asked_for: float | None, chance: random.Random) -> float:
    """Before attempt number `attempt` + 1: what the endpoint asked for and up to a quarter more, or between a half and
    the whole of 1, 2, 4... seconds."""
    if asked_for is not None:
        return asked_for * (1 + chance.random() / 4) + chance.random() / 10
    return min(LONGEST_WAIT_SECONDS, 2.0 ** (attempt - 1)) * (0.5 + chance.random() / 2)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a reply's headers ask to wait, from `Retry-After` (seconds, or a date: RFC 9110, 10.2.3) or OpenAI's
    `retry-after-ms`; `now` is the time of day. None if they do not say, or not so that it can be read."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    for number, unit in ((milliseconds, 1000), (value, 1)):
        try:
            seconds = float(number or "") / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(value or "").timestamp() - now)
    except (ValueError, OverflowError):
        return None
