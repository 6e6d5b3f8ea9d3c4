"""How many requests an endpoint is given at a time: as many as it takes, and no more.

Nobody says how many that are: a server that batches wants a hundred, one that does not wants one, a hosted one
counts tokens a minute. So `Pace` feels its way, as TCP does (Jacobson 1988):

* It begins with a few and, as long as they are answered, lets one more under way for every answer (which doubles
  the number in the time of one answer), up to a ceiling; above a number that was once refused, one more only in the
  time of one answer.
* A refusal (status 429 or 503) says that those under way are all that the endpoint takes: that number is the new
  limit, and it does not grow until the time that the endpoint asked for is over. An endpoint with N places so
  keeps N requests under way, and one that has no more to give this minute gets few in vain: each lowers the
  limit further, and after one that was refused alone nothing is sent until the time is over.
* A request that ran out of time halves the limit: the endpoint has put it at the end of too long a queue.

`wait_seconds` says how long to wait before a request is tried again. Random parts keep many clients from
coming back together. Pure bookkeeping: no threads, no clock but the `now` it is given.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

CEILING = 128
LONGEST_WAIT_SECONDS = 60.0  # of our own accord; an endpoint may ask for more
START = 32
_HOLD_SECONDS = 1.0  # after a refusal that names no time


class Pace:
    """`under_way` requests of at most `limit`; `may_start` before each, then one of the three as it ends."""

    def __init__(self, ceiling: int = CEILING, start: float = START) -> None:
        self.ceiling = ceiling
        self.limit = float(min(start, ceiling))
        self.under_way = 0
        self.hold_until = 0.0  # no growth until then
        self._shut = False  # refused with none under way: nothing is sent until then
        self._refused_at = float(ceiling)  # grow fast below
        self._before = self.limit  # when the first refusal of this hold came

    def may_start(self, now: float) -> bool:
        return self.under_way < int(self.limit) and not self.is_shut(now)

    def is_shut(self, now: float) -> bool:
        return self._shut and now < self.hold_until

    def started(self) -> None:
        self.under_way += 1

    def answered(self, now: float) -> None:
        was_full = self.under_way >= int(self.limit)
        self.under_way -= 1
        if was_full and now >= self.hold_until:
            self.limit = min(self.ceiling, self.limit + (1 if self.limit < self._refused_at else 1 / self.limit))

    def refused(self, now: float, seconds: float | None) -> None:
        self.under_way -= 1
        if now >= self.hold_until:
            self._before = self.limit
        self.hold_until = max(self.hold_until, now + (_HOLD_SECONDS if seconds is None else seconds))
        self.limit = float(max(1, min(int(self.limit), self.under_way)))
        self._shut = not self.under_way
        # taken down to nothing it was not places that were missing: afterwards go fast to half of what was before
        self._refused_at = self.limit if self.under_way else max(1.0, self._before / 2)

    def ran_out_of_time(self, now: float) -> None:
        self.under_way -= 1
        if now >= self.hold_until:  # those that were sent together run out of time together
            self.hold_until = now + _HOLD_SECONDS
            self.limit = self._refused_at = max(1.0, self.limit / 2)

    def failed(self) -> None:
        """Ended otherwise, which says nothing about the pace."""
        self.under_way -= 1


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
